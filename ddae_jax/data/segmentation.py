"""Sources of images with annotations: a folder in ADE20K's layout, or a TFDS dataset.

A source of pairs is a random-access, picklable sequence, as sources of labelled images are. It
hands out images and annotations that are not decoded yet.
"""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

from ddae_jax.data.annotations import LabelRule, Labels, LazyAnnotation, check_same_size
from ddae_jax.data.files import read_bytes
from ddae_jax.data.folder_scan import contents, scan, some_of
from ddae_jax.data.image_files import find_images
from ddae_jax.data.images import Decoding, LazyImage, Pixels
from ddae_jax.data.source_base import ExampleSource
from ddae_jax.data.sources import check_channels
from ddae_jax.data.splits import split_hint
from ddae_jax.data.tfds_source import TfdsSource
from ddae_jax.suggestions import did_you_mean

PAIR_SOURCE_KINDS = ("folder", "tfds")

_ANNOTATION_SUFFIX = ".png"
# Names of the annotation's feature in TFDS datasets.
_ANNOTATION_FEATURES = ("annotation", "segmentation_mask", "segmentation_label")
# TFDS datasets whose annotations number the instances of objects, not classes.
_OF_INSTANCES = ("scene_parse150",)


class Pair(TypedDict):
    """One decoded image with its annotation."""

    image: Pixels
    annotation: Labels


class PairSource(ExampleSource, Protocol):
    """Protocol of sources of images with the class of each of their pixels."""

    num_classes: int
    class_names: tuple[str, ...] | None

    def __getitem__(self, index: int) -> Pair:
        """Decodes one pair; pixels to be ignored have the label ``IGNORED``.

        Raises ``CorruptImage``, ``BadAnnotation``, and ``IndexError`` outside of 0..len-1.
        """

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, LazyAnnotation]]:
        """Opens images and annotations, and decodes nothing yet.

        One call for many is faster than many calls.
        """


def make_pair_source(
    source: str,
    *,
    num_classes: int,
    ignore_label: int | None = 255,
    reduce_zero_label: bool = False,
    class_names: Sequence[str] | None = None,
    name: str = "",
    data_dir: str = "",
    split: str = "training",
    channels: int = 3,
    max_pixels: int = Decoding.max_pixels,
    max_value: float = Decoding.max_value,
) -> PairSource:
    """Opens a source of images and their annotations.

    Args:
        source: "folder" (ADE20K's layout, see ``FolderPairs``) or "tfds".
        num_classes, ignore_label, reduce_zero_label: see ``LabelRule``.
        class_names: a name for each class, if they have names.
        name: the TFDS dataset; "folder" ignores it.
        data_dir: where TFDS datasets lie (default: TFDS's own place), or the folder.
        split: "training", "validation", ... as the source calls it.
        channels: 1 (grey) or 3 (RGB) of every decoded image. Any other number for a folder of
            arrays or of TIFF files with many bands.
        max_pixels, max_value: see ``ddae_jax.data.images.Decoding``.

    Raises:
        ValueError: for arguments that are unknown or contradict each other, and for images and
            annotations that do not belong to each other.
        FileNotFoundError: for data that is not there.
    """
    check_channels(channels, source)
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class_names, but num_classes={num_classes}")
    rule = LabelRule(num_classes, ignore_label, reduce_zero_label)
    names = None if class_names is None else tuple(class_names)
    decoding = Decoding(channels, max_pixels, max_value)
    match source:
        case "folder":
            return FolderPairs(data_dir, split, decoding, rule, names)
        case "tfds":
            return TfdsPairs(name, data_dir, split, decoding, rule, names)
    raise ValueError(
        f"source={source!r} is unknown{did_you_mean(source, PAIR_SOURCE_KINDS)}; "
        f"known are {', '.join(PAIR_SOURCE_KINDS)}"
    )


class _IndexedPairs:
    """Base class of sources of pairs, which decodes a single pair by ``open``."""

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of a source of {len(self)}")
        image, annotation = self.open([index])[0]
        return decode_pair(image, annotation)


def decode_pair(image: LazyImage, annotation: LazyAnnotation) -> Pair:
    """Decodes an image and its annotation, whole.

    Raises:
        CorruptImage: if one of them cannot be decoded.
        BadAnnotation: if they differ in size, or the annotation has unknown labels.
    """
    check_same_size(image, annotation)
    return {"image": image.pixels(), "annotation": annotation.labels()}


class FolderPairs(_IndexedPairs):
    """Pairs in ADE20K's layout: ``DIR/images/SPLIT/a.jpg``, ``DIR/annotations/SPLIT/a.png``.

    Images are those that ``ddae_jax.data.image_files.find_images`` finds, in the order of their
    sorted paths. Annotations are .png files with one class number per pixel. Sub-folders have to be
    the same in both. For arguments and errors see ``make_pair_source``.
    """

    image_size = None  # the sizes are not compared

    def __init__(
        self,
        data_dir: str,
        split: str,
        decoding: Decoding,
        rule: LabelRule,
        class_names: tuple[str, ...] | None,
    ):
        self._images, self._annotations = _pair_folders(data_dir, split)
        # Links are kept: names of one file may have annotations of their own.
        paths, _, _, self._open_image = find_images(self._images, decoding, keeps_links=True)
        self._paths = paths
        self._labels = _paired(paths, self._images, self._annotations)
        self._rule = rule
        self._decoding = decoding
        self.channels = decoding.channels
        self.num_classes = rule.num_classes
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._paths)

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"\0".join(self._paths))
        return f"{digest.hexdigest()[:16]}, {len(self)} annotated examples"

    def name(self, index: int) -> str:
        return os.fsdecode(self._image_path(index))

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, LazyAnnotation]]:
        return [
            (self._open_image(self._image_path(index)), self._annotation(index))
            for index in indices
        ]

    def _annotation(self, index: int) -> LazyAnnotation:
        path = os.path.join(os.fsencode(self._annotations), self._labels[index])
        read = functools.partial(read_bytes, path, self._decoding.max_bytes)
        return LazyAnnotation(read, os.fsdecode(path), self._rule)

    def _image_path(self, index: int) -> bytes:
        return os.path.join(os.fsencode(self._images), self._paths[index])


def _pair_folders(data_dir: str, split: str) -> tuple[Path, Path]:
    """Returns the folders of a split's images and annotations.

    Raises ``FileNotFoundError``, which says what is expected, if one is missing.
    """
    if not data_dir:
        raise ValueError("source='folder' needs data_dir, the folder of images and annotations")
    root = Path(data_dir).expanduser()
    above = root / "images", root / "annotations"
    folders = above[0] / split, above[1] / split
    for folder in folders:
        if not folder.is_dir():
            hint = split_hint(split, above) if all(map(Path.is_dir, above)) else ""
            there = next(parent for parent in folder.absolute().parents if parent.is_dir())
            raise FileNotFoundError(
                f"no folder {folder}; expected images in {folders[0]} and annotations in "
                f"{folders[1]}. {there} contains {contents(there)}{hint}"
            )
    return folders


def _paired(paths: list[bytes], images: Path, annotations: Path) -> list[bytes]:
    """Returns the path of each image's annotation, relative to the folder of annotations.

    An image and its annotation have the same path but for the suffix.

    Args:
        paths: of the images, relative to their folder.
        images, annotations: the two folders.

    Raises:
        ValueError: unless each image has one annotation and each annotation one image. The message
            counts and names the others.
    """
    num_images = Counter(_stem(path) for path in paths)
    annotation_paths, _, _ = scan(annotations, {_ANNOTATION_SUFFIX}, keeps_links=True)
    by_stem = {_stem(path): path for path in annotation_paths}
    unannotated = [path for path in paths if _stem(path) not in by_stem]
    without_image = [by_stem[stem] for stem in sorted(by_stem.keys() - num_images.keys())]
    sharing = [path for path in paths if num_images[_stem(path)] > 1]
    superfluous = [path for path in annotation_paths if by_stem[_stem(path)] != path]
    if unannotated:
        raise ValueError(
            f"{len(unannotated)} of {len(paths)} images have no annotation: {_some(unannotated)}. "
            f"Expected a {_ANNOTATION_SUFFIX} file of the same name in {annotations}"
        )
    if without_image:
        raise ValueError(
            f"{len(without_image)} of {len(by_stem)} annotations have no image: "
            f"{_some(without_image)}. Expected an image of the same name in {images}"
        )
    if sharing:
        raise ValueError(
            f"{len(sharing)} images share an annotation: {_some(sharing)}; remove some"
        )
    if superfluous:
        raise ValueError(
            f"{len(superfluous)} images have another annotation too: {_some(superfluous)}; remove "
            "some"
        )
    return [by_stem[_stem(path)] for path in paths]


def _stem(path: bytes) -> bytes:
    """Returns a path without its suffix."""
    return os.path.splitext(path)[0]


def _some(paths: Iterable[bytes]) -> str:
    """Joins the first few paths, for a message."""
    return some_of([os.fsdecode(path) for path in paths])


class TfdsPairs(_IndexedPairs, TfdsSource):
    """Pairs of a TFDS dataset in ArrayRecord files, read without TensorFlow.

    Annotations are PNG files under the feature "annotation", "segmentation_mask" or
    "segmentation_label". TFDS's own ``scene_parse150`` is refused: it holds ADE20K's *instances*,
    in two colour channels, whereas the annotations of the benchmark come as a folder. For arguments
    and errors see ``make_pair_source``.
    """

    def __init__(
        self,
        name: str,
        data_dir: str,
        split: str,
        decoding: Decoding,
        rule: LabelRule,
        class_names: tuple[str, ...] | None,
    ):
        if name.partition(":")[0] in _OF_INSTANCES:
            raise ValueError(
                f"data.name={name!r}: the annotations of this TFDS dataset number instances of "
                "objects, in two colour channels, and not ADE20K's classes. Bring the benchmark's "
                "own, ADEChallengeData2016, in its folders, with data.source='folder' and "
                "data.data_dir=FOLDER"
            )
        super().__init__(name, data_dir, split, decoding)
        features = [feature for feature in _ANNOTATION_FEATURES if feature in self.feature_names]
        if not features:
            raise ValueError(
                f"TFDS dataset {name!r} has no {' or '.join(_ANNOTATION_FEATURES)}, only "
                f"{', '.join(self.feature_names)}"
            )
        self._annotation_feature = features[0]
        self._rule = rule
        self.num_classes = rule.num_classes
        self.class_names = class_names

    def _parse(self, index: int, feature: Mapping[str, Any]) -> tuple[LazyImage, LazyAnnotation]:
        image, _ = super()._parse(index, feature)
        encoded = feature[self._annotation_feature].bytes_list.value[0]
        annotation = LazyAnnotation(lambda: encoded, self.name(index), self._rule)
        return image, annotation
