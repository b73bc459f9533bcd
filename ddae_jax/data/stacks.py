"""Images of any number of channels, from files of arrays: .npy, .npz, and TIFF with many bands."""

import functools
import io
import math
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ddae_jax.data.channels import Channels
from ddae_jax.data.deep_colour import deep_colours, has_deep_colours
from ddae_jax.data.files import Refused
from ddae_jax.data.images import (
    PILLOW_FORMATS,
    PILLOW_MAX_PIXELS,
    Decoding,
    Pixels,
    naming_corruption,
    scaled_to_eight_bits,
    tell_of_more_images,
)

ARRAY_SUFFIXES = (".npy", ".npz")
TIFF_SUFFIXES = (".tif", ".tiff")
STACK_SUFFIXES = ARRAY_SUFFIXES + TIFF_SUFFIXES

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_OTHER_SHAPE = "of other channels than data.channels"


class StackedImage:
    """A file whose array has a height, a width and `decoding.channels` channels, first or last.

    A shape in which both could be the channels is taken to have them last. Values of 8 bits are
    taken as they are; others are scaled to 8 bits, all channels alike, see `Decoding.max_value`.
    TIFF needs the package tifffile; what else is no file of NumPy is left to Pillow.

    **Arguments:**

    - `read`: the content of the file.
    - `name`: of the file, for messages.
    - `decoding`: how it becomes pixels.
    """

    is_turned = False

    def __init__(self, read: Callable[[], bytes], name: str, decoding: Decoding):
        self._read = read
        self._name = name
        self._decoding = decoding

    @property
    def size(self) -> tuple[int, int]:
        with naming_corruption(self._name):
            shape = self._opened[0]
            height, width = shape[1:] if self._is_first(shape) else shape[:2]
            return width, height

    def decode(self, reduction: int = 1) -> Image.Image | Channels:
        del reduction  # no part of an array is cheaper
        pixels = self.pixels()
        return Image.fromarray(pixels[..., 0]) if pixels.shape[-1] == 1 else _image_of(pixels)

    def pixels(self) -> Pixels:
        with naming_corruption(self._name):
            shape, load = self._opened
            del self._opened  # else the content of the file would be kept beside the pixels
            is_first = self._is_first(shape)
            values = load().reshape(shape)
            if values.dtype.kind not in "buif":
                raise ValueError(f"its values are of type {values.dtype}; expected are numbers")
            values = np.moveaxis(values, 0, -1) if is_first else values
            if values.dtype == np.uint8 and not self._decoding.max_value:
                return values
            return scaled_to_eight_bits(values, self._decoding.max_value, self._name)

    @functools.cached_property
    def _opened(self) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
        """The shape by the header alone, with a channel at least, and what loads the values."""
        content = self._read()
        if content.startswith((_NPY, _ZIP)):
            shape, load = _open_arrays(content)
        elif content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            shape, load = _open_tiff(content, self._name)
        else:
            shape, load = _open_bands(content)
        shape = (*shape, 1) if len(shape) == 2 else shape
        self._check(shape)
        return shape, load

    def _check(self, shape: tuple[int, ...]) -> None:
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
                "more pixels than data.max_pixels",
            )

    def _is_first(self, shape: tuple[int, ...]) -> bool:
        return shape[-1] != self._decoding.channels


def _image_of(pixels: Pixels) -> Image.Image | Channels:
    return Image.fromarray(pixels) if pixels.shape[-1] == 3 else Channels.from_pixels(pixels)


def _open_arrays(content: bytes) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
    """Of an .npy file, or of the one array in an .npz file; nothing that is pickled is read."""

    def file() -> Any:
        if content.startswith(_NPY):
            return io.BytesIO(content)
        archive = zipfile.ZipFile(io.BytesIO(content))
        names = archive.namelist()
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays ({', '.join(names[:5])}); expected one")
        return archive.open(names[0])

    with file() as header:
        version = np.lib.format.read_magic(header)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read_header:
            raise ValueError(f"it is of version {version} of NumPy's format; 1.0 and 2.0 are known")
        shape, _, _ = read_header[version](header)

    def load() -> np.ndarray:
        with file() as whole:
            return np.lib.format.read_array(whole, allow_pickle=False)

    return shape, load


def _open_tiff(content: bytes, name: str) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
    """Of the first series of a TIFF file: its bands, or its pages."""
    import_tifffile()
    import tifffile

    series = tifffile.TiffFile(io.BytesIO(content)).series
    tell_of_more_images(lambda: len(series) > 1, name)
    return series[0].shape, series[0].asarray


def _open_bands(content: bytes) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
    """Of another image, such as an RGBA one, whose bands are the channels."""

    def open_file() -> Image.Image:
        return Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)

    image = open_file()
    shape = (image.height, image.width, len(image.getbands()))
    if has_deep_colours(image):
        return shape, lambda: deep_colours(open_file)
    return shape, lambda: np.asarray(image)


def import_tifffile() -> None:
    """Raises `ValueError`, which says what to install, where such TIFF files cannot be read."""
    try:
        import tifffile  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            "TIFF files of other than 1 or 3 channels need a package that is not here: "
            "pip install tifffile"
        ) from error
