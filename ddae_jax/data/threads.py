"""Threads that read a source: how many are fastest, and a pool that leaves no work behind."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ddae_jax.data.source_base import ExampleSource

# Up to so many pixels per side one thread reads faster than several; benchmarks/augmentation.py.
_SMALL_SIDE = 64


def reading_threads(source: ExampleSource) -> int:
    """Returns how many threads read a source fastest: 1 where all images are small, else 4.

    Decoding a small image is mostly Python code, for whose lock several threads only compete.
    """
    is_small = source.image_size is not None and max(source.image_size) <= _SMALL_SIDE
    return 1 if is_small else 4


@contextlib.contextmanager
def cancel_rest_at_exit(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Cancels the calls that a pool has not begun when the body ends, also after an error."""
    with pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
