"""What every source of examples offers: two protocols, and the base class of labelled sources.

A source is a random-access, picklable sequence of images with labels. It hands out images that are
not decoded yet (``Source.open``), so that whoever needs a small crop of a big JPEG can decode it
small.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, Int32

from ddae_jax.data.images import Example, LazyImage


class ExampleSource(Protocol):
    """A random-access, picklable sequence of examples; it travels to worker processes."""

    channels: int

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) if all images share one size, else None."""

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """What tells two sources apart: which examples there are, and in which order.

        Not where they lie, nor what is in each: a folder that was moved is the same.
        """

    def name(self, index: int) -> str:
        """What a person would look for: a file name, or "cifar10/train[17]"."""

    def open(self, indices: Sequence[int]) -> list[Any]:
        """Examples, not decoded yet. One call for many is faster than many."""


class Source(ExampleSource, Protocol):
    """Images with labels."""

    num_classes: int | None
    class_names: tuple[str, ...] | None
    has_labels_at_hand: bool  # or must all examples be read for them?

    def __getitem__(self, index: int) -> Example:
        """Decodes one example. Raises `CorruptImage`, and `IndexError` outside of 0..len-1."""

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        """Images, not decoded yet, with their labels. One call for many is faster than many."""

    def labels(self) -> Int32[np.ndarray, " example"]:
        """The label of every example, -1 where there is none. Decodes no image."""


class IndexedSource:
    """What all sources share: one decoded example through `open`."""

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a source of {len(self)}")
        image, label = self.open([index])[0]
        return {"image": image.pixels(), "label": np.int32(label)}


def spread_indices(num_examples: int, limit: int | None) -> Int[np.ndarray, " chosen"]:
    """Returns the indices of at most ``limit`` of so many examples, spread evenly over all.

    A folder is sorted by class, so that the first ones would be of one class. None is no limit.
    """
    count = num_examples if limit is None else min(num_examples, limit)
    return np.arange(count) * num_examples // max(count, 1)
