"""The protocols of sources of examples, and the base class of labelled ones.

A source is a random-access, picklable sequence of examples, such as images with labels. It hands
out images that are not decoded yet (``Source.open``): a small crop of a large JPEG can then be
decoded at a fraction of its size.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, Int32

from ddae_jax.data.images import Example, LazyImage


class ExampleSource(Protocol):
    """Protocol of sources: random-access sequences of examples, pickled to worker processes."""

    channels: int

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) if all images share one size, else None."""

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """A text that differs for sources with other examples or another order of them.

        It depends neither on where they lie nor on their content: that of a moved folder is the
        same.
        """

    def name(self, index: int) -> str:
        """Returns the name by which a person finds an example: a path, or "cifar10/train[17]"."""

    def open(self, indices: Sequence[int]) -> list[Any]:
        """Opens examples, and decodes nothing yet. One call for many is faster than many calls."""


class Source(ExampleSource, Protocol):
    """Protocol of sources of labelled images."""

    num_classes: int | None
    class_names: tuple[str, ...] | None
    has_labels_at_hand: bool  # or must all examples be read for them?

    def __getitem__(self, index: int) -> Example:
        """Decodes one example. Raises ``CorruptImage``, and ``IndexError`` outside of 0..len-1."""

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        """Opens images, not decoded yet, and reads their labels.

        One call for many is faster than many calls.
        """

    def labels(self) -> Int32[np.ndarray, " example"]:
        """Returns the label of every example, -1 where there is none. Decodes no image."""


class IndexedSource:
    """Base class of labelled sources, which decodes a single example by ``open``."""

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a source of {len(self)}")
        image, label = self.open([index])[0]
        return {"image": image.pixels(), "label": np.int32(label)}


def spread_indices(num_examples: int, limit: int | None) -> Int[np.ndarray, " chosen"]:
    """Returns indices spread evenly over ``num_examples``: at most ``limit``, or all if None.

    The first ones of a folder, which is sorted by class, would be of one class.
    """
    count = num_examples if limit is None else min(num_examples, limit)
    return np.arange(count) * num_examples // max(count, 1)
