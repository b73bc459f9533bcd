"""The labelled part of a source, whole or a small share of each class."""

import functools
import hashlib
import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ddae_jax.data.images import LazyImage
from ddae_jax.data.sources import Source

_log = logging.getLogger(__name__)


class Subset:
    """Some examples of a source, as a source.

    **Arguments:**

    - `source`: that they are taken from.
    - `indices`: which, in their order.
    """

    def __init__(self, source: Source, indices: Int[np.ndarray, " examples"]):
        self._source = source
        self._indices = np.asarray(indices, np.int64)
        self.channels = source.channels
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.has_labels_at_hand = source.has_labels_at_hand

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self._source.image_size

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._source[int(self._indices[index])]

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._indices).hexdigest()[:16]
        return f"{len(self)} examples, {digest}, of [{self._source.fingerprint}]"

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        return self._source.open(self._indices[np.asarray(indices, np.int64)])

    def labels(self) -> Int[np.ndarray, " examples"]:
        return self._source.labels()[self._indices]


def labelled(source: Source, share: float = 1.0, seed: int = 0) -> Source:
    """The examples of a source that have a label, or a share of those of each class.

    Of a class, `share` of its examples are drawn, rounded, but at least one; the same ones for the
    same seed. Where that is all of them, the source itself is returned; so it is, unseen, where all
    are asked for and labels lie in files as large as the images.

    Raises `ValueError` for a source without classes, and naming an example whose label is none of
    them.
    """
    if source.num_classes is None:
        raise ValueError(
            "these images have no labels; a folder needs one folder per class in each split, and a "
            "TFDS dataset a class label"
        )
    if share == 1 and not source.has_labels_at_hand:
        return source
    labels = source.labels()
    outside = np.flatnonzero(labels >= source.num_classes)
    if len(outside):
        raise ValueError(
            f"{source.name(int(outside[0]))} has label {labels[outside[0]]}; the "
            f"{source.num_classes} classes are numbered from 0"
        )
    is_labelled = labels >= 0
    if not is_labelled.all():
        _log.warning(
            "%d of %d images have no label, and are left out", (~is_labelled).sum(), len(labels)
        )
    elif share == 1:
        return source
    rng = np.random.default_rng(seed)
    chosen = []
    for label in range(source.num_classes):
        of_class = np.flatnonzero(labels == label)
        count = min(len(of_class), max(1, round(share * len(of_class))))
        chosen.append(rng.permutation(of_class)[:count])
    return Subset(source, np.sort(np.concatenate(chosen)))
