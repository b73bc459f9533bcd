"""Images that are decoded when asked: upright, in one of two colour modes, or corrupt by name."""

import contextlib
import errno
import functools
import io
from collections.abc import Callable, Iterator
from typing import Protocol, TypedDict

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

Image.init()  # else Pillow knows the commonest formats only, and no others by their names

NO_LABEL = -1  # of an image that nobody labelled

_WANTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "JPEG2000")
_WANTED_FORMATS += ("PPM", "TGA", "QOI", "SGI", "PCX")
PILLOW_FORMATS = tuple(format for format in _WANTED_FORMATS if format in Image.OPEN)
"""What is read, whatever a file is called; some builds of Pillow lack one of them.

No other of Pillow's readers sees a file: some would start a program (EPS) or make sense of nearly
any bytes.
"""

# Exif orientation 2-8 -> what turns the stored image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

# Errors of reading that say nothing of the machine, only of one file: gone, or not for us.
_OF_THIS_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR)

Pixels = UInt8[np.ndarray, "height width channel"]


class CorruptImage(ValueError):
    """An image that cannot be read or decoded. The message names the image and the cause."""


class Example(TypedDict):
    """One decoded example; `label` is an int32 scalar, -1 where there is none."""

    image: Pixels
    label: np.int32


class LazyImage(Protocol):
    """An upright image of 1 (`L`) or 3 (`RGB`) channels that is decoded when asked."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as in `PIL.Image`. Raises `CorruptImage`."""

    def decode(self, reduction: int = 1) -> Image.Image:
        """The image, its sides divided by up to `reduction` where its format makes that cheaper.

        Raises `CorruptImage`.
        """

    def pixels(self) -> Pixels:
        """The whole image as an array. Raises `CorruptImage`."""


class EncodedImage:
    """A file in one of `PILLOW_FORMATS`: upright by its Exif orientation, transparency on white.

    Of one that holds several images the first is read.
    """

    def __init__(self, read: Callable[[], bytes], name: str, channels: int):
        self._read = read
        self._name = name
        self._channels = channels

    @functools.cached_property
    def _file(self) -> Image.Image:
        return Image.open(io.BytesIO(self._read()), formats=PILLOW_FORMATS)

    @functools.cached_property
    def _orientation(self) -> int:
        return self._file.getexif().get(ExifTags.Base.Orientation, 1)

    @property
    def size(self) -> tuple[int, int]:
        with naming_corruption(self._name):
            width, height = self._file.size
            return (height, width) if self._orientation in _SIDEWAYS else (width, height)

    def decode(self, reduction: int = 1) -> Image.Image:
        with naming_corruption(self._name):
            file, orientation = self._file, self._orientation
            del self._file  # it remembers how it was decoded: the next decoding opens it anew
            mode = "L" if self._channels == 1 else None
            # Only JPEG decodes straight to grey and to a half, a quarter or an eighth.
            file.draft(mode, tuple(max(side // reduction, 1) for side in file.size))
            image = _to_channels(file, self._channels)
            return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image

    def pixels(self) -> Pixels:
        return to_pixels(self.decode())


class DecodedImage:
    """An image that already is an array."""

    def __init__(self, pixels: Pixels):
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        height, width, _ = self._pixels.shape
        return width, height

    def decode(self, reduction: int = 1) -> Image.Image:
        del reduction  # nothing is cheaper than what is decoded
        return to_image(self._pixels)

    def pixels(self) -> Pixels:
        return self._pixels


class KnownCorruptImage:
    """An image of which one knows that it cannot be decoded."""

    def __init__(self, error: str):
        self._error = error

    @property
    def size(self) -> tuple[int, int]:
        raise CorruptImage(self._error)

    def decode(self, reduction: int = 1) -> Image.Image:
        raise CorruptImage(self._error)

    def pixels(self) -> Pixels:
        raise CorruptImage(self._error)


@contextlib.contextmanager
def naming_corruption(name: str) -> Iterator[None]:
    """Raises `CorruptImage` for errors of the body that are the named file's, not the machine's."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THIS_FILE:
            raise CorruptImage(f"{name} cannot be read: {error.strerror}") from error
        # Any other errno comes from the disk or the network: the image may be fine, they are not.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorruptImage(f"{name} cannot be decoded: {error}") from error


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel, which Pillow would clip to 255 instead of scaling.
        levels = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image.load()
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_pixels(image: Image.Image) -> Pixels:
    """The values of an image of mode `L` or `RGB`, with one or three channels."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def to_image(pixels: Pixels) -> Image.Image:
    """The image that has these values, of mode `L` or `RGB`."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
