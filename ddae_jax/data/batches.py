"""Shared parts of the batches for training and for evaluation: their type, sizes and warnings."""

import functools
import logging

import grain
import numpy as np

_log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
"""Arrays by name, of one example, or of a batch with the example as first axis."""


def batches_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of whole global batches in an epoch; 1 if it is smaller than a batch.

    Raises ``ValueError`` if ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; at least 1")
    return max(num_examples // batch_size, 1)


def local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    """Returns how many examples of a global batch each process gets.

    Raises ``ValueError`` if the batch cannot be split evenly, or the process is none of them.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} is the global one: a positive multiple of the number of "
            f"processes, {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}; from 0 to {process_count - 1}")
    return batch_size // process_count


def read_options(num_threads: int, num_batches: int) -> grain.ReadOptions:
    """Returns Grain's options to make so many batches ahead, in so many threads."""
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_batches)


@functools.cache
def log_corrupt(name: str, cause: str) -> None:
    """Warns of an image that cannot be decoded; the same one only once in a process."""
    _log.warning("skipped an image that cannot be decoded: %s (%s)", name, cause)
