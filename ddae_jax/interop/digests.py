"""Digests of arrays, which files of safetensors are written with, and checked by where read."""

import hashlib
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors import safe_open

from ddae_jax.interop.weights_to_params import Weights

_KEY = "ddae_jax.sha256"
"""Of a file's metadata. Programs that change arrays and save them leave it out."""


class DamagedWeights(ValueError):
    """Arrays that are not those which were written."""


def digest_metadata(weights: Weights) -> dict[str, str]:
    """Computes a SHA-256 of each array, as metadata of the file that will hold them."""
    return {_KEY: json.dumps({name: _digest(array) for name, array in weights.items()})}


def check_digests(path: pathlib.Path, weights: Weights) -> None:
    """Raises :class:`DamagedWeights`, naming file and arrays, if a file tells other digests.

    A file that tells none is taken as it is.

    Args:
        path: of the file.
        weights: that were read from it.
    """
    with safe_open(path, "np") as file:
        stored = (file.metadata() or {}).get(_KEY)
    if stored is None:
        return
    told = _parsed(path, stored)
    lost = sorted(told.keys() ^ weights.keys())
    bad = [name for name in told if name in weights and _digest(weights[name]) != told[name]]
    if lost or bad:
        what = [f"{name} is not what was written" for name in bad]
        what += [f"{name} is {'lacking' if name in told else 'new'}" for name in lost]
        more = f", and {len(what) - 3} more" if len(what) > 3 else ""
        raise DamagedWeights(
            f"{path} is damaged, by the SHA-256 of each array in its metadata: "
            f"{', '.join(what[:3])}{more}. Copy or export it again; weights that were changed on "
            f"purpose are to be saved without {_KEY!r} in the metadata"
        )


def _parsed(path: pathlib.Path, text: str) -> Mapping[str, str]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise DamagedWeights(f"{path} is damaged: {_KEY!r} in its metadata: {error}") from error


def _digest(array: np.ndarray) -> str:
    found = hashlib.sha256(f"{array.dtype}{list(array.shape)}".encode())
    found.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return found.hexdigest()
