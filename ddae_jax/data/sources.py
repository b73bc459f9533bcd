"""Where images come from: scikit-learn's digits, a TFDS dataset, or a folder of image files.

A source is a random-access, picklable sequence of images with labels. It hands out images that are
not decoded yet (`Source.open`): whoever needs a small crop of a big JPEG can decode it small.
"""

import contextlib
import functools
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int32, UInt8

from ddae_jax.data.disks import patiently
from ddae_jax.data.image_files import find_images
from ddae_jax.data.images import (
    NO_LABEL,
    CorruptImage,
    DecodedImage,
    Decoding,
    EncodedImage,
    Example,
    KnownCorruptImage,
    LazyImage,
)
from ddae_jax.data.splits import split_folder, warn_of_parts
from ddae_jax.suggestions import did_you_mean

_log = logging.getLogger(__name__)

SOURCE_KINDS = ("digits", "tfds", "folder")

# How many files a folder looks at before it says that all its images share one size.
_SIZE_SAMPLE = 1000
_TELL_EVERY_S = 10.0
# Pixels a side, up to which one thread reads faster than several; see benchmarks/augmentation.py.
_SMALL_SIDE = 64


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


def make_source(
    source: str,
    *,
    name: str = "",
    data_dir: str = "",
    split: str = "train",
    channels: int = 3,
    max_pixels: int = Decoding.max_pixels,
    max_value: float = Decoding.max_value,
) -> Source:
    """Opens a source of images.

    **Arguments:**

    - `source`: "digits" (scikit-learn's handwritten digits, embedded), "tfds" or "folder".
    - `name`: the TFDS dataset, such as "cifar10"; other kinds ignore it.
    - `data_dir`: where TFDS datasets lie (default: TFDS's own), or the folder of images.
    - `split`: "train", "test", ...; for TFDS also a slice such as "train[:80%]".
    - `channels`: 1 (grey) or 3 (RGB) of every decoded image; of a folder of arrays, of TIFF with
      many bands, any number, see `ddae_jax.data.array_images`.
    - `max_pixels`, `max_value`: see `ddae_jax.data.images.Decoding`.

    Raises `ValueError` for an unknown source, name or split, for other `channels`, and for a folder
    without images; `FileNotFoundError` for data that is not there and cannot be downloaded.
    """
    check_channels(channels, source)
    decoding = Decoding(channels, max_pixels, max_value)
    match source:
        case "digits":
            return digits_source(split, channels)
        case "tfds":
            return TfdsSource(name, data_dir, split, decoding)
        case "folder":
            return FolderSource(data_dir, split, decoding)
    raise ValueError(
        f"source={source!r} is unknown{did_you_mean(source, SOURCE_KINDS)}; "
        f"known are {', '.join(SOURCE_KINDS)}"
    )


def check_channels(channels: int, source: str) -> None:
    """Raises `ValueError` if a kind of source has no images of so many channels."""
    if channels < 1 or (channels not in (1, 3) and source != "folder"):
        raise ValueError(
            f"channels={channels}; images are decoded to 1 (grey) or 3 (RGB) channels, and those "
            "of other channels are read from files of arrays, by source='folder'"
        )


class _IndexedSource:
    """What all sources share: one decoded example through `open`."""

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of a source of {len(self)}")
        image, label = self.open([index])[0]
        return {"image": image.pixels(), "label": np.int32(label)}


class ArraySource(_IndexedSource):
    """Images that lie in memory.

    **Arguments:**

    - `images`: uint8[example, height, width, channel].
    - `labels`: int32[example], -1 where there is none.
    - `title`: what `name` begins with: "digits/train" names "digits/train[17]".
    - `corrupt`: index -> error, for examples that could not be decoded.
    - `decoded_from`: the source that these images were decoded from: examples have its names.
    """

    has_labels_at_hand = True

    def __init__(
        self,
        images: UInt8[np.ndarray, "example height width channel"],
        labels: Int32[np.ndarray, " example"],
        *,
        title: str = "array",
        class_names: tuple[str, ...] | None = None,
        corrupt: Mapping[int, CorruptImage] | None = None,
        decoded_from: Source | None = None,
    ):
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images, but {len(labels)} labels")
        self._images = images
        self._labels = labels
        self._title = title
        self._corrupt = corrupt or {}
        self._decoded_from = decoded_from
        self.channels = images.shape[-1]
        self.image_size = images.shape[1:3]
        self.class_names = class_names
        self.num_classes = None if class_names is None else len(class_names)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str:
        if self._decoded_from is not None:
            return self._decoded_from.fingerprint
        return f"{self._title}, {len(self)} examples"

    def name(self, index: int) -> str:
        if self._decoded_from is not None:
            return self._decoded_from.name(index)
        return f"{self._title}[{index}]"

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        return [(self._image(index), int(self._labels[index])) for index in indices]

    def labels(self) -> Int32[np.ndarray, " example"]:
        return self._labels

    def _image(self, index: int) -> LazyImage:
        if index in self._corrupt:
            return KnownCorruptImage(self._corrupt[index])
        return DecodedImage(self._images[index])


def reading_threads(source: ExampleSource) -> int:
    """How many threads read a source fastest: 1 where all images are small, else 4.

    Decoding a small image is mostly Python, which threads only slow down by waiting for each other.
    """
    is_small = source.image_size is not None and max(source.image_size) <= _SMALL_SIDE
    return 1 if is_small else 4


@contextlib.contextmanager
def all_cancelled_after(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Ends a pool with the body: what it has not begun by then, after an error too, is left out."""
    with pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def in_memory(source: Source, *, num_threads: int | None = None) -> ArraySource:
    """Decodes a whole source once: worth it where the images are small and epochs are many.

    Its examples keep their names. They are decoded at full size, where a random crop of a JPEG may
    be decoded at a half or less: a crop of either differs in its last bits.
    `num_threads=None` reads in `reading_threads(source)` threads.
    Raises `ValueError` if the images do not share one size, naming one that differs.
    """
    if source.image_size is None:
        raise ValueError(
            "only images that share one size can be kept in memory as one array, and those of this "
            "source do not; set data.in_memory=False"
        )
    images = np.zeros((len(source), *source.image_size, source.channels), np.uint8)
    labels = np.full(len(source), NO_LABEL, np.int32)
    corrupt: dict[int, CorruptImage] = {}

    def decode(indices: range) -> None:
        for index, (image, label) in zip(indices, source.open(indices), strict=True):
            labels[index] = label
            try:
                pixels = image.pixels()
            except CorruptImage as error:
                corrupt[index] = error
                continue
            if pixels.shape != images.shape[1:]:
                raise ValueError(
                    "only images that share one size can be kept in memory as one array: "
                    f"{source.name(index)} is {pixels.shape[0]} x {pixels.shape[1]} pixels, others "
                    f"are {images.shape[1]} x {images.shape[2]}; set data.in_memory=False"
                )
            images[index] = pixels

    chunks = [range(start, min(start + 1024, len(source))) for start in range(0, len(source), 1024)]
    told = time.monotonic()
    with all_cancelled_after(ThreadPoolExecutor(num_threads or reading_threads(source))) as pool:
        for chunk, _ in zip(chunks, pool.map(decode, chunks), strict=True):
            if time.monotonic() > told + _TELL_EVERY_S:
                told = time.monotonic()
                _log.info("decoded %s of %s images", f"{chunk.stop:,}", f"{len(source):,}")
    return ArraySource(
        images, labels, class_names=source.class_names, corrupt=corrupt, decoded_from=source
    )


def digits_source(split: str, channels: int) -> ArraySource:
    """Scikit-learn's 1,797 handwritten digits: 8x8 scans of 16 grey levels, as uint8 0..255.

    Every fifth digit of each class is "test", the others are "train".
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise ValueError(f"digits has no split {split!r}{did_you_mean(split, ('train', 'test'))}")
    digits = load_digits()
    rank_in_class = np.zeros(len(digits.target), int)
    for digit in range(10):
        chosen = digits.target == digit
        rank_in_class[chosen] = np.arange(chosen.sum())
    belongs = (rank_in_class % 5 == 4) == (split == "test")
    grey = (digits.images[belongs] * (255 / 16)).round().astype(np.uint8)
    return ArraySource(
        np.repeat(grey[..., None], channels, axis=-1),
        digits.target[belongs].astype(np.int32),
        title=f"digits/{split}",
        class_names=tuple(str(digit) for digit in range(10)),
    )


class TfdsSource(_IndexedSource):
    """A TFDS dataset in ArrayRecord files, read without TensorFlow.

    The records are read in batches and only their image and label are parsed, which is several
    times faster than TFDS's own decoding. See `make_source` for arguments and errors.
    """

    has_labels_at_hand = False

    def __init__(self, name: str, data_dir: str, split: str, decoding: Decoding):
        builder = _prepared_builder(name, data_dir)
        features = builder.info.features
        if "image" not in features:
            raise ValueError(f"TFDS dataset {name!r} has no image, only {', '.join(features)}")
        self._records = _record_reader(builder, split)
        self._title = f"{name}/{split}"
        self._full_name = builder.info.full_name
        label = dict(features.items()).get("label")
        names = getattr(label, "names", None)
        self._has_label = label is not None and hasattr(label, "num_classes")
        self._decoding = decoding
        self.channels = decoding.channels
        self.class_names = tuple(names) if names else None
        self.num_classes = label.num_classes if self._has_label else None
        height, width = features["image"].shape[:2]
        self.image_size = None if None in (height, width) else (height, width)
        self.feature_names = tuple(sorted(features))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def fingerprint(self) -> str:
        return f"{self._full_name}, {self._title}, {len(self)} examples"

    def name(self, index: int) -> str:
        return f"{self._title}[{index}]"

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString
        wanted = [int(index) for index in indices]
        records = patiently(
            f"{self._full_name}, {self._title}{wanted[:5]}",
            lambda: self._records.__getitems__(wanted),
            (OSError, RuntimeError),  # the latter from what reads ArrayRecord
        )
        return [
            self._parse(index, parse(record).features.feature)
            for index, record in zip(indices, records, strict=True)
        ]

    def labels(self) -> Int32[np.ndarray, " example"]:
        chunks = [range(start, min(start + 1024, len(self))) for start in range(0, len(self), 1024)]
        return np.array([label for chunk in chunks for _, label in self.open(chunk)], np.int32)

    def _parse(self, index: int, feature: Mapping[str, Any]) -> tuple[LazyImage, int]:
        encoded = feature["image"].bytes_list.value[0]
        label = feature["label"].int64_list.value[0] if self._has_label else NO_LABEL
        return EncodedImage(lambda: encoded, self.name(index), self._decoding), label


def _prepared_builder(name: str, data_dir: str) -> Any:
    """A TFDS builder whose data lies on disk as ArrayRecord, downloaded where that is possible."""
    import tensorflow_datasets as tfds

    if not name:
        raise ValueError("source='tfds' needs the name of a dataset, such as name='cifar10'")
    data_dir = os.path.expanduser(data_dir) or None
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(
            f"TFDS knows no dataset {name!r}{did_you_mean(name, known)}; for images of your own "
            "use source='folder'"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"TFDS dataset {name!r} in {data_dir} cannot be read without TensorFlow: {error} "
            "Prepare it in another data_dir with tfds.builder(..., "
            'file_format="array_record").download_and_prepare()'
        ) from error
    if not builder.is_prepared():
        _check_not_beside(name, data_dir)
        expected = f"{builder.data_path}/{{dataset_info.json,features.json,*.array_record*}}"
        _log.info("%s is not at %s: downloading it", name, builder.data_path)
        try:
            with _left_as_it_was(data_dir):
                builder.download_and_prepare()
        except Exception as error:
            raise FileNotFoundError(
                f"TFDS dataset {name!r} is not at {builder.data_path} and could not be downloaded "
                f"({type(error).__name__}: {shorten(str(error), 200)}). Prepare it "
                f"on a machine with network access, with tfds.builder({name!r}, "
                'file_format="array_record").download_and_prepare(), and copy it so that there '
                f"is {expected}"
            ) from error
    return builder


def _check_not_beside(name: str, data_dir: str | None) -> None:
    """Raises `FileNotFoundError` if a folder below holds the dataset: that one was meant."""
    found = sorted(Path(data_dir).glob(f"*/{name}/*/dataset_info.json")) if data_dir else []
    if found:
        raise FileNotFoundError(
            f"TFDS dataset {name!r} is not in {data_dir}, but in {found[0].parents[2]}: give that "
            "as data.data_dir"
        )


@contextlib.contextmanager
def _left_as_it_was(data_dir: str | None) -> Iterator[None]:
    """Removes the empty folders that a download which failed leaves in `data_dir`."""
    root = Path(data_dir) if data_dir else None
    before = set(root.rglob("*")) if root and root.is_dir() else set()
    try:
        yield
    except Exception:
        folders = {path for path in root.rglob("*") if path.is_dir()} if root else set()
        for folder in sorted(folders - before, reverse=True):  # what lies in others first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _record_reader(builder: Any, split: str) -> Any:
    """The `ArrayRecordDataSource` of a split: index -> serialised `tf.train.Example`."""
    available = tuple(builder.info.splits)
    if split.split("[")[0] not in available:
        raise ValueError(
            f"TFDS dataset {builder.name!r} has no split {split!r}"
            f"{did_you_mean(split, available)}; it has {', '.join(available)}"
        )
    return builder.as_data_source(split=split).data_source


class FolderSource(_IndexedSource):
    """A tree of image files, in the order of their sorted paths.

    `data_dir/split` is read if it is a folder, else `data_dir` itself as "train". Which files those
    are, and their labels, `ddae_jax.data.folder_scan.scan` says. See `make_source` for arguments
    and errors.
    """

    has_labels_at_hand = True

    def __init__(self, data_dir: str, split: str, decoding: Decoding):
        root = split_folder(data_dir, split)
        paths, self._labels, self.class_names, self._open_image = find_images(root, decoding)
        warn_of_parts(data_dir, root, paths)
        # One buffer: a list of a million strings is slow to pickle and is copied by every worker.
        self._paths = np.frombuffer(b"".join(paths), np.uint8)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self._root = os.fsencode(root)
        self.channels = decoding.channels
        self.num_classes = None if self.class_names is None else len(self.class_names)

    def __len__(self) -> int:
        return len(self._ends)

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._paths)
        digest.update(self._ends)
        return f"{digest.hexdigest()[:16]}, {len(self)} examples"

    def name(self, index: int) -> str:
        return os.fsdecode(self._path(index))

    @functools.cached_property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) if up to 1,000 images, spread over the folder, all have that size."""
        sample = np.linspace(0, len(self) - 1, min(len(self), _SIZE_SAMPLE)).astype(int)
        shared = None
        for index in sample:
            image, _ = self.open([index])[0]
            try:
                width, height = image.size
            except CorruptImage:
                continue
            shared = shared or (height, width)
            if shared != (height, width):
                return None
        return shared

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        return [
            (self._open_image(self._path(index)), int(self._labels[index])) for index in indices
        ]

    def labels(self) -> Int32[np.ndarray, " example"]:
        return self._labels

    def _path(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return os.path.join(self._root, self._paths[start : self._ends[index]].tobytes())
