"""Files of named arrays: safetensors, torch's, NumPy's. Nothing in them is executed."""

import pathlib
import zipfile
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ddae_jax.interop.torch_files import read_torch_weights

Weights = Mapping[str, np.ndarray]


def read_weights(path: pathlib.Path) -> Weights:
    """The arrays of a file, float32, by name.

    Raises ``FileNotFoundError``, or ``ValueError`` for a file of another kind, or a broken one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the encoder's weights")
    if path.suffix not in READERS:
        raise ValueError(f"{path}: weights are read from files called *{', *'.join(READERS)}")
    return {name: np.asarray(a, np.float32) for name, a in READERS[path.suffix](path).items()}


def _read_safetensors(path: pathlib.Path) -> Weights:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no file of safetensors: {error}") from error


def _read_npz(path: pathlib.Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no file of NumPy's arrays: {error}") from error


READERS: Mapping[str, Callable[[pathlib.Path], Weights]] = MappingProxyType(
    {
        ".safetensors": _read_safetensors,
        ".pth": read_torch_weights,
        ".pt": read_torch_weights,
        ".bin": read_torch_weights,
        ".npz": _read_npz,
    }
)
"""What reads the files of each suffix."""
