"""Batches for evaluation: every example once, in order, cut as evaluation shows it."""

from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from ddae_jax.data.batches import Batch, local_batch_size, log_corrupt, read_options
from ddae_jax.data.images import NO_LABEL, CorruptImage
from ddae_jax.data.source_base import Source, spread_indices
from ddae_jax.data.threads import reading_threads
from ddae_jax.data.view import USUAL_VIEW, View


def eval_batches(
    source: Source,
    image_size: tuple[int, int],
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    num_threads: int | None = None,
    view: View = USUAL_VIEW,
) -> Iterator[Batch]:
    """Yields batches of every example once, in order over all processes.

    Every process yields the same number of batches. The last batch is padded with ``valid=False``
    and with index and label -1. An image that cannot be decoded is black, with ``valid=False`` and
    its own index.

    Args:
        source: the labelled images.
        image_size: (height, width) that the model sees, pixels.
        batch_size: global; each process gets its part of every global batch.
        process_index, process_count: which part this process gets.
        limit: at most so many examples, spread evenly; None for all.
        num_threads: how many threads read; None for ``reading_threads(source)``.
        view: how images are cut to ``image_size``.

    Yields:
        {"image": uint8[b, height, width, channel], "label": int32[b], "index": int32[b], "valid":
        bool[b]}, with b = batch_size / process_count.

    Raises:
        ValueError: for arguments that contradict each other.
    """
    local_size = local_batch_size(batch_size, process_index, process_count)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; at least 1, or None for all examples")
    num_threads = num_threads or reading_threads(source)
    indices = spread_indices(len(source), limit).astype(np.int32)
    load = _LoadEvalBatch(source, image_size, indices, local_size, view)
    num_batches = -(-len(indices) // batch_size) * process_count
    dataset = (
        grain.MapDataset.range(num_batches)
        .map(load)
        .slice(slice(process_index, None, process_count))
        .to_iter_dataset(read_options(num_threads, num_threads))
    )
    return iter(dataset)


@dataclass(frozen=True)
class _LoadEvalBatch:
    """Makes the local batch of a number, counted over the batches of all processes."""

    source: Source
    image_size: tuple[int, int]
    indices: Int32[np.ndarray, " example"]
    batch_size: int
    view: View

    def __call__(self, number: int) -> Batch:
        indices = self.indices[number * self.batch_size :][: self.batch_size]
        shape = (self.batch_size, *self.image_size, self.source.channels)
        images: UInt8[np.ndarray, "batch height width channel"] = np.zeros(shape, np.uint8)
        labels: Int32[np.ndarray, " batch"] = np.full(self.batch_size, NO_LABEL, np.int32)
        valid: Bool[np.ndarray, " batch"] = np.zeros(self.batch_size, bool)
        for row, (image, label) in enumerate(self.source.open(indices)):
            labels[row] = label
            try:
                images[row] = self.view.show(image, self.image_size)
                valid[row] = True
            except CorruptImage as error:
                log_corrupt(self.source.name(indices[row]), error.kind)
        padding = (0, self.batch_size - len(indices))
        padded = np.pad(indices, padding, constant_values=-1)
        return {"image": images, "label": labels, "index": padded, "valid": valid}
