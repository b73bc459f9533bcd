"""Checking that all images of a source have one size, which augmentation on the device needs."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

from ddae_jax.data.folder_source import FolderSource
from ddae_jax.data.images import CorruptImage, LazyImage
from ddae_jax.data.source_base import ExampleSource
from ddae_jax.data.threads import cancel_rest_at_exit, reading_threads

_log = logging.getLogger(__name__)

_CHUNK = 256  # images whose headers a thread reads at once
_BUDGET_S = 10.0  # for how long headers are read


class OddSize(ValueError):
    """An image of another size than the others. The message names it and both sizes."""


def one_size(source: ExampleSource, budget_s: float = _BUDGET_S) -> tuple[int, int]:
    """Returns the (height, width) that all images share, by the headers of a folder's files.

    Args:
        source: the images.
        budget_s: for how long headers are read, seconds. Images that are not reached by then are
            checked when they are read in training.

    Raises:
        OddSize: if an image has another size than the others, or none can be read.
    """
    expected = source.image_size
    is_known = expected is not None and not isinstance(source, FolderSource)
    if is_known:
        return expected
    num_checked, began = 0, time.monotonic()
    chunks = [range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    with cancel_rest_at_exit(ThreadPoolExecutor(reading_threads(source))) as pool:
        for sizes in pool.map(lambda chunk: _sizes(source, chunk), chunks):
            for index, size in enumerate(sizes, start=num_checked):
                expected = expected or size
                if size is not None:
                    check_size(size, expected, source, index)
            num_checked += len(sizes)
            if time.monotonic() - began > budget_s:
                break
    if num_checked < len(source):
        _log.info(
            "looked at the sizes of %s of %s images; if one differs further on, the run ends there",
            f"{num_checked:,}",
            f"{len(source):,}",
        )
    if expected is None:
        raise OddSize("data.augment_in='device' needs images of one size, and none can be read")
    return expected


def check_size(
    size: tuple[int, int], expected: tuple[int, int], source: ExampleSource, index: int
) -> None:
    """Raises ``OddSize``, naming the image, if its (height, width) is not the expected one."""
    if size != expected:
        raise OddSize(
            f"{source.name(index)} is {size[0]} x {size[1]} pixels (height x width), and others "
            f"are {expected[0]} x {expected[1]}: data.augment_in='device' takes images of one size "
            "alone. Remove or resize it, or choose data.augment_in='workers', which takes any size"
        )


def _sizes(source: ExampleSource, indices: range) -> list[tuple[int, int] | None]:
    """Returns the (height, width) of some images; None for those that cannot be decoded."""
    return [_size(image) for image, _ in source.open(indices)]


def _size(image: LazyImage) -> tuple[int, int] | None:
    """Returns the (height, width) of an image; None if it cannot be decoded."""
    try:
        width, height = image.size
    except CorruptImage:
        return None
    return height, width
