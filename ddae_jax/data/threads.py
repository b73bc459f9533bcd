"""How many threads read a source, and pools of threads that stop with their work."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ddae_jax.data.source_base import ExampleSource

# Pixels a side, up to which one thread reads faster than several; see benchmarks/augmentation.py.
_SMALL_SIDE = 64


def reading_threads(source: ExampleSource) -> int:
    """How many threads read a source fastest: 1 where all images are small, else 4.

    Decoding a small image is mostly Python, which threads only slow down by waiting for each other.
    """
    is_small = source.image_size is not None and max(source.image_size) <= _SMALL_SIDE
    return 1 if is_small else 4


@contextlib.contextmanager
def all_cancelled_after(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Ends a pool with the body: what it has not begun by then, after an error too, is left out."""
    with pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
