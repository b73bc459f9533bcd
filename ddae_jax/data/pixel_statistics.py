"""Mean and standard deviation of each channel over a source's images."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ddae_jax.data.images import CorruptImage
from ddae_jax.data.source_base import Source, spread_indices
from ddae_jax.data.threads import cancel_rest_at_exit, reading_threads

_log = logging.getLogger(__name__)

_CHUNK = 64  # images that a thread reads at once


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, of pixel values from 0 to 1.

    Attributes:
        mean, std: a number for each channel.
        num_images: how many images were read.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_images: int


def pixel_statistics(source: Source, limit: int | None = None) -> PixelStatistics:
    """Computes the statistics of all pixels. Each image counts the same, whatever its size.

    Images that cannot be decoded are left out, and counted in the log.

    Args:
        source: the images.
        limit: at most so many images, spread evenly; None for all.

    Raises:
        ValueError: if no image can be decoded.
    """
    indices = spread_indices(len(source), limit)
    count = len(indices)
    chunks = [indices[start : start + _CHUNK] for start in range(0, count, _CHUNK)]
    with cancel_rest_at_exit(ThreadPoolExecutor(reading_threads(source))) as pool:
        results = pool.map(lambda chunk: _moments(source, chunk), chunks)
        moments = [moment for chunk_moments in results for moment in chunk_moments]
    if not moments:
        raise ValueError(f"none of {count:,} images can be decoded, so that they have no mean")
    if len(moments) < count:
        _log.warning(
            "%d of %d images cannot be decoded, and are left out", count - len(moments), count
        )
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return PixelStatistics(tuple(mean.tolist()), tuple(std.tolist()), len(moments))


def _moments(source: Source, indices: np.ndarray) -> list[Float64[np.ndarray, "2 channel"]]:
    """Returns the mean and the mean square of each channel, for each image that can be decoded."""
    moments = []
    for image, _ in source.open(indices):
        try:
            pixels = image.pixels() / 255.0
        except CorruptImage as error:
            _log.warning("left out: %s", error)
            continue
        moments.append(np.stack([pixels.mean(axis=(0, 1)), (pixels**2).mean(axis=(0, 1))]))
    return moments
