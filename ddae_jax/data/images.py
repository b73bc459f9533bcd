"""Images that are decoded on demand, upright and as grey or RGB, and the error for corrupt ones."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ddae_jax.data.bit_depth import LARGEST_OF_16_BITS
from ddae_jax.data.channels import Channels
from ddae_jax.data.disks import ReadFailed, is_of_one_file
from ddae_jax.data.files import (
    DAMAGED,
    NOT_READ,
    TRUNCATED,
    NoMemoryLeft,
    Refused,
)
from ddae_jax.data.header_sizes import webp_size
from ddae_jax.data.opening import (
    DAMAGED_OR_NOT_READ,
    NO_IMAGE,
    OpenedImage,
    open_encoded,
)
from ddae_jax.data.tiff import NEEDS_A_PACKAGE
from ddae_jax.data.truncation import breaks_off
from ddae_jax.data.warn_once import warn_once, was_given

_log = logging.getLogger(__name__)

NO_LABEL = -1  # the label of images without one

PILLOW_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
"""The number of pixels of the largest image that Pillow decodes at all."""

# Exif orientation 2-8 -> the operation that turns the stored image upright.
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

Pixels = UInt8[np.ndarray, "height width channel"]


MORE_PIXELS = "more pixels than data.max_pixels"
_LARGE_METADATA = "metadata too large"
_MORE_IMAGES = "more images"  # kind of a warning, for `warn_once`
CAUSES = (
    "of unknown cause",
    DAMAGED,
    TRUNCATED,
    NO_IMAGE,
    MORE_PIXELS,
    "more bytes than data.max_pixels allows",
    _LARGE_METADATA,
    "not readable",
    "no regular file",
    "of other channels than data.channels",
    NOT_READ,
    NEEDS_A_PACKAGE,
    DAMAGED_OR_NOT_READ,
)
"""Kinds of ``CorruptImage``; new ones go to the end. Train loaders code up to 16 of them."""


class CorruptImage(ValueError):
    """An image that cannot be read or decoded. The message names the image and the cause.

    ``kind`` is one of ``CAUSES``.
    """

    def __init__(self, message: str, kind: str = CAUSES[0]):
        super().__init__(message, kind)
        self.message = message
        self.kind = kind

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Decoding:
    """The way in which files become pixels of 8 bits.

    Images of more than 8 bits are scaled so that 0 stays 0 and ``max_value`` becomes 255; larger
    values are clipped. With ``max_value=0`` each file has a range of its own:

    - from 0 to what its header says to be white: the largest value of a PGM or PPM file, if it is
      not 65535; the bits of JPEG 2000, if fewer than 16;
    - else, with values further below 0 than a tenth of the largest, from the least to the largest;
    - else, of whole numbers, from 0 to all that the number of bits of the largest can hold, such as
      4095 for 12 bits;
    - else, of floats, from 0 to 1 if none is above 2, to 255 if none is above that, and to the
      largest if one is.

    Numbers that are no values become 0 and count for no range: NaN; -9999, -32768 and those beyond
    1e30 either way, which stand where nothing was measured; and the one that GDAL's tag of a TIFF
    file names. Of infinite floats the positive ones become 255.

    Older versions took floats of at most 255 for values up to 255 as soon as one exceeded 1 by
    however little, and scaled all other floats by their least and largest, even if these were no
    values; they scaled PGM, PPM and JPEG 2000 files to 16 bits by their headers before
    ``max_value`` counted.

    Args:
        channels: 1 (grey) or 3 (RGB); of arrays any other number.
        max_pixels: an image with more pixels, by its header, is not decoded; 0 for Pillow's own
            limit.
        max_value: the value that becomes 255, in the numbers that files hold; 0 for each file's own
            range. 65535 means the whole range of 16 bits: a header that says less counts even then.
    """

    channels: int = 3
    max_pixels: int = 50_000_000
    max_value: float = 0.0

    @property
    def max_bytes(self) -> int:
        """The most bytes that a file may have: those of the largest image, uncompressed.

        Counted are 8 bytes per pixel, or per channel of images of other than 1 or 3 channels.
        """
        pixel_bytes = 8 * (self.channels if self.holds_arrays else 1)
        return pixel_bytes * (self.max_pixels or PILLOW_MAX_PIXELS) + 2**20

    @property
    def holds_arrays(self) -> bool:
        """Whether images have other than 1 or 3 channels, and so come from files of arrays."""
        return self.channels not in (1, 3)


class Example(TypedDict):
    """One decoded example; ``label`` is an int32 scalar, -1 where there is none."""

    image: Pixels
    label: np.int32


class LazyImage(Protocol):
    """Protocol of upright images of 1 (``L``), 3 (``RGB``) or other channels, decoded on demand."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as in ``PIL.Image``. Raises ``CorruptImage``."""

    def decode(self, reduction: int = 1) -> Image.Image | Channels:
        """Decodes the image, its sides divided by up to ``reduction`` where that is cheaper.

        Raises ``CorruptImage``.
        """

    def pixels(self) -> Pixels:
        """Decodes the whole image to an array. Raises ``CorruptImage``."""

    @property
    def is_turned(self) -> bool:
        """Whether its file stores it turned or mirrored. Raises ``CorruptImage``."""


class EncodedImage:
    """An image file in one of ``PILLOW_FORMATS``, decoded on demand.

    It is turned upright by its Exif orientation, and laid on white where it is transparent. Of a
    file that holds several images the first is read.

    Args:
        read: returns the file's bytes.
        name: the file's name, for messages.
        decoding: how it becomes pixels.
    """

    def __init__(self, read: Callable[[], bytes], name: str, decoding: Decoding):
        self._read = read
        self._name = name
        self._decoding = decoding

    @functools.cached_property
    def _opened(self) -> OpenedImage:
        encoded = self._read()
        size = webp_size(encoded)
        if size is not None:  # before Pillow opens it, which takes the memory of the whole canvas
            self._check_pixels(size)
        opened = open_encoded(encoded)
        self._check_pixels(opened.size)
        return opened

    def _check_pixels(self, size: tuple[int, int]) -> None:
        """Raises ``Refused`` for an image with too many pixels."""
        limit = self._decoding.max_pixels or PILLOW_MAX_PIXELS
        if size[0] * size[1] > limit:
            raise Refused(
                f"it has {size[0]} x {size[1]} pixels, more than data.max_pixels={limit}",
                MORE_PIXELS,
            )

    @functools.cached_property
    def _orientation(self) -> int:
        return self._opened.orientation()

    @property
    def size(self) -> tuple[int, int]:
        with naming_corruption(self._name, self._read):
            width, height = self._opened.size
            is_sideways = self._orientation in _SIDEWAYS
            return (height, width) if is_sideways else (width, height)

    @property
    def is_turned(self) -> bool:
        with naming_corruption(self._name, self._read):
            return self._orientation in _UPRIGHT

    def decode(self, reduction: int = 1) -> Image.Image:
        with naming_corruption(self._name, self._read):
            orientation, opened, channels = self._orientation, self._opened, self._decoding.channels
            del self._opened  # Pillow decodes a file once: the next decoding opens it again
            warn_of_more_images(opened.holds_more_images, self._name)
            file, deep, max_value = opened.file, opened.deep, self._decoding.max_value
            if deep is None or (deep.is_plain and max_value == LARGEST_OF_16_BITS):
                # Only JPEG decodes straight to grey and to a half, a quarter or an eighth.
                sides = tuple(max(side // reduction, 1) for side in file.size)
                file.draft("L" if channels == 1 else None, sides)
                image = _to_channels(file, channels)
            else:
                image = deep.read().to_eight_bits(max_value, self._name)
                image = _to_channels(image, channels)
            if orientation not in _UPRIGHT or opened.turns_itself:
                return image
            return image.transpose(_UPRIGHT[orientation])

    def pixels(self) -> Pixels:
        return to_pixels(self.decode())


def warn_of_more_images(holds_more: Callable[[], bool], name: str) -> None:
    """Warns once in a process that only the first image of a file with several is read.

    Args:
        holds_more: tells whether the file holds several; not called after the warning was given.
        name: the file's name.
    """
    if was_given(_MORE_IMAGES) or not holds_more():
        return
    warn_once(
        _log,
        _MORE_IMAGES,
        "of files that hold several images, as pages or frames, the first one alone is read, such "
        "as of %s; take the others out into files of their own if they are wanted",
        name,
    )


class DecodedImage:
    """An image that already is an array."""

    is_turned = False

    def __init__(self, pixels: Pixels):
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        height, width, _ = self._pixels.shape
        return width, height

    def decode(self, reduction: int = 1) -> Image.Image | Channels:
        del reduction  # it is decoded already
        return to_image(self._pixels)

    def pixels(self) -> Pixels:
        return self._pixels


class KnownCorruptImage:
    """An image that could not be decoded before: every access raises the same error again."""

    def __init__(self, error: CorruptImage):
        self._message, self._kind = error.message, error.kind

    @property
    def size(self) -> tuple[int, int]:
        raise CorruptImage(self._message, self._kind)

    @property
    def is_turned(self) -> bool:
        raise CorruptImage(self._message, self._kind)

    def decode(self, reduction: int = 1) -> Image.Image:
        raise CorruptImage(self._message, self._kind)

    def pixels(self) -> Pixels:
        raise CorruptImage(self._message, self._kind)


@contextlib.contextmanager
def naming_corruption(name: str, read: Callable[[], bytes]) -> Iterator[None]:
    """Turns errors of the body that are a file's fault into ``CorruptImage``, which names it.

    Args:
        name: the file's name.
        read: returns the file's bytes, again, to tell whether a file that cannot be decoded is
            truncated.

    Raises:
        CorruptImage: if the file is at fault.
        NoMemoryLeft: for ``MemoryError``, which is the machine's fault: files that claim to need
            too much memory are refused before.
        OSError: as it is, if the disk or the network is at fault.
    """
    try:
        yield
    except MemoryError as error:
        detail = f" ({error})" if str(error) else ""
        raise NoMemoryLeft(
            f"{name} cannot be decoded, as no memory is left{detail}: lower data.num_threads, "
            "data.num_workers or data.max_pixels, or give the job more memory"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and is_of_one_file(error):
            message = f"{name} cannot be read: {error.strerror}"
            raise CorruptImage(message, "not readable") from error
        # Any other errno is a failure of the disk or the network, and the image may be fine.
        if isinstance(error, ReadFailed) or getattr(error, "errno", None) is not None:
            raise
        kind, reason = _kind(error), str(error) or type(error).__name__
        if kind in (DAMAGED, NO_IMAGE, DAMAGED_OR_NOT_READ) and _breaks_off(read):
            detail = "" if kind == NO_IMAGE else f": {reason}"
            kind, reason = TRUNCATED, f"it breaks off before its end{detail}"
        raise CorruptImage(f"{name} cannot be decoded: {reason}", kind) from error


def _breaks_off(read: Callable[[], bytes]) -> bool:
    """Reads a file again and tells whether it breaks off; False if it cannot be read any more."""
    try:
        return breaks_off(read())
    except Exception as error:
        if isinstance(error, Refused) or (isinstance(error, OSError) and is_of_one_file(error)):
            return False  # the file has changed since
        raise


def _kind(error: Exception) -> str:
    """Returns the kind of a decoding error, one of ``CAUSES``."""
    text = str(error).lower()
    if isinstance(error, Refused):
        return error.kind
    if isinstance(error, Image.DecompressionBombError):
        return MORE_PIXELS
    if any(words in text for words in ("too large", "memory limit", "too much memory")):
        return _LARGE_METADATA
    return TRUNCATED if "truncated" in text or "not enough" in text else DAMAGED


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image to mode ``L`` or ``RGB``, laid on white where it is transparent."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image.load()
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_pixels(image: Image.Image | Channels) -> Pixels:
    """Returns the pixels of an image of mode ``L`` or ``RGB``, or of several channels."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def to_image(pixels: Pixels) -> Image.Image | Channels:
    """Returns the image with these pixels: of mode ``L`` or ``RGB``, or of several channels."""
    if pixels.shape[-1] not in (1, 3):
        return Channels.from_pixels(pixels)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
