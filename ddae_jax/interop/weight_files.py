"""Files of weights, read as arrays by name, whichever library wrote them.

:func:`read_weights` and :func:`read_network` recognise the format by how a file begins, not by its
suffix: safetensors, torch (see :mod:`ddae_jax.interop.torch_files`), numpy's ``.npz``, or the JSON
index of a model that is stored in parts.
"""

import math
import os
import pathlib
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ddae_jax.data.disks import ReadFailed, is_file, is_of_one_file, reading
from ddae_jax.interop.digests import check_digests
from ddae_jax.interop.encoder_search import (
    PREFERRED,
    Network,
    NoSuchPart,
    find_encoder,
    preferred_arrays,
)
from ddae_jax.interop.file_signatures import (
    SIGNATURE_BYTES,
    decode_text,
    describe_wrong_file,
    excerpt,
)
from ddae_jax.interop.json_files import read_json
from ddae_jax.interop.pickle_objects import InertObject
from ddae_jax.interop.torch_files import read_torch_file
from ddae_jax.interop.weights_to_params import Weights, as_float32

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weight file in a folder of timm or transformers.

If ``NAME.index.json`` lies there instead, the weights are stored in parts.
"""

_FORMATS = "safetensors, torch (.pth, .pt, .bin) or numpy (.npz)"
_SAFETENSORS, _TORCH, _NPZ, _INDEX = ".safetensors", ".pth", ".npz", ".index.json"
_LARGEST_HEADER = 10**8  # bytes, the limit that the safetensors format sets

_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "C64": "complex64",
}
"""numpy's dtypes by their safetensors names, without those of 4 and 6 bits."""


def read_weights(path: str | os.PathLike) -> Weights:
    """Reads all arrays of a file by name, without executing anything in it.

    If the file holds several collections of arrays, the preferred one is returned: see
    :data:`ddae_jax.interop.encoder_search.PREFERRED`.

    Args:
        path: a file of safetensors, torch or numpy (``.npz``), under any name, or the
            ``.index.json`` of weights that are stored in parts.

    Returns:
        Arrays by name: floating-point ones in float32, all others with their own dtype.

    Raises:
        FileNotFoundError: if there is no such file.
        ReadFailed: if the disk or the network is at fault.
        ValueError: if the file is damaged, has another format, holds no arrays by name, or
            contradicts its own digests (see :mod:`ddae_jax.interop.digests`).
    """
    path = pathlib.Path(path)
    content = _read_content(path)
    try:
        arrays = preferred_arrays(content)
    except NoSuchPart as error:
        raise ValueError(f"{path} {error}") from None
    if arrays is None:
        raise ValueError(_no_arrays_message(path, content))
    return _to_float32(arrays)


def read_network(path: str | os.PathLike, part: str = "") -> Network:
    """Reads the encoder in a file, without the prefixes that the file puts before its names.

    Args:
        path: as in :func:`read_weights`.
        part: selects one of several encoders: see
            :func:`ddae_jax.interop.encoder_search.find_encoder`.

    Returns:
        The encoder, with dtypes as in :func:`read_weights`. If the file holds no known encoder and
        ``part`` is empty, the arrays that :func:`read_weights` returns.

    Raises:
        FileNotFoundError: as :func:`read_weights` does.
        ReadFailed: as :func:`read_weights` does.
        ValueError: as :func:`read_weights` does, and if ``part`` names no encoder or several.
    """
    path = pathlib.Path(path)
    content = _read_content(path)
    try:
        network = find_encoder(content, part)
        if network is None and part:
            raise NoSuchPart(f"has no encoder known here, at init_part={part!r} or elsewhere")
        if network is None:
            arrays = preferred_arrays(content)
            network = None if arrays is None else Network(arrays, "")
    except NoSuchPart as error:
        raise ValueError(f"{path} {error}") from None
    if network is None:
        raise ValueError(_no_arrays_message(path, content))
    return network._replace(weights=_to_float32(network.weights))


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """Returns the weight file (or index) in a folder; if there is none, where it should be."""
    files = [folder / f"{name}{suffix}" for name in NAMES for suffix in ("", _INDEX)]
    return next((file for file in files if is_file(file)), files[0])


def _read_content(path: pathlib.Path) -> Any:
    """Reads whatever a file holds: for a torch file nested objects, otherwise arrays by name."""
    if not is_file(path):
        raise FileNotFoundError(
            f"{path} is missing: the encoder's weights{suggest_weight_files(path.parent)}"
        )
    return _READERS[_format_of(path)](path)


def suggest_weight_files(folder: pathlib.Path) -> str:
    """Returns a sentence on files in a folder that may be the weights; empty if there are none."""
    suffixes = {".safetensors", ".pth", ".pt", ".bin", ".npz", ".h5", ".msgpack", ".ckpt", ".tar"}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [file.name for file in files if file.suffix in suffixes]
    if not names:
        return ""
    return (
        f". There {'is' if len(names) == 1 else 'are'} {', '.join(names[:5])} in it: if that is "
        f"what is meant, give the file itself, or call it {NAMES[0]}"
    )


def _format_of(path: pathlib.Path) -> str:
    """Returns a file's format, a key of ``_READERS``, by how the file begins.

    Raises ``ValueError`` if it is no format that is read here.
    """
    with reading(path) as file:
        start = file.read(SIGNATURE_BYTES)
    if not start:
        raise ValueError(f"{path} is empty")
    # Checked first: safetensors begins with the header's length, which may look like any format.
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 0 < header < _LARGEST_HEADER:
        return _SAFETENSORS
    what = describe_wrong_file(start)
    if what is not None:
        raise ValueError(f"{path} is {what}")
    if path.name.endswith(_INDEX):
        return _INDEX
    if start[:1] == b"\x80":
        return _TORCH
    if start[:4] == b"PK\x03\x04":
        return _archive_format(path)
    text = decode_text(start)
    beginning = f"it begins with {start[:8]!r}" if text is None else f"it is text, {excerpt(text)}"
    raise ValueError(f"{path} is no file of {_FORMATS}: {beginning}")


def _archive_format(path: pathlib.Path) -> str:
    """Tells the zip archives of torch and numpy apart. Raises ``ValueError`` for any other."""
    try:
        with reading(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return _NPZ if path.suffix.lower() == _NPZ else _TORCH  # their readers say what is wrong
    if any(name.endswith("data.pkl") for name in names):
        return _TORCH
    if names and all(name.endswith(".npy") for name in names):
        return _NPZ
    inside = ", ".join(names[:3])
    raise ValueError(
        f"{path} is an archive, but not of torch or numpy; if the weights are in it, unpack it. It "
        f"holds {inside or 'nothing'}"
    )


def _read_safetensors(path: pathlib.Path) -> Weights:
    """Reads the arrays of a safetensors file by name.

    The values are read through :func:`ddae_jax.data.disks.reading` like any other file.
    safetensors itself maps the file into memory, and a process that touches a mapped page of a
    failing disk is killed.
    """
    try:
        with reading(path) as file:
            header = int.from_bytes(file.read(8), "little")
            file.read(header)  # patiently, so that safetensors finds it in the page cache
            with safe_open(path, "np") as mapped:
                names = mapped.offset_keys()  # in file order; safetensors checks there are no gaps
                slices = {name: mapped.get_slice(name) for name in names}
            specs = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            weights = {name: _read_array(path, file, name, *spec) for name, spec in specs.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no file of safetensors: {error}") from error
    except OSError as error:
        if isinstance(error, ReadFailed) or is_of_one_file(error):
            raise
        raise ReadFailed(
            f"{path} cannot be mapped into memory, as its header is for safetensors: {error}. Copy "
            "it to another disk, and read it there"
        ) from error
    check_digests(path, weights)
    return weights


def _read_array(
    path: pathlib.Path, file: BinaryIO, name: str, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Reads the array at the file's current position; ``path`` and ``name`` are for messages."""
    if dtype not in _DTYPES:
        raise ValueError(
            f"{path}: {name} is of dtype {dtype}, which is that of quantised weights; known are "
            f"{', '.join(_DTYPES)}"
        )
    array = np.empty(math.prod(shape), _DTYPES[dtype])
    if file.readinto(array.view(np.uint8)) != array.nbytes:
        raise ValueError(f"{path} is no file of safetensors: it ends within {name}")
    return array.reshape(shape)


def _read_npz(path: pathlib.Path) -> Weights:
    try:
        with reading(path) as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except ReadFailed:
        raise
    except Exception as error:  # a broken archive may raise anything
        raise ValueError(f"{path} is damaged, or no .npz file of numbers: {error}") from error


def _read_parts(path: pathlib.Path) -> Weights:
    """Reads the arrays of all files that an index names."""
    weight_map = read_json(path, "it says where the weights are").get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise ValueError(
            f"{path} is no index of weights: it has no 'weight_map' of names and files"
        )
    weights: dict[str, np.ndarray] = {}
    for name in sorted(set(weight_map.values())):
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{path} names {name!r}; it may name files beside it alone")
        file = path.parent / name
        if not is_file(file):
            raise FileNotFoundError(f"{file} is missing: {path.name} says that weights are in it")
        arrays = _READERS[_format_of(file)](file)
        if not isinstance(arrays, dict) or weights.keys() & arrays.keys():
            raise ValueError(f"{file} holds no arrays by name, or some that another part has too")
        weights |= arrays
    missing = weight_map.keys() - weights.keys()
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} arrays are in none of its files, as {min(missing)}"
        )
    return weights


def _no_arrays_message(path: pathlib.Path, content: Any) -> str:
    """Returns the message for a file without arrays by name: what its content is instead."""
    inner = content
    for _ in range(3):
        items = inner if isinstance(inner, dict) else {}
        inner = next((items[k] for k in PREFERRED if isinstance(items.get(k), dict)), inner)
    names = list(inner) if isinstance(inner, dict) else []
    others = [n for n in names if not (isinstance(n, str) and isinstance(inner[n], np.ndarray))]
    return (
        f"{path} holds no arrays by name, at the top or under {', '.join(PREFERRED)}; what is "
        f"otherwise there is {', '.join(map(_format_key, others[:5])) or _type_name(inner)}. "
        "Save the model's state_dict() alone"
    )


def _type_name(value: Any) -> str:
    return excerpt(value.name) if isinstance(value, InertObject) else type(value).__name__


def _format_key(key: Any) -> str:
    return ascii(key)[:40] if isinstance(key, str | int) else type(key).__name__


def _to_float32(arrays: Weights) -> Weights:
    with np.errstate(over="ignore"):  # overflow gives inf, refused later if the array is needed
        return {name: as_float32(array) for name, array in arrays.items()}


_READERS = {
    _SAFETENSORS: _read_safetensors,
    _TORCH: read_torch_file,
    _NPZ: _read_npz,
    _INDEX: _read_parts,
}
