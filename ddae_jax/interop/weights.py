"""Files of weights, whoever wrote them: arrays by name."""

import os
import pathlib
from typing import Any

import ml_dtypes  # with which numpy, and so safetensors, knows bfloat16
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ddae_jax.interop.digests import check_digests
from ddae_jax.interop.encoders import Weights
from ddae_jax.interop.torch_files import read_torch_file

# Where training code puts the weights, beside what else it keeps: looked for in this order.
_KEYS = ("model", "state_dict", "module", "teacher", "student")
_DATA_PARALLEL = "module."  # which torch puts before each name
_MOST_DEPTH = 3


def read_weights(path: str | os.PathLike) -> Weights:
    """The arrays of a file, float32.

    Of a file of torch that holds more than weights, those under ``model``, ``state_dict``,
    ``module``, ``teacher`` or ``student``, whichever comes first.

    Args:
        path: of a file that ends in ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.npz``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is broken, of another kind, or holds no arrays by name; if its arrays are
            not those of the digests in it (see :mod:`ddae_jax.interop.digests`). Nothing in it is
            executed (see :mod:`ddae_jax.interop.torch_files`).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the encoder's weights")
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path} is of no known kind; weights end in {', '.join(_READERS)}")
    return {name: _float32(path, name, array) for name, array in read(path).items()}


def find_weights(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder of timm or transformers, or where it should be."""
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    return next((file for file in files if file.is_file()), files[0])


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


def _read_torch(path: pathlib.Path) -> Weights:
    found = read_torch_file(path)
    for _ in range(_MOST_DEPTH):
        found = _within(found)
    arrays = found if isinstance(found, dict) else {}
    others = [n for n, a in arrays.items() if not (isinstance(n, str) and _is_array(a))]
    if not arrays or others:
        raise ValueError(
            f"{path} holds no arrays by name, at the top or under {', '.join(_KEYS)}; what is "
            f"otherwise there is {', '.join(map(_described, others[:5])) or type(found).__name__}. "
            "Save the model's state_dict() alone"
        )
    if all(name.startswith(_DATA_PARALLEL) for name in arrays):
        return {name.removeprefix(_DATA_PARALLEL): array for name, array in arrays.items()}
    return arrays


def _within(found: Any) -> Any:
    """What lies under the first of the known keys that is there, or all of it."""
    if not isinstance(found, dict):
        return found
    return next((found[key] for key in _KEYS if isinstance(found.get(key), dict)), found)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _described(name: Any) -> str:
    return ascii(name)[:40] if isinstance(name, str | int) else type(name).__name__


def _float32(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" and array.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"{path}: {name} is of dtype {array.dtype}; weights are real numbers")
    return np.asarray(array, np.float32)


_READERS = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".npz": _read_npz,
}
