"""Images that are decoded when asked: upright, in one of two colour modes, or corrupt by name."""

import contextlib
import functools
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
from jaxtyping import Float64, Num, UInt8, UInt16
from PIL import ExifTags, Image, UnidentifiedImageError

from ddae_jax.data.channels import Channels
from ddae_jax.data.deep_colour import deep_colours, has_deep_colours
from ddae_jax.data.files import ReadFailed, Refused, is_of_one_file

_log = logging.getLogger(__name__)
_told: set[str] = set()  # what is said once in a process

Image.init()  # else Pillow knows the commonest formats only, and no others by their names

NO_LABEL = -1  # of an image that nobody labelled

_WANTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "JPEG2000")
_WANTED_FORMATS += ("PPM", "TGA", "QOI", "SGI", "PCX")
PILLOW_FORMATS = tuple(format for format in _WANTED_FORMATS if format in Image.OPEN)
"""What is read, whatever a file is called; some builds of Pillow lack one of them.

No other of Pillow's readers sees a file: some would start a program (EPS) or make sense of nearly
any bytes.
"""

PILLOW_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
"""The largest image that Pillow decodes at all."""

_LARGEST_OF_16_BITS = 65535

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

Pixels = UInt8[np.ndarray, "height width channel"]


CAUSES = (
    "of unknown cause",
    "damaged",
    "truncated",
    "no image",
    "more pixels than data.max_pixels",
    "more bytes than data.max_pixels allows",
    "metadata too large",
    "not readable",
    "no regular file",
    "of other channels than data.channels",
)
"""Why an image may be corrupt, in a few words; new ones go to the end."""


class CorruptImage(ValueError):
    """An image that cannot be read or decoded. The message names the image and the cause.

    `kind` is one of `CAUSES`.
    """

    def __init__(self, message: str, kind: str = CAUSES[0]):
        super().__init__(message, kind)
        self.message = message
        self.kind = kind

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Decoding:
    """How files become pixels.

    **Arguments:**

    - `channels`: 1 (grey), 3 (RGB), or of arrays any other number.
    - `max_pixels`: an image of more, by its header, is not decoded; 0 for Pillow's own limit.
    - `max_value`: of images of more than 8 bits, the value that becomes 255. 0 takes each file's
      own: all that its largest value's number of bits can hold, such as 4095 for 12 bits; and of
      floats 1, or 255, if they lie between 0 and that, else the file's least and largest.
    """

    channels: int = 3
    max_pixels: int = 50_000_000
    max_value: float = 0.0

    @property
    def max_bytes(self) -> int:
        """What the file of the largest image may have, uncompressed: 8 bytes a pixel.

        Of images of other than 1 or 3 channels, so much for each channel.
        """
        pixel = 8 * (self.channels if self.holds_arrays else 1)
        return pixel * (self.max_pixels or PILLOW_MAX_PIXELS) + 2**20

    @property
    def holds_arrays(self) -> bool:
        """Whether images have other channels than Pillow makes of any file, and lie in arrays."""
        return self.channels not in (1, 3)


class Example(TypedDict):
    """One decoded example; `label` is an int32 scalar, -1 where there is none."""

    image: Pixels
    label: np.int32


class LazyImage(Protocol):
    """An upright image of 1 (`L`), 3 (`RGB`) or other channels that is decoded when asked."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as in `PIL.Image`. Raises `CorruptImage`."""

    def decode(self, reduction: int = 1) -> Image.Image | Channels:
        """The image, its sides divided by up to `reduction` where its format makes that cheaper.

        Raises `CorruptImage`.
        """

    def pixels(self) -> Pixels:
        """The whole image as an array. Raises `CorruptImage`."""

    @property
    def is_turned(self) -> bool:
        """Whether it is stored otherwise than upright. Raises `CorruptImage`."""


class EncodedImage:
    """A file in one of `PILLOW_FORMATS`: upright by its Exif orientation, transparency on white.

    Of one that holds several images the first is read.
    """

    def __init__(self, read: Callable[[], bytes], name: str, decoding: Decoding):
        self._read = read
        self._name = name
        self._decoding = decoding

    @functools.cached_property
    def _file(self) -> Image.Image:
        file = self._open()
        self._is_deep = has_deep_colours(file)  # which a file that is decoded no longer tells
        return file

    def _open(self) -> Image.Image:
        encoded = self._read()
        size = webp_size(encoded)  # whose reader takes the memory of the whole canvas at once
        if size is not None:
            self._check_pixels(size)
        file = Image.open(io.BytesIO(encoded), formats=PILLOW_FORMATS)
        self._check_pixels(file.size)
        return file

    def _check_pixels(self, size: tuple[int, int]) -> None:
        limit = self._decoding.max_pixels or PILLOW_MAX_PIXELS
        if size[0] * size[1] > limit:
            raise Refused(
                f"it has {size[0]} x {size[1]} pixels, more than data.max_pixels={limit}",
                "more pixels than data.max_pixels",
            )

    @functools.cached_property
    def _orientation(self) -> int:
        try:
            return self._file.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # of what is broken in the metadata the image need not suffer
            return 1

    @property
    def size(self) -> tuple[int, int]:
        with naming_corruption(self._name):
            width, height = self._file.size
            return (height, width) if self._orientation in _SIDEWAYS else (width, height)

    @property
    def is_turned(self) -> bool:
        with naming_corruption(self._name):
            return self._orientation in _UPRIGHT

    def decode(self, reduction: int = 1) -> Image.Image:
        with naming_corruption(self._name):
            file, orientation = self._file, self._orientation
            del self._file  # it remembers how it was decoded: the next decoding opens it anew
            mode = "L" if self._decoding.channels == 1 else None
            # Only JPEG decodes straight to grey and to a half, a quarter or an eighth.
            file.draft(mode, tuple(max(side // reduction, 1) for side in file.size))
            if self._is_deep and self._decoding.max_value != _LARGEST_OF_16_BITS:
                values = deep_colours(self._open)
                image = _of_deep_colours(values, file.info, self._decoding, self._name)
            else:
                image = _to_channels(file, self._decoding, self._name)
            return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image

    def pixels(self) -> Pixels:
        return to_pixels(self.decode())


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
        del reduction  # nothing is cheaper than what is decoded
        return to_image(self._pixels)

    def pixels(self) -> Pixels:
        return self._pixels


class KnownCorruptImage:
    """An image of which one knows that it cannot be decoded."""

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
def naming_corruption(name: str) -> Iterator[None]:
    """Raises `CorruptImage` for errors of the body that are the named file's, not the machine's."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_of_one_file(error):
            message = f"{name} cannot be read: {error.strerror}"
            raise CorruptImage(message, "not readable") from error
        # Any other errno comes from the disk or the network: the image may be fine, they are not.
        if isinstance(error, ReadFailed) or getattr(error, "errno", None) is not None:
            raise
        kind = _kind(error)
        raise CorruptImage(f"{name} cannot be decoded: {error}", kind) from error


def _kind(error: Exception) -> str:
    """An error of decoding in a few words, the same for all files that have it."""
    text = str(error).lower()
    if isinstance(error, Refused):
        return error.kind
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than data.max_pixels"
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    if "truncated" in text or "not enough" in text:
        return "truncated"
    if "too large" in text or "memory limit" in text:
        return "metadata too large"
    return "damaged"


def webp_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP file, pixels, by its header; None if it is none.

    Source: RFC 9649, WebP Image Format, sections 2.5 to 2.7.
    """
    kind, data = encoded[12:16], encoded[20:30]
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WEBP" or len(data) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        sides = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
        return sides[0] & 0x3FFF, sides[1] & 0x3FFF
    return None


def _to_channels(image: Image.Image, decoding: Decoding, name: str) -> Image.Image:
    channels = decoding.channels
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image, decoding.max_value, name)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image.load()
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _of_deep_colours(
    values: UInt16[np.ndarray, "height width channel"],
    info: Mapping[str, Any],
    decoding: Decoding,
    name: str,
) -> Image.Image:
    """Scales colours of 16 bits to 8, on white where they are transparent."""
    colours = scaled_to_eight_bits(values[..., :3], decoding.max_value, name)
    transparent = info.get("transparency")
    if values.shape[-1] == 4:
        opacity = values[..., 3] / _LARGEST_OF_16_BITS
        for channel in np.moveaxis(colours, -1, 0):  # all at once would fill the memory
            channel[...] = (255 + (channel - 255.0) * opacity).round()
    elif isinstance(transparent, tuple):
        is_clear = (values == transparent).all(axis=-1, keepdims=True)
        colours = np.where(is_clear, np.uint8(255), colours)
    image = Image.fromarray(colours)
    return image.convert("L") if decoding.channels == 1 else image


def _to_eight_bits(image: Image.Image, max_value: float, name: str) -> Image.Image:
    """An image of one channel of more than 8 bits, scaled to 0..255; white where transparent."""
    values = np.asarray(image)
    scaled = scaled_to_eight_bits(values, max_value, name)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled = np.where(values == transparent, np.uint8(255), scaled)
    return Image.fromarray(scaled)


def scaled_to_eight_bits(
    values: Num[np.ndarray, "*shape"], max_value: float, name: str
) -> UInt8[np.ndarray, "*shape"]:
    """Values scaled to 0..255; see `Decoding.max_value`.

    **Arguments:**

    - `values`: of one image, of the type that they have in its file.
    - `max_value`: what becomes 255, or 0 to go by the values.
    - `name`: of the image, for a warning.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        # By a table: a large image would fill the memory as floats.
        levels = np.arange(int(values.max()) + 1, dtype=np.int64)
        return scaled_to_eight_bits(levels, max_value, name)[values]
    are_whole = values.dtype.kind != "f"
    values = np.nan_to_num(values.astype(np.float64))
    least, largest = (0.0, max_value) if max_value else _range_of(values, are_whole)
    _warn_of_scaling(name, least, largest, bool(max_value))
    scaled = (values - least) * (255 / (largest - least))
    return scaled.round().clip(0, 255).astype(np.uint8)


def _range_of(values: Float64[np.ndarray, "*shape"], are_whole: bool) -> tuple[float, float]:
    """What becomes 0 and 255, from the values alone; see `Decoding`."""
    least, largest = float(values.min()), float(values.max())
    if least < 0:
        return least, max(largest, least + 1)
    if are_whole:
        return 0.0, max(255.0, 2.0 ** int(largest).bit_length() - 1)
    if largest <= 255:
        return 0.0, 1.0 if largest <= 1 else 255.0
    return least, max(largest, least + 1)


def _warn_of_scaling(name: str, least: float, largest: float, is_given: bool) -> None:
    """Says once in a process that values of more than 8 bits are scaled."""
    if is_given or "scaling" in _told:
        return
    _told.add("scaling")
    _log.warning(
        "images of more than 8 bits are scaled to 8, each by the range of its own values: %s from "
        "%g to %g. data.max_value sets what becomes white in all of them, such as 4095 for 12 bits",
        name,
        least,
        largest,
    )


def to_pixels(image: Image.Image | Channels) -> Pixels:
    """The values of an image of mode `L` or `RGB`, or of several channels."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def to_image(pixels: Pixels) -> Image.Image | Channels:
    """The image that has these values, of mode `L` or `RGB`, or of several channels."""
    if pixels.shape[-1] not in (1, 3):
        return Channels.from_pixels(pixels)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
