"""Whole pairs of image and annotation: looked at before training, and evaluated one by one."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from ddae_jax.data.annotations import IGNORED, BadAnnotation, check_same_size
from ddae_jax.data.folder_scan import some_of
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.readable import check_any_decodes
from ddae_jax.data.segmentation import PairSource, decode_pair
from ddae_jax.data.source_base import spread_indices

_log = logging.getLogger(__name__)

Found = TypeVar("Found")

_SOME = 5
_TELL_EVERY_S = 10.0


@dataclass(frozen=True)
class AnnotationSummary:
    """What annotations were found to hold.

    Attributes:
        pixels: of each class, and last of those that are ignored.
        num_images: annotations that were decoded.
        turned: names of images that their Exif orientation turns, which annotations are not.
        of_class_0: names of annotations with no class but 0, beside pixels that are ignored.
        of_no_class: names of annotations of which all pixels are ignored.
    """

    pixels: Int[np.ndarray, " classes_and_ignored"]
    num_images: int
    turned: list[str]
    of_class_0: list[str]
    of_no_class: list[str]

    @property
    def ignored_share(self) -> float:
        """The share of all pixels that is ignored; 0 of no pixels."""
        return float(self.pixels[-1] / max(self.pixels.sum(), 1))

    @property
    def missing(self) -> list[int]:
        """The classes that no pixel has."""
        return np.flatnonzero(self.pixels[:-1] == 0).tolist()


def check_pairs(
    source: PairSource,
    *,
    num_decoded: int | None = None,
    num_threads: int = 8,
    what: str = "the data",
    must_differ: bool = False,
) -> AnnotationSummary:
    """Looks for annotations that are none of their images, before a run trains on them.

    The sizes of all pairs are compared, by their headers. Of `num_decoded` pairs, spread evenly, or
    of all, the labels are looked at too, and what they hold is logged: the share that is ignored,
    classes that never occur, annotations that may be masks of 0 and 255, images that are turned.
    What cannot be read or decoded is left to the loader, which counts it, unless nothing can. How
    far this is, is told every ten seconds. `what` names the source.

    Raises `BadAnnotation` that counts and names the annotations of another size than their images,
    or tells the first labels of no class; if no pixel has a class; and, where they `must_differ`,
    if all have the same one. Raises `NothingReadable` if none of those pairs can be decoded.
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
        chosen = spread_indices(len(source), num_decoded)
        look = functools.partial(_look_at_labels, source)
        told = _with_progress("looked at the labels of", pool, look, chosen)
        looked = [found for found in told if found is not None]
    check_any_decodes(lambda index: decode_pair(*source.open([index])[0]), chosen, what)
    summary = _summary_of(looked, source.num_classes)
    _tell(summary, what)
    _check_is_something(summary, what, must_differ)
    _tell_of_single_files(summary, what)
    return summary


def _summary_of(looked: Sequence["_Look"], num_classes: int) -> AnnotationSummary:
    """What annotations hold, from what each of them does."""
    pixels = np.zeros(num_classes + 1, np.int64)
    of_class_0, of_no_class = [], []
    for look in looked:
        pixels += look.pixels
        is_ignored = look.pixels[-1] > 0
        if not look.pixels[:-1].any():
            of_no_class.append(look.annotation)
        elif is_ignored and not look.pixels[1:-1].any():
            of_class_0.append(look.annotation)
    turned = [look.turned for look in looked if look.turned]
    return AnnotationSummary(pixels, len(looked), turned, of_class_0, of_no_class)


def _tell(summary: AnnotationSummary, what: str) -> None:
    """Logs what annotations hold, and warns of what may not be meant."""
    if not summary.num_images:
        return
    _log.info(
        "%s: %s annotations looked at: %d of %d classes occur, %.1f %% of the pixels are ignored",
        what,
        f"{summary.num_images:,}",
        len(summary.pixels) - 1 - len(summary.missing),
        len(summary.pixels) - 1,
        100 * summary.ignored_share,
    )
    if summary.missing:
        _log.warning(
            "%s: no pixel of %s annotations has one of %d of the %d classes (%s). Is "
            "data.num_classes too large, or data.reduce_zero_label not as the files are?",
            what,
            f"{summary.num_images:,}",
            len(summary.missing),
            len(summary.pixels) - 1,
            some_of(list(map(str, summary.missing))),
        )
    if summary.ignored_share > 0.5:
        _log.warning(
            "%s: %.1f %% of the pixels are ignored. data.ignore_label or data.reduce_zero_label, "
            "which ignores 0, may take a class for what it is not",
            what,
            100 * summary.ignored_share,
        )
    if summary.turned:
        _log.warning(
            "%s: %d images are turned upright, as their Exif orientation says, and annotations are "
            "taken as they are stored: they fit only if they were drawn on the upright image. Of "
            "them: %s",
            what,
            len(summary.turned),
            ", ".join(summary.turned[:_SOME]),
        )


def _tell_of_single_files(summary: AnnotationSummary, what: str) -> None:
    """Warns of annotations that differ from the others in a way that totals do not show."""
    is_binary = len(summary.pixels) == 3
    if summary.of_class_0 and (is_binary or len(summary.of_class_0) >= summary.num_images / 10):
        _log.warning(
            "%s: %d of %s annotations have no class but 0, beside pixels that are ignored. If they "
            "are masks of 0 and 255, write these as 0 and 1, since 255 is data.ignore_label by "
            "default: %s",
            what,
            len(summary.of_class_0),
            f"{summary.num_images:,}",
            some_of(summary.of_class_0),
        )
    if summary.of_no_class:
        _log.warning(
            "%s: all pixels of %d of %s annotations are ignored: %s",
            what,
            len(summary.of_no_class),
            f"{summary.num_images:,}",
            some_of(summary.of_no_class),
        )


def _check_is_something(summary: AnnotationSummary, what: str, must_differ: bool) -> None:
    """Raises `BadAnnotation` if no pixel has a class, or all have one where they must differ."""
    occurring = np.flatnonzero(summary.pixels[:-1])
    if not summary.num_images or len(occurring) > 1 or (len(occurring) and not must_differ):
        return
    ignored = f"{100 * summary.ignored_share:.1f} % of the pixels are ignored"
    if not len(occurring):
        raise BadAnnotation(
            f"{what}: no pixel of {summary.num_images:,} annotations has a class: {ignored}, by "
            "data.ignore_label and data.reduce_zero_label"
        )
    raise BadAnnotation(
        f"{what}: all pixels of {summary.num_images:,} annotations that count have the same class, "
        f"{occurring[0]}; {ignored}. Masks of 0 and 255, say, have to be written as 0 and 1, since "
        "255 is data.ignore_label by default"
    )


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


class _Look(NamedTuple):
    """What one annotation holds: pixels of each class and ignored ones.

    And its name, and that of its image if that is turned.
    """

    pixels: np.ndarray
    annotation: str
    turned: str | None


def _look_at_labels(source: PairSource, index: int) -> _Look | None:
    """None if the annotation, or the head of its image, cannot be decoded."""
    image, annotation = source.open([index])[0]
    try:
        counts = np.bincount(annotation.labels().ravel(), minlength=IGNORED + 1)
        turned = source.name(index) if image.is_turned else None
    except CorruptImage:
        return None
    pixels = np.append(counts[: source.num_classes], counts[IGNORED])
    return _Look(pixels, annotation.name, turned)
