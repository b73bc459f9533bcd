"""Sources whose examples are told apart by their labels, and the comparison of batches of them."""

import numpy as np

from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.images import CorruptImage


def numbered_source(count: int, corrupt: tuple[int, ...] = ()) -> ArraySource:
    """Makes a source whose example i has label i, and images in which no two crops are alike."""
    images = np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), np.uint8)
    errors = {
        index: CorruptImage(f"numbers[{index}] cannot be decoded: made so", "truncated")
        for index in corrupt
    }
    labels = np.arange(count, dtype=np.int32)
    return ArraySource(images, labels, title="numbers", corrupt=errors)


def assert_same(batches: list[dict], others: list[dict]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])
