"""Whole pairs of image and annotation: looked at before training, and evaluated one by one."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import grain
import numpy as np
from jaxtyping import Int

from ddae_jax.data.annotations import BadAnnotation, check_same_size
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.pipeline import Batch, log_corrupt
from ddae_jax.data.segmentation import PairSource, decode_pair
from ddae_jax.data.sources import reading_threads

_log = logging.getLogger(__name__)

Found = TypeVar("Found")

_SOME = 5
_TELL_EVERY_S = 10.0


def check_pairs(
    source: PairSource, *, num_decoded: int | None = None, num_threads: int = 8
) -> None:
    """Looks for annotations that are none of their images, before a run trains on them.

    The sizes of all pairs are compared, by their headers. Of `num_decoded` pairs, spread evenly, or
    of all, the labels are looked at too. What cannot be read or decoded is left to the loader,
    which counts it. How far this is, is told every ten seconds.

    Raises `BadAnnotation` that counts and names the annotations of another size than their images,
    or tells the first labels of no class.
    """

    def complaint(index: int) -> str | None:
        try:
            check_same_size(*source.open([index])[0])
        except BadAnnotation as error:
            return str(error)
        except CorruptImage:
            return None

    with ThreadPoolExecutor(num_threads) as pool:
        told = _with_progress("compared the sizes of", pool, complaint, range(len(source)))
        bad = [found for found in told if found]
        if bad:
            raise BadAnnotation(
                f"{len(bad)} of {len(source)} annotations are not of their image's size: "
                f"{'; '.join(bad[:_SOME])}{'; ...' if len(bad) > _SOME else ''}"
            )
        count = len(source) if num_decoded is None else num_decoded
        check = functools.partial(_check_labels, source)
        for _ in _with_progress("looked at the labels of", pool, check, _spread(source, count)):
            pass


def _with_progress(
    done: str, pool: ThreadPoolExecutor, look: Callable[[int], Found], indices: Sequence[int]
) -> Iterator[Found]:
    """What is found at each index, in order; what takes long is told."""
    told = time.monotonic()
    for number, found in enumerate(pool.map(look, indices), start=1):
        yield found
        if time.monotonic() > told + _TELL_EVERY_S:
            told = time.monotonic()
            _log.info("%s %s of %s annotations", done, f"{number:,}", f"{len(indices):,}")


def _check_labels(source: PairSource, index: int) -> None:
    (_, annotation) = source.open([index])[0]
    try:
        annotation.labels()
    except CorruptImage:
        return


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
    own = _spread(source, limit or len(source))[process_index::process_count]
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


def _spread(source: PairSource, count: int) -> Int[np.ndarray, " chosen"]:
    """At most so many indices, spread evenly."""
    count = min(len(source), count)
    return np.arange(count) * len(source) // max(count, 1)
