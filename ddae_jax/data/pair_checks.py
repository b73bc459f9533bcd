"""Checks of all pairs of image and annotation before a run trains on them."""

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

_Result = TypeVar("_Result")

_MOST_NAMED = 5  # files in a message
_LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class AnnotationSummary:
    """Pixel counts of the annotations that were decoded, and the names of those to look at.

    Attributes:
        pixels: the number of pixels of each class, and last that of ignored pixels.
        num_images: how many annotations were decoded.
        turned: names of images that their Exif orientation turns; annotations are not turned.
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
        """The share of all pixels that is ignored; 0 if there are no pixels."""
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
    """Checks that annotations fit their images, and logs what they hold.

    The sizes of all pairs are compared, by their headers alone. Of some pairs the labels are
    decoded too, and the log tells which share of the pixels is ignored, which classes never occur,
    which annotations may be masks of 0 and 255, and which images are turned. Progress is logged
    every ten seconds. Single files that cannot be read or decoded are left to the loader, which
    counts them.

    Args:
        source: the pairs.
        num_decoded: how many pairs are decoded, spread evenly; None decodes all.
        num_threads: how many threads read.
        what: the name of the source in messages.
        must_differ: whether pixels of a single class are an error.

    Returns:
        The pixel counts of the decoded annotations.

    Raises:
        BadAnnotation: if annotations have another size than their images, which are counted and
            named; if one has unknown labels; if no pixel has a class; and, with ``must_differ``, if
            all have the same one.
        NothingReadable: if none of the pairs to be decoded can be.
    """

    def size_problem(index: int) -> str | None:
        try:
            check_same_size(*source.open([index])[0])
        except BadAnnotation as error:
            return str(error)
        except CorruptImage:
            return None

    with ThreadPoolExecutor(num_threads) as pool:
        results = _with_progress("compared the sizes of", pool, size_problem, range(len(source)))
        problems = [problem for problem in results if problem]
        if problems:
            raise BadAnnotation(
                f"{len(problems)} of {len(source)} annotations are not of their image's size: "
                f"{'; '.join(problems[:_MOST_NAMED])}"
                f"{'; ...' if len(problems) > _MOST_NAMED else ''}"
            )
        chosen = spread_indices(len(source), num_decoded)
        count_labels = functools.partial(_count_labels, source)
        results = _with_progress("looked at the labels of", pool, count_labels, chosen)
        counts = [count for count in results if count is not None]
    check_any_decodes(lambda index: decode_pair(*source.open([index])[0]), chosen, what)
    summary = _summarized(counts, source.num_classes)
    _log_summary(summary, what)
    _check_classes(summary, what, must_differ)
    _warn_of_single_files(summary, what)
    return summary


def _summarized(counts: Sequence["_LabelCounts"], num_classes: int) -> AnnotationSummary:
    """Sums up the counts of single annotations."""
    pixels = np.zeros(num_classes + 1, np.int64)
    of_class_0, of_no_class = [], []
    for count in counts:
        pixels += count.pixels
        has_ignored = count.pixels[-1] > 0
        if not count.pixels[:-1].any():
            of_no_class.append(count.annotation)
        elif has_ignored and not count.pixels[1:-1].any():
            of_class_0.append(count.annotation)
    turned = [count.turned_image for count in counts if count.turned_image]
    return AnnotationSummary(pixels, len(counts), turned, of_class_0, of_no_class)


def _log_summary(summary: AnnotationSummary, what: str) -> None:
    """Logs what the annotations hold, and warns of what may be a mistake."""
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
            "data.num_classes too large, or does data.reduce_zero_label not fit the files?",
            what,
            f"{summary.num_images:,}",
            len(summary.missing),
            len(summary.pixels) - 1,
            some_of(list(map(str, summary.missing))),
        )
    if summary.ignored_share > 0.5:
        _log.warning(
            "%s: %.1f %% of the pixels are ignored. data.ignore_label or data.reduce_zero_label, "
            "which ignores 0, may ignore a class by mistake",
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
            ", ".join(summary.turned[:_MOST_NAMED]),
        )


def _warn_of_single_files(summary: AnnotationSummary, what: str) -> None:
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


def _check_classes(summary: AnnotationSummary, what: str, must_differ: bool) -> None:
    """Raises ``BadAnnotation`` if no pixel has a class, or all have one where they must differ."""
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
    done: str, pool: ThreadPoolExecutor, call: Callable[[int], _Result], indices: Sequence[int]
) -> Iterator[_Result]:
    """Yields the results of ``call`` for each index, in order, and logs the progress.

    ``done`` begins the message, such as "compared the sizes of".
    """
    last_logged = time.monotonic()
    for number, result in enumerate(pool.map(call, indices), start=1):
        yield result
        if time.monotonic() > last_logged + _LOG_EVERY_S:
            last_logged = time.monotonic()
            _log.info("%s %s of %s annotations", done, f"{number:,}", f"{len(indices):,}")


class _LabelCounts(NamedTuple):
    """The pixel counts of one annotation.

    Attributes:
        pixels: the number of pixels of each class, and last that of ignored pixels.
        annotation: the annotation's name.
        turned_image: the name of its image, if Exif turns that.
    """

    pixels: np.ndarray
    annotation: str
    turned_image: str | None


def _count_labels(source: PairSource, index: int) -> _LabelCounts | None:
    """Counts the labels of an annotation.

    Returns None if the annotation, or the header of its image, cannot be decoded.
    """
    image, annotation = source.open([index])[0]
    try:
        counts = np.bincount(annotation.labels().ravel(), minlength=IGNORED + 1)
        turned_image = source.name(index) if image.is_turned else None
    except CorruptImage:
        return None
    pixels = np.append(counts[: source.num_classes], counts[IGNORED])
    return _LabelCounts(pixels, annotation.name, turned_image)
