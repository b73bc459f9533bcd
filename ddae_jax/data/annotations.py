"""Annotation files, which hold the class of every pixel of an image, and the rule they follow."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ddae_jax.data.deep_colour import raw_mode
from ddae_jax.data.folder_scan import some_of
from ddae_jax.data.images import LazyImage, naming_corruption
from ddae_jax.data.opening import open_by_pillow

_END_OF_LABELS = 2**16  # files hold labels of up to 16 bits

IGNORED = 255
"""The label of decoded pixels that no loss and no score counts, whichever number files use."""

_MOST_NAMED = 5  # labels in an error message

# Pillow multiplies grey values of 2 and of 4 bits by these, so that the largest is white.
_SCALES = {"L;2": 85, "L;4": 17}

Labels = UInt8[np.ndarray, "height width"]


class BadAnnotation(ValueError):
    """An annotation that can be decoded, but has another size than its image or unknown labels."""


@dataclass(frozen=True)
class LabelRule:
    """The meaning of the numbers in annotation files.

    Args:
        num_classes: at most 255; classes are numbered from 0.
        ignore_label: the number in the files of pixels to be ignored; None if there is none.
        reduce_zero_label: whether the files number classes as ADE20K does, where 0 is ignored and
            1, 2, ... are the classes 0, 1, ...

    Raises:
        ValueError: if a number is out of range, or ``ignore_label`` is one of the classes.
    """

    num_classes: int
    ignore_label: int | None = IGNORED
    reduce_zero_label: bool = False

    def __post_init__(self):
        if not 1 <= self.num_classes <= IGNORED:
            raise ValueError(f"num_classes={self.num_classes}; from 1 to {IGNORED}")
        if self.ignore_label in self._stored_classes:
            raise ValueError(
                f"ignore_label={self.ignore_label} is one of the classes, {self._classes_in_words}"
                " in the files; a pixel either has a class or is ignored"
            )
        if self.ignore_label is not None and not 0 <= self.ignore_label < _END_OF_LABELS:
            raise ValueError(
                f"ignore_label={self.ignore_label}; a label lies in [0, {_END_OF_LABELS - 1}]"
            )

    def classes(self, stored: Int[np.ndarray, "height width"], name: str) -> Labels:
        """Returns the class of each pixel as uint8, ``IGNORED`` for pixels to be ignored.

        Args:
            stored: the numbers in the file.
            name: the file's name, for errors.

        Raises:
            BadAnnotation: if there are numbers that the rule does not know.
        """
        table, is_known = _class_table(self)
        if stored.min() < 0 or stored.max() >= _END_OF_LABELS:
            raise BadAnnotation(
                f"{name} has labels from {stored.min():,} to {stored.max():,}; a label lies in "
                f"[0, {_END_OF_LABELS - 1}]"
            )
        counts = np.bincount(stored.ravel(), minlength=len(table))
        unknown = np.flatnonzero(counts[: len(table)] * ~is_known)
        if len(counts) > len(table) or len(unknown):
            unknown = [*unknown.tolist(), *np.flatnonzero(counts[len(table) :]) + len(table)]
            stored = np.flatnonzero(counts).tolist()
            raise BadAnnotation(self._complaint(name, {n: counts[n] for n in unknown}, stored))
        return table[stored]

    @property
    def _stored_classes(self) -> range:
        first = int(self.reduce_zero_label)
        return range(first, first + self.num_classes)

    @property
    def _classes_in_words(self) -> str:
        return f"{self._stored_classes[0]} to {self._stored_classes[-1]}"

    def _complaint(self, name: str, pixels: dict[int, int], stored: list[int]) -> str:
        """Returns the error message for a file with unknown labels.

        Args:
            name: the file's name.
            pixels: the number of pixels of each unknown label.
            stored: all labels in the file.
        """
        counts = [f"{label} on {count:,} pixels" for label, count in pixels.items()]
        num_more = len(counts) - _MOST_NAMED
        more = f" and {num_more} more labels" if num_more > 0 else ""
        return (
            f"{name} has the label {', '.join(counts[:_MOST_NAMED])}{more}; the classes are "
            f"{self._classes_in_words} by num_classes={self.num_classes}, "
            f"reduce_zero_label={self.reduce_zero_label}, besides "
            f"ignore_label={self.ignore_label}{self._hint(list(pixels), stored)}"
        )

    def _hint(self, unknown: list[int], stored: list[int]) -> str:
        """Returns what unknown labels may mean, judged by all labels of their file.

        Classes count as drawn in grey levels, as in masks of 0 and 255, if there are no more
        levels than classes and none of them but 0 is a class. Ignoring one of these levels would
        ignore a class, so that the hint does not propose it.
        """
        hint = ""
        most = max(self.num_classes, 2)
        is_drawn = len(stored) <= most and not {*stored} & {*self._stored_classes} - {0}
        if is_drawn:
            levels = some_of(list(map(str, stored)))
            hint = (
                f"; if they are classes drawn as grey levels ({levels}), write the numbers of "
                f"classes instead, {self._classes_in_words}"
            )
        if len(unknown) == 1 and not (is_drawn and (most == 2 or len(stored) == most)):
            hint += f"; if {unknown[0]} marks pixels to be ignored, set ignore_label={unknown[0]}"
        if unknown == [self.num_classes] and not self.reduce_zero_label:
            hint += "; if 0 is no class, and classes begin at 1, set reduce_zero_label=True"
        return hint


@functools.lru_cache(maxsize=8)
def _class_table(rule: LabelRule) -> tuple[UInt8[np.ndarray, " label"], np.ndarray]:
    """Returns, for each number that may be in a file, its class and whether the rule knows it."""
    ignored = [] if rule.ignore_label is None else [rule.ignore_label]
    ignored += [0] if rule.reduce_zero_label else []
    stored = rule._stored_classes
    size = max(IGNORED, stored[-1], *ignored) + 1
    table, is_known = np.full(size, IGNORED, np.uint8), np.zeros(size, bool)
    table[stored] = np.arange(rule.num_classes)
    is_known[[*stored, *ignored]] = True
    return table, is_known


class LazyAnnotation:
    """A PNG file with one class number per pixel, decoded on demand.

    The numbers are grey values or indices of a palette. They are taken as they are stored: an
    orientation in the file's metadata is ignored.

    Args:
        read: returns the file's bytes.
        name: the file's name, for errors.
        rule: the meaning of the numbers.
    """

    def __init__(self, read: Callable[[], bytes], name: str, rule: LabelRule):
        self._read = read
        self._rule = rule
        self.name = name

    @functools.cached_property
    def _file(self) -> Image.Image:
        return open_by_pillow(self._read())

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, from the header. Raises ``CorruptImage``."""
        with naming_corruption(self.name, self._read):
            return self._file.size

    def labels(self) -> Labels:
        """Returns the class of each pixel as uint8, ``IGNORED`` for pixels to be ignored.

        Raises:
            CorruptImage: if the file cannot be read or decoded.
            BadAnnotation: if the rule does not know its labels, or it has no single number for
                each pixel.
        """
        with naming_corruption(self.name, self._read):
            scale = _SCALES.get(raw_mode(self._file), 1)
            stored = np.asarray(self._file)
            mode = self._file.mode
            del self._file  # frees the decoded pixels that Pillow keeps
        if stored.ndim == 3 and (stored == stored[..., :1]).all():
            stored = stored[..., 0]  # grey values, written as a colour image
        if stored.ndim != 2 or not (
            stored.dtype == bool or np.issubdtype(stored.dtype, np.integer)
        ):
            raise BadAnnotation(
                f"{self.name} is of mode {mode}; an annotation has one class number a pixel, grey "
                "(L) or with a palette (P)"
            )
        return self._rule.classes(stored.astype(np.int64, copy=False) // scale, self.name)


def check_same_size(image: LazyImage, annotation: LazyAnnotation) -> None:
    """Compares the size of an annotation with that of its image, by their headers alone.

    Raises:
        BadAnnotation: if they differ.
        CorruptImage: if one of the headers cannot be read.
    """
    width, height = image.size
    annotation_width, annotation_height = annotation.size
    if (width, height) != (annotation_width, annotation_height):
        hint = ""
        if image.is_turned:
            hint = ", turned upright as its Exif orientation says, which annotations are not"
        raise BadAnnotation(
            f"{annotation.name} is {annotation_height} x {annotation_width} pixels, its image "
            f"{height} x {width}{hint}"
        )
