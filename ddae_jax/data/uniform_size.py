"""Images of one size, as a batch that is augmented on the device is made of."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

from ddae_jax.data.folder_source import FolderSource
from ddae_jax.data.images import CorruptImage, LazyImage
from ddae_jax.data.source_base import ExampleSource
from ddae_jax.data.threads import all_cancelled_after, reading_threads

_log = logging.getLogger(__name__)

# Headers of so many images are read at once, and of all for at most so long.
_CHUNK = 256
_BUDGET_S = 10.0


class OddSize(ValueError):
    """An image that has not the size of the others. The message names it and both sizes."""


def one_size(source: ExampleSource, budget_s: float = _BUDGET_S) -> tuple[int, int]:
    """Finds the (height, width) that all images share; those of a folder are looked at, one by one.

    **Arguments:**

    - `budget_s`: for how long, seconds; what is not seen by then is met in training.

    Raises `OddSize` if one has another size.
    """
    expected = source.image_size
    is_known = expected is not None and not isinstance(source, FolderSource)
    if is_known:
        return expected
    seen, began = 0, time.monotonic()
    chunks = [range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    with all_cancelled_after(ThreadPoolExecutor(reading_threads(source))) as pool:
        for sizes in pool.map(lambda chunk: _sizes(source, chunk), chunks):
            for index, size in enumerate(sizes, start=seen):
                expected = expected or size
                if size is not None:
                    check_size(size, expected, source, index)
            seen += len(sizes)
            if time.monotonic() - began > budget_s:
                break
    if seen < len(source):
        _log.info(
            "looked at the sizes of %s of %s images; if one differs further on, the run ends there",
            f"{seen:,}",
            f"{len(source):,}",
        )
    if expected is None:
        raise OddSize("data.augment_in='device' needs images of one size, and none can be read")
    return expected


def check_size(
    size: tuple[int, int], expected: tuple[int, int], source: ExampleSource, index: int
) -> None:
    """Raises `OddSize`, naming the image, if its size is not what is expected of all."""
    if size != expected:
        raise OddSize(
            f"{source.name(index)} is {size[0]} x {size[1]} pixels (height x width), and others "
            f"are {expected[0]} x {expected[1]}: data.augment_in='device' takes images of one size "
            "alone. Remove or resize it, or choose data.augment_in='workers', which takes any size"
        )


def _sizes(source: ExampleSource, indices: range) -> list[tuple[int, int] | None]:
    """(height, width) of some images; None of those that cannot be decoded."""
    return [_size(image) for image, _ in source.open(indices)]


def _size(image: LazyImage) -> tuple[int, int] | None:
    try:
        width, height = image.size
    except CorruptImage:
        return None
    return height, width
