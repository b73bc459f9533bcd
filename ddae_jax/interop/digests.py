"""SHA-256 digests of arrays, written into the metadata of safetensors files, checked when read."""

import hashlib
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors import safe_open

from ddae_jax.interop.weights_to_params import Weights

_KEY = "ddae_jax.sha256"
"""Key of the digests in a file's metadata. Other programs drop it when they save changed arrays."""


class DamagedWeights(ValueError):
    """Error for arrays that differ from those that were written."""


def digest_metadata(weights: Weights) -> dict[str, str]:
    """Computes the metadata for a file of these weights: a SHA-256 of each array, as JSON.

    A digest covers the array's dtype, shape and values.
    """
    return {_KEY: json.dumps({name: _digest(array) for name, array in weights.items()})}


def check_digests(path: pathlib.Path, weights: Weights) -> None:
    """Checks weights against the digests in the metadata of the file that they were read from.

    A file without digests passes.

    Args:
        path: the safetensors file.
        weights: all of its arrays.

    Raises:
        DamagedWeights: if an array differs, is missing or is new, or the digests are no JSON. The
            message names the file and the arrays.
    """
    with safe_open(path, "np") as file:
        stored = (file.metadata() or {}).get(_KEY)
    if stored is None:
        return
    digests = _parse_digests(path, stored)
    unmatched = sorted(digests.keys() ^ weights.keys())
    changed = [n for n in digests if n in weights and _digest(weights[n]) != digests[n]]
    if unmatched or changed:
        faults = [f"{name} is not what was written" for name in changed]
        faults += [f"{name} is {'lacking' if name in digests else 'new'}" for name in unmatched]
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DamagedWeights(
            f"{path} is damaged, by the SHA-256 of each array in its metadata: "
            f"{', '.join(faults[:3])}{more}. Copy or export it again; weights that were changed on "
            f"purpose are to be saved without {_KEY!r} in the metadata"
        )


def _parse_digests(path: pathlib.Path, text: str) -> Mapping[str, str]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise DamagedWeights(f"{path} is damaged: {_KEY!r} in its metadata: {error}") from error


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
