"""The mean and the deviation of each channel of a source's images."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ddae_jax.data.images import CorruptImage
from ddae_jax.data.source_base import Source, spread_indices
from ddae_jax.data.threads import all_cancelled_after, reading_threads

_log = logging.getLogger(__name__)

_CHUNK = 64


class PixelStatistics(NamedTuple):
    """Of each channel, of pixel values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_images: int


def pixel_statistics(source: Source, limit: int | None = None) -> PixelStatistics:
    """Computes them of every pixel; each image counts the same, whatever its size.

    **Arguments:**

    - `limit`: at most so many images, spread evenly.

    Images that cannot be decoded are left out, and counted in the log. Raises `ValueError` if none
    can be.
    """
    indices = spread_indices(len(source), limit)
    count = len(indices)
    chunks = [indices[start : start + _CHUNK] for start in range(0, count, _CHUNK)]
    with all_cancelled_after(ThreadPoolExecutor(reading_threads(source))) as pool:
        found = [m for some in pool.map(lambda c: _moments(source, c), chunks) for m in some]
    if not found:
        raise ValueError(f"none of {count:,} images can be decoded, of which the mean is asked for")
    if len(found) < count:
        _log.warning(
            "%d of %d images cannot be decoded, and are left out", count - len(found), count
        )
    mean, square = np.mean(found, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return PixelStatistics(tuple(mean.tolist()), tuple(std.tolist()), len(found))


def _moments(source: Source, indices: np.ndarray) -> list[Float64[np.ndarray, "2 channel"]]:
    """The mean and the mean square of each channel of each image that can be decoded."""
    moments = []
    for image, _ in source.open(indices):
        try:
            pixels = image.pixels() / 255.0
        except CorruptImage as error:
            _log.warning("left out: %s", error)
            continue
        moments.append(np.stack([pixels.mean(axis=(0, 1)), (pixels**2).mean(axis=(0, 1))]))
    return moments
