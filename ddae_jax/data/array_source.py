"""Sources whose images lie in memory: arrays, a decoded copy of another source, the digits."""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int32, UInt8

from ddae_jax.data.images import (
    NO_LABEL,
    CorruptImage,
    DecodedImage,
    KnownCorruptImage,
    LazyImage,
)
from ddae_jax.data.source_base import IndexedSource, Source
from ddae_jax.data.threads import cancel_rest_at_exit, reading_threads
from ddae_jax.suggestions import did_you_mean

_log = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0
_CHUNK = 1024  # images that a thread decodes at once


class ArraySource(IndexedSource):
    """Labelled images that lie in memory.

    Args:
        images: uint8[example, height, width, channel].
        labels: int32[example], -1 where there is none.
        title: the beginning of names: "digits/train" gives "digits/train[17]".
        class_names: of the classes, whose number is then known; None if there are none.
        corrupt: index -> error, for examples that could not be decoded.
        decoded_from: the source that these images were decoded from, if there is one. Names and
            the fingerprint are then that source's.

    Raises:
        ValueError: if there are not as many labels as images.
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


def in_memory(source: Source, *, num_threads: int | None = None) -> ArraySource:
    """Decodes a whole source once, which pays where images are small and epochs are many.

    Examples keep their names. They are decoded at full size, whereas a random crop of a JPEG file
    may be decoded at a half or less: crops of the two differ in their last bits.

    Args:
        source: the images to decode.
        num_threads: how many threads decode; None for ``reading_threads(source)``.

    Raises:
        ValueError: if the images do not share one size; one that differs is named.
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

    chunks = [range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    last_logged = time.monotonic()
    with cancel_rest_at_exit(ThreadPoolExecutor(num_threads or reading_threads(source))) as pool:
        for chunk, _ in zip(chunks, pool.map(decode, chunks), strict=True):
            if time.monotonic() > last_logged + _LOG_EVERY_S:
                last_logged = time.monotonic()
                _log.info("decoded %s of %s images", f"{chunk.stop:,}", f"{len(source):,}")
    return ArraySource(
        images, labels, class_names=source.class_names, corrupt=corrupt, decoded_from=source
    )


def digits_source(split: str, channels: int) -> ArraySource:
    """Returns scikit-learn's 1,797 handwritten digits: 8x8 scans of 16 grey levels, as 0..255.

    Every fifth digit of each class is in the split "test", the others are in "train". Raises
    ``ValueError`` for another split.
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
