"""Files of weights, whoever wrote them: arrays by name."""

import json
import os
import pathlib
import zipfile
from typing import Any

import ml_dtypes  # with which numpy, and so safetensors, knows bfloat16
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ddae_jax.interop.digests import check_digests
from ddae_jax.interop.encoders import Weights
from ddae_jax.interop.places import PREFERRED, Network, NoSuchPart, arrays_in, network_in
from ddae_jax.interop.torch_files import read_torch_file

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Of the file in a folder of timm or transformers; beside ``NAME.index.json`` it is in parts."""

_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file that it stands for; get that "
     "by `git lfs pull`, or by downloading it"),
    (b"<!doctype", "a web page, not the file that was to be downloaded; download it again"),
    (b"<html", "a web page, not the file that was to be downloaded; download it again"),
    (b"<?xml", "a message of a server, not the file that was to be downloaded; download it again"),
    (b"\x1f\x8b", "packed by gzip; unpack it"),
    (b"bzh", "packed by bzip2; unpack it"),
    (b"\xfd7zxz", "packed by xz; unpack it"),
    (b"\x89hdf", "a file of HDF5, as Keras writes it, which is not read here"),
    (b"\x93numpy", "one array without a name, of numpy; save arrays by name, by numpy.savez"),
)  # fmt: skip
"""How files begin that may be taken for weights, and what they are; in lower case."""

_KINDS = "safetensors, torch (.pth, .pt, .bin) or numpy (.npz)"
_SAFETENSORS, _TORCH, _NPZ, _INDEX = ".safetensors", ".pth", ".npz", ".index.json"
_LARGEST_HEADER = 10**8  # of safetensors, by their format


def read_weights(path: str | os.PathLike) -> Weights:
    """The arrays of a file, float32.

    Of a file that holds arrays in several places, those of the preferred one: see
    :data:`ddae_jax.interop.places.PREFERRED`.

    Args:
        path: of a file of safetensors, of torch or of numpy (``.npz``), whatever it is called; or
            of the ``.index.json`` of one that is in parts.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is broken, of another kind, or holds no arrays by name; if its arrays are
            not those of the digests in it (see :mod:`ddae_jax.interop.digests`). Nothing in it is
            executed (see :mod:`ddae_jax.interop.torch_files`).
    """
    path = pathlib.Path(path)
    found = _content(path)
    try:
        arrays = arrays_in(found)
    except NoSuchPart as error:
        raise ValueError(f"{path} {error}") from None
    if arrays is None:
        raise ValueError(_without_arrays(path, found))
    return _float32(path, arrays)


def read_network(path: str | os.PathLike, part: str = "") -> Network:
    """The encoder in a file, float32, by the names that it has there without those around it.

    Args:
        path: see :func:`read_weights`.
        part: which one, of several: see :func:`ddae_jax.interop.places.network_in`.

    Raises as :func:`read_weights` does, and ``ValueError`` for a part that is not there. What is no
    encoder known here is given as it is.
    """
    path = pathlib.Path(path)
    found = _content(path)
    try:
        network = network_in(found, part)
        if network is None and part:
            raise NoSuchPart(f"has no encoder known here, at init_part={part!r} or elsewhere")
        if network is None:
            arrays = arrays_in(found)
            network = None if arrays is None else Network(arrays, "")
    except NoSuchPart as error:
        raise ValueError(f"{path} {error}") from None
    if network is None:
        raise ValueError(_without_arrays(path, found))
    return network._replace(weights=_float32(path, network.weights))


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder of timm or transformers, or where it should be."""
    files = [folder / f"{name}{suffix}" for name in NAMES for suffix in ("", _INDEX)]
    return next((file for file in files if file.is_file()), files[0])


def _content(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the encoder's weights{files_beside(path.parent)}"
        )
    return _READERS[_kind(path)](path)


def files_beside(folder: pathlib.Path) -> str:
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
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is empty")
    # First: the length of its header, with which it begins, may look like anything.
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 0 < header < _LARGEST_HEADER:
        return _SAFETENSORS
    lower = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for beginning, what in _OTHERS:
        if lower.startswith(beginning):
            raise ValueError(f"{path} is {what}")
    if start[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive; unpack it, and give the file in it")
    if path.name.endswith(_INDEX):
        return _INDEX
    if start[:1] == b"\x80":
        return _TORCH
    if start[:4] == b"PK\x03\x04":
        return _kind_of_archive(path)
    raise ValueError(f"{path} is no file of {_KINDS}: it begins with {start[:8]!r}")


def _kind_of_archive(path: pathlib.Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
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
    try:
        weights = load_file(path)
    except (SafetensorError, TypeError) as error:  # the latter for what numpy has no dtype of
        raise ValueError(f"{path} is no file of safetensors: {error}") from error
    check_digests(path, weights)
    return weights


def _read_npz(path: pathlib.Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # what a broken archive raises is anything
        raise ValueError(f"{path} is damaged, or no .npz file of numbers: {error}") from error


def _read_parts(path: pathlib.Path) -> Weights:
    """The arrays of all files that an index names."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(told.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no index of weights: it has no 'weight_map' of names and files"
        ) from error
    found: dict[str, np.ndarray] = {}
    for name in files:
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise ValueError(f"{path} names {name!r}; it may name files beside it alone")
        file = path.parent / name
        if not file.is_file():
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
        f"otherwise there is {', '.join(map(_described, others[:5])) or type(within).__name__}. "
        "Save the model's state_dict() alone"
    )


def _described(name: Any) -> str:
    return ascii(name)[:40] if isinstance(name, str | int) else type(name).__name__


def _float32(path: pathlib.Path, arrays: Weights) -> Weights:
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" and array.dtype != ml_dtypes.bfloat16:
            raise ValueError(f"{path}: {name} is of dtype {array.dtype}; weights are real numbers")
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


_READERS = {
    _SAFETENSORS: _read_safetensors,
    _TORCH: read_torch_file,
    _NPZ: _read_npz,
    _INDEX: _read_parts,
}
