"""Pairs of image and annotation for evaluation: every pair once, whole."""

from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np

from ddae_jax.data.batches import Batch, log_corrupt
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.segmentation import PairSource, decode_pair
from ddae_jax.data.source_base import spread_indices
from ddae_jax.data.threads import reading_threads


def eval_pairs(
    source: PairSource,
    *,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    num_threads: int | None = None,
) -> Iterator[Batch]:
    """Yields every pair once, whole and not resized, as evaluation needs it.

    Images differ in size and cannot be stacked into batches: each process gets every
    ``process_count``-th pair, some processes one fewer than others. Pairs that cannot be decoded
    are left out, and named in the log.

    Args:
        source: the pairs.
        process_index, process_count: which share of the pairs this process gets.
        limit: at most so many pairs over all processes, spread evenly; None for all.
        num_threads: how many threads read; None for ``reading_threads(source)``.

    Yields:
        {"image": uint8[height, width, channel], "annotation": uint8[height, width], "index":
        int32}.

    Raises:
        ValueError: for a limit or a process index that is out of range.
        BadAnnotation: while iterating, for annotations of another size or with unknown labels.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; at least 1, or None for all pairs")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}; from 0 to {process_count - 1}")
    num_threads = num_threads or reading_threads(source)
    own = spread_indices(len(source), limit)[process_index::process_count]
    if len(own) == 0:
        return iter(())
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    # Grain leaves out examples that are None.
    return iter(grain.MapDataset.source(own).map(_LoadPair(source)).to_iter_dataset(read))


@dataclass(frozen=True)
class _LoadPair:
    """Decodes the pair of an index, in Grain's threads; None if it cannot be decoded."""

    source: PairSource

    def __call__(self, index: int) -> Batch | None:
        try:
            pair = decode_pair(*self.source.open([index])[0])
        except CorruptImage as error:
            log_corrupt(self.source.name(index), error.kind)
            return None
        return {**pair, "index": np.int32(index)}
