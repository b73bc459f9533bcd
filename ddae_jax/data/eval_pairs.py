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
    """Every pair once, whole and as it is, as evaluation sees it.

    Images differ in size, so that no two make a batch: each process gets every
    `process_count`-th pair, and some of them one fewer than others.

    **Arguments:**

    - `process_index`, `process_count`: which share of the pairs this process gets.
    - `limit`: at most so many pairs over all processes, spread evenly.

    Yields {"image": uint8[height, width, channel], "annotation": uint8[height, width], "index":
    int32}; what cannot be decoded is left out, and named in the log. Raises `ValueError` for
    arguments that contradict each other, and `BadAnnotation`.
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
    # Grain leaves out the examples that are None.
    return iter(grain.MapDataset.source(own).map(_LoadPair(source)).to_iter_dataset(read))


@dataclass(frozen=True)
class _LoadPair:
    """Index of a pair -> the pair; None if it cannot be decoded."""

    source: PairSource

    def __call__(self, index: int) -> Batch | None:
        try:
            pair = decode_pair(*self.source.open([index])[0])
        except CorruptImage as error:
            log_corrupt(self.source.name(index), error.kind)
            return None
        return {**pair, "index": np.int32(index)}
