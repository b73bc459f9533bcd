"""Files of weights, whoever wrote them: arrays by name."""

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
"""Of the file in a folder of timm or transformers; beside ``NAME.index.json`` it is in parts."""

_KINDS = "safetensors, torch (.pth, .pt, .bin) or numpy (.npz)"
_SAFETENSORS, _TORCH, _NPZ, _INDEX = ".safetensors", ".pth", ".npz", ".index.json"
_LARGEST_HEADER = 10**8  # of safetensors, by their format

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
"""Those of safetensors, which are of whole bytes; the others are of 4 and of 6 bits."""


def read_weights(path: str | os.PathLike) -> Weights:
    """The arrays of a file; those of real numbers in float32, all others as they are.

    Of a file that holds arrays in several places, those of the preferred one: see
    :data:`ddae_jax.interop.encoder_search.PREFERRED`.

    Args:
        path: of a file of safetensors, of torch or of numpy (``.npz``), whatever it is called; or
            of the ``.index.json`` of one that is in parts.

    Raises:
        FileNotFoundError: if there is none.
        ReadFailed: if the disk or the network that it lies on is at fault.
        ValueError: if it is broken, of another kind, or holds no arrays by name; if its arrays are
            not those of the digests in it (see :mod:`ddae_jax.interop.digests`). Nothing in it is
            executed (see :mod:`ddae_jax.interop.torch_files`).
    """
    path = pathlib.Path(path)
    found = _content(path)
    try:
        arrays = preferred_arrays(found)
    except NoSuchPart as error:
        raise ValueError(f"{path} {error}") from None
    if arrays is None:
        raise ValueError(_without_arrays(path, found))
    return _float32(arrays)


def read_network(path: str | os.PathLike, part: str = "") -> Network:
    """The encoder in a file, by the names that it has there without those around it.

    Args:
        path: see :func:`read_weights`, as which its arrays are read.
        part: which one, of several: see :func:`ddae_jax.interop.encoder_search.find_encoder`.

    Raises as :func:`read_weights` does, and ``ValueError`` for a part that is not there. What is no
    encoder known here is given as it is.
    """
    path = pathlib.Path(path)
    found = _content(path)
    try:
        network = find_encoder(found, part)
        if network is None and part:
            raise NoSuchPart(f"has no encoder known here, at init_part={part!r} or elsewhere")
        if network is None:
            arrays = preferred_arrays(found)
            network = None if arrays is None else Network(arrays, "")
    except NoSuchPart as error:
        raise ValueError(f"{path} {error}") from None
    if network is None:
        raise ValueError(_without_arrays(path, found))
    return network._replace(weights=_float32(network.weights))


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder of timm or transformers, or where it should be."""
    files = [folder / f"{name}{suffix}" for name in NAMES for suffix in ("", _INDEX)]
    return next((file for file in files if is_file(file)), files[0])


def _content(path: pathlib.Path) -> Any:
    if not is_file(path):
        raise FileNotFoundError(
            f"{path} is missing: the encoder's weights{suggest_weight_files(path.parent)}"
        )
    return _READERS[_kind(path)](path)


def suggest_weight_files(folder: pathlib.Path) -> str:
    """A sentence on the files in a folder that may be meant; empty if there are none."""
    suffixes = {".safetensors", ".pth", ".pt", ".bin", ".npz", ".h5", ".msgpack", ".ckpt", ".tar"}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [file.name for file in files if file.suffix in suffixes]
    if not found:
        return ""
    return (
        f". There {'is' if len(found) == 1 else 'are'} {', '.join(found[:5])} in it: if that is "
        f"what is meant, give the file itself, or call it {NAMES[0]}"
    )


def _kind(path: pathlib.Path) -> str:
    """What a file is, by how it begins. Raises ``ValueError`` if that is nothing known."""
    with reading(path) as file:
        start = file.read(SIGNATURE_BYTES)
    if not start:
        raise ValueError(f"{path} is empty")
    # First: the length of its header, with which it begins, may look like anything.
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
        return _kind_of_archive(path)
    text = decode_text(start)
    told = f"it begins with {start[:8]!r}" if text is None else f"it is text, {excerpt(text)}"
    raise ValueError(f"{path} is no file of {_KINDS}: {told}")


def _kind_of_archive(path: pathlib.Path) -> str:
    try:
        with reading(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return _NPZ if path.suffix.lower() == _NPZ else _TORCH  # whose readers say what is wrong
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
    """The arrays by name, whose bytes are read as those of all other files are.

    What maps a file into memory, as safetensors does, is killed where a disk fails.
    """
    try:
        with reading(path) as file:
            header = int.from_bytes(file.read(8), "little")
            file.read(header)  # so that it is there when safetensors looks at it
            with safe_open(path, "np") as told:
                names = told.offset_keys()  # one behind the other, as safetensors makes sure
                slices = {name: told.get_slice(name) for name in names}
            shapes = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            weights = {name: _next_array(path, file, name, *told) for name, told in shapes.items()}
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


def _next_array(
    path: pathlib.Path, file: BinaryIO, name: str, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
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
    except Exception as error:  # what a broken archive raises is anything
        raise ValueError(f"{path} is damaged, or no .npz file of numbers: {error}") from error


def _read_parts(path: pathlib.Path) -> Weights:
    """The arrays of all files that an index names."""
    told = read_json(path, "it says where the weights are").get("weight_map")
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
        raise ValueError(
            f"{path} is no index of weights: it has no 'weight_map' of names and files"
        )
    files = sorted(set(told.values()))
    found: dict[str, np.ndarray] = {}
    for name in files:
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{path} names {name!r}; it may name files beside it alone")
        file = path.parent / name
        if not is_file(file):
            raise FileNotFoundError(f"{file} is missing: {path.name} says that weights are in it")
        arrays = _READERS[_kind(file)](file)
        if not isinstance(arrays, dict) or found.keys() & arrays.keys():
            raise ValueError(f"{file} holds no arrays by name, or some that another part has too")
        found |= arrays
    lost = told.keys() - found.keys()
    if lost:
        raise ValueError(f"{path}: {len(lost)} arrays are in none of its files, as {min(lost)}")
    return found


def _without_arrays(path: pathlib.Path, found: Any) -> str:
    """Says what a file holds instead."""
    within = found
    for _ in range(3):
        inner = within if isinstance(within, dict) else {}
        within = next((inner[k] for k in PREFERRED if isinstance(inner.get(k), dict)), within)
    names = list(within) if isinstance(within, dict) else []
    others = [n for n in names if not (isinstance(n, str) and isinstance(within[n], np.ndarray))]
    return (
        f"{path} holds no arrays by name, at the top or under {', '.join(PREFERRED)}; what is "
        f"otherwise there is {', '.join(map(_described, others[:5])) or _kind_of(within)}. "
        "Save the model's state_dict() alone"
    )


def _kind_of(held: Any) -> str:
    return excerpt(held.name) if isinstance(held, InertObject) else type(held).__name__


def _described(name: Any) -> str:
    return ascii(name)[:40] if isinstance(name, str | int) else type(name).__name__


def _float32(arrays: Weights) -> Weights:
    with np.errstate(over="ignore"):  # what becomes infinite is refused where it is needed
        return {name: as_float32(array) for name, array in arrays.items()}


_READERS = {
    _SAFETENSORS: _read_safetensors,
    _TORCH: read_torch_file,
    _NPZ: _read_npz,
    _INDEX: _read_parts,
}
