"""Images of any number of channels, from files of arrays: .npy, .npz, and TIFF with many bands."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddae_jax.data.bit_depth import scaled_to_eight_bits
from ddae_jax.data.channels import Channels
from ddae_jax.data.deep_colour import deep_file
from ddae_jax.data.files import NOT_READ, Refused
from ddae_jax.data.images import (
    MORE_PIXELS,
    PILLOW_MAX_PIXELS,
    Decoding,
    Pixels,
    naming_corruption,
    to_image,
    warn_of_more_images,
)
from ddae_jax.data.numpy_files import START_OF_NPY, START_OF_ZIP, ArrayFile
from ddae_jax.data.opening import open_by_pillow
from ddae_jax.data.tiff import (
    STARTS_OF_TIFF,
    declared_no_value,
    open_all_series,
    read_series,
    white_of,
)

ARRAY_SUFFIXES = (".npy", ".npz")
TIFF_SUFFIXES = (".tif", ".tiff")
STACK_SUFFIXES = ARRAY_SUFFIXES + TIFF_SUFFIXES

_OTHER_SHAPE = "of other channels than data.channels"


class _Array(NamedTuple):
    """An array whose header was read.

    Attributes:
        shape: of the array.
        load: reads its values.
        white, no_value: see ``ddae_jax.data.bit_depth.DeepImage``.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    white: float = 0.0
    no_value: float | None = None


class ArrayImage:
    """A file of one array with ``decoding.channels`` channels, decoded on demand.

    The array's shape is (height, width, channels) or (channels, height, width); where it could be
    either, it is taken to be the first. Values of 8 bits are taken as they are; others are scaled
    to 8 bits, all channels alike, see ``Decoding``. TIFF files need the package tifffile. Files
    that are neither TIFF nor NumPy's are read by Pillow.

    Args:
        read: returns the file's bytes.
        name: the file's name, for messages.
        decoding: how it becomes pixels.
    """

    is_turned = False

    def __init__(self, read: Callable[[], bytes], name: str, decoding: Decoding):
        self._read = read
        self._name = name
        self._decoding = decoding

    @property
    def size(self) -> tuple[int, int]:
        with naming_corruption(self._name, self._read):
            shape = self._opened.shape
            height, width = shape[1:] if self._is_first(shape) else shape[:2]
            return width, height

    def decode(self, reduction: int = 1) -> Image.Image | Channels:
        del reduction  # a smaller version of an array would not be cheaper
        return to_image(self.pixels())

    def pixels(self) -> Pixels:
        with naming_corruption(self._name, self._read):
            opened = self._opened
            del self._opened  # which holds the content of the file
            values = opened.load().reshape(opened.shape)
            values = np.moveaxis(values, 0, -1) if self._is_first(opened.shape) else values
            return scaled_to_eight_bits(
                values, self._decoding.max_value, self._name, opened.white, opened.no_value
            )

    @functools.cached_property
    def _opened(self) -> _Array:
        """The file's array of three axes, its header read and checked."""
        content = self._read()
        if content.startswith((START_OF_NPY, START_OF_ZIP)):
            array = ArrayFile(content)
            opened = _Array(array.shape, array.read)
        elif content.startswith(STARTS_OF_TIFF):
            opened = _open_tiff(content, self._name)
        else:
            opened = _open_bands(content)
        if len(opened.shape) == 2:
            opened = opened._replace(shape=(*opened.shape, 1))
        self._check(opened.shape)
        return opened

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raises ``Refused`` for a shape of other channels, or of too many pixels."""
        channels = self._decoding.channels
        if len(shape) != 3 or channels not in (shape[0], shape[-1]) or 0 in shape:
            raise Refused(
                f"its array has the shape {shape}; data.channels={channels} needs "
                f"({channels}, height, width) or (height, width, {channels})",
                _OTHER_SHAPE,
            )
        limit = self._decoding.max_pixels or PILLOW_MAX_PIXELS
        if math.prod(shape) > limit * channels:
            raise Refused(
                f"it has {math.prod(shape) // channels} pixels, more than data.max_pixels={limit}",
                MORE_PIXELS,
            )

    def _is_first(self, shape: tuple[int, ...]) -> bool:
        """Tells whether the first axis is that of the channels."""
        return shape[-1] != self._decoding.channels


def _open_tiff(content: bytes, name: str) -> _Array:
    """Opens the first series of a TIFF file: bands of a page, or pages that are alike."""
    first, *others = open_all_series(content)
    page = first.keyframe
    warn_of_more_images(lambda: bool(others), name)
    if page.dtype is None or page.dtype.kind not in "buif":
        raise Refused(f"its values are of type {page.dtype}; expected are numbers", NOT_READ)

    def load() -> np.ndarray:
        return read_series(first, content)

    return _Array(first.shape, load, white_of(page), declared_no_value(page))


def _open_bands(content: bytes) -> _Array:
    """Opens a file by Pillow, such as an RGBA image, whose bands are the channels."""
    image = open_by_pillow(content)
    deep = deep_file(image, content, lambda: open_by_pillow(content))
    if deep is not None:
        shape = (image.height, image.width, len(deep.mode))
        return _Array(shape, lambda: deep.read().values)
    shape = (image.height, image.width, len(image.getbands()))
    return _Array(shape, lambda: np.asarray(image))
