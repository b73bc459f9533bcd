"""Sources made of other sources by their labels: labelled subsets, checked labels, other classes.

The error ``BadLabel`` is for labels that are none of the classes.
"""

import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ddae_jax.data.folder_scan import some_of
from ddae_jax.data.images import NO_LABEL, Example, LazyImage
from ddae_jax.data.source_base import Source
from ddae_jax.suggestions import did_you_mean

_log = logging.getLogger(__name__)


class BadLabel(ValueError):
    """An image whose label is none of the classes. The message names it and its label."""


class _WrappedSource:
    """Base class of sources that wrap another source and share its metadata."""

    def __init__(self, source: Source):
        self._source = source
        self.channels = source.channels
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.has_labels_at_hand = source.has_labels_at_hand

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self._source.image_size


class Subset(_WrappedSource):
    """Some examples of a source, as a source.

    Args:
        source: the source that they are taken from.
        indices: of the examples, in the order in which they are to be.
    """

    def __init__(self, source: Source, indices: Int[np.ndarray, " examples"]):
        super().__init__(source)
        self._indices = np.asarray(indices, np.int64)

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


class _ValidatedWhenRead(_WrappedSource):
    """A source whose labels are checked when they are read.

    Args:
        source: the wrapped source.
        least: the smallest label that is no error: 0, or -1 if images may have no label.

    Raises:
        BadLabel: when it is read, for labels below ``least`` or of no class.
    """

    def __init__(self, source: Source, least: int):
        super().__init__(source)
        self._least = least

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        self._check([index], [example["label"]])
        return example

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    def name(self, index: int) -> str:
        return self._source.name(index)

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        opened = self._source.open(indices)
        self._check(indices, [label for _, label in opened])
        return opened

    def labels(self) -> Int[np.ndarray, " examples"]:
        labels = self._source.labels()
        self._check(range(len(labels)), labels)
        return labels

    def _check(self, indices: Sequence[int], labels: Any) -> None:
        _check_labels(self._source, indices, np.asarray(labels), self._least)


class _Renumbered(_WrappedSource):
    """A source whose labels are the indices of its classes in another list of class names."""

    def __init__(self, source: Source, class_names: tuple[str, ...]):
        super().__init__(source)
        self.class_names = class_names
        self.num_classes = len(class_names)
        self._numbers = np.array([class_names.index(name) for name in source.class_names], np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example | {"label": np.int32(self._number(int(example["label"])))}

    @property
    def fingerprint(self) -> str:
        return f"{self._source.fingerprint}, of {self.num_classes} classes"

    def name(self, index: int) -> str:
        return self._source.name(index)

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        return [(image, self._number(label)) for image, label in self._source.open(indices)]

    def labels(self) -> Int[np.ndarray, " examples"]:
        labels = self._source.labels()
        return np.where(labels < 0, labels, self._numbers[np.maximum(labels, 0)])

    def _number(self, label: int) -> int:
        return int(self._numbers[label]) if label >= 0 else label


def with_classes(
    source: Source, class_names: tuple[str, ...] | None, num_classes: int, *, what: str, of: str
) -> Source:
    """Returns the source with its labels numbered as given classes, matched by their names.

    Warns of classes that the source has no images of.

    Args:
        source: the labelled images.
        class_names: the given classes in order. If they, or those of the source, have no names,
            only the numbers of classes are compared.
        num_classes: the number of given classes.
        what: the name of the source in messages.
        of: the owner of the given classes in messages.

    Raises:
        ValueError: if the source has classes that are not among the given ones, which are named; if
            it has no classes; and if numbers of classes differ where there are no names.
    """
    _check_has_classes(source)
    ours = source.class_names
    if ours is None or class_names is None:
        if source.num_classes != num_classes:
            raise ValueError(f"{what} has {source.num_classes} classes, and {of} {num_classes}")
        return source
    unknown = [name for name in ours if name not in set(class_names)]
    if unknown:
        raise ValueError(
            f"{what} has classes that {of} does not have: {some_of(unknown)}"
            f"{did_you_mean(unknown[0], class_names)}. Labels are matched by the names of classes"
        )
    missing = [name for name in class_names if name not in set(ours)]
    if missing:
        _log.warning(
            "%s has no images of %d of the %d classes of %s: %s",
            what,
            len(missing),
            num_classes,
            of,
            some_of(missing),
        )
    return source if ours == class_names else _Renumbered(source, class_names)


def validated(source: Source) -> Source:
    """Returns the source with its labels checked: each is one of its classes, or -1 for none.

    Labels that are at hand are checked now, and the source itself is returned. Others are checked
    when they are read.

    Raises:
        ValueError: for a source without classes.
        BadLabel: now or when the source is read, for a label that is none of the classes.
    """
    _check_has_classes(source)
    if not source.has_labels_at_hand:
        return _ValidatedWhenRead(source, least=NO_LABEL)
    _check_labels(source, range(len(source)), source.labels())
    return source


def labelled_subset(source: Source, share: float = 1.0, seed: int = 0) -> Source:
    """Returns the labelled examples of a source, or a share of those of each class.

    If these are all examples, the source itself is returned. If all are asked for and labels are
    not at hand, none are left out, but labels are checked when they are read.

    Args:
        source: the images, some of which may have no label.
        share: the share of the examples of each class, rounded, but at least one example.
        seed: decides which ones are drawn.

    Raises:
        ValueError: for a source without classes.
        BadLabel: now or when the source is read, for a label that is none of the classes. When it
            is read, also for an example without a label.
    """
    _check_has_classes(source)
    if share == 1 and not source.has_labels_at_hand:
        return _ValidatedWhenRead(source, least=0)
    labels = source.labels()
    _check_labels(source, range(len(labels)), labels)
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


def _check_has_classes(source: Source) -> None:
    """Raises ``ValueError`` for a source without classes."""
    if source.num_classes is None:
        raise ValueError(
            "these images have no labels; a folder needs one folder per class in each split, and a "
            "TFDS dataset a class label"
        )


def _check_labels(
    source: Source,
    indices: Sequence[int],
    labels: Int[np.ndarray, " examples"],
    least: int = NO_LABEL,
) -> None:
    """Raises ``BadLabel``, naming the first example whose label is below ``least`` or no class."""
    outside = np.flatnonzero((labels < least) | (labels >= source.num_classes))
    if not len(outside):
        return
    index, label = int(indices[outside[0]]), int(labels[outside[0]])
    classes = f"the {source.num_classes} classes are numbered from 0"
    if label == NO_LABEL:
        hint = "a data.labelled_share below 1, such as 0.9999, leaves such images out"
    else:
        hint = f"and {NO_LABEL} is of images that nobody labelled"
    raise BadLabel(f"{source.name(index)} has label {label}; {classes}, {hint}")
