"""Reading files of more than 8 bits that Pillow opens, but whose values it drops or rescales."""

import itertools
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from ddae_jax.data.bit_depth import LARGEST_OF_16_BITS, DeepImage

_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
"""Pillow's names of byte orders -> the order with which it would read the other byte of a value.

Of colours of 16 bits Pillow keeps one byte: decoding them twice gives both.
"""

_GREY_AND_ALPHA = "LA;16B"
_TRANSPARENT = "transparency"  # the key in Pillow's ``Image.info``
_SWAPPED_TWICE = {"F;32BF": np.float32, "I;16BS": np.int16, "I;32BS": np.int32}
"""Raw modes whose bytes Pillow swaps although libtiff has swapped them, and the types of values.

For the other modes it takes into account that libtiff returns the byte order of the machine.
"""

_START_OF_JPEG2000 = b"\xff\x4f\xff\x51"
_PHOTOMETRIC, _SAMPLE_FORMAT, _NO_VALUE = 262, 339, 42113  # tags of TIFF


@dataclass(frozen=True)
class DeepFile:
    """A file of more than 8 bits, not decoded yet.

    Args:
        mode: the channels; see ``ddae_jax.data.bit_depth.DeepImage``.
        read: decodes the file.
        is_plain: whether Pillow's own 8 bits are the values scaled from the whole range of 16 bits,
            but for a rounding.
    """

    mode: str
    read: Callable[[], DeepImage]
    is_plain: bool = False


def deep_file(
    file: Image.Image, encoded: bytes, reopen: Callable[[], Image.Image]
) -> DeepFile | None:
    """Returns what reads all bits of a file's values; None if it has 8 bits or fewer.

    Args:
        file: opened by Pillow, and not decoded yet.
        encoded: the content of the file.
        reopen: opens the file again, as reading may have to decode it more than once.
    """
    if file.format == "PPM" and file.mode in ("I", "RGB"):
        return _deep_netpbm(file, encoded)
    if file.format == "JPEG2000":
        return _deep_jpeg2000(file, encoded, reopen)
    if file.format == "SGI":
        return _deep_upper_bytes(file, 16, reopen) if _has_16_bits_of_sgi(file) else None
    if _has_deep_colours(file):
        return _deep_colours(file, reopen)
    if file.mode.startswith(("I", "F")):
        return DeepFile("L", lambda: _grey(reopen()))
    return None


def _deep_netpbm(file: Image.Image, encoded: bytes) -> DeepFile | None:
    """Handles PGM and PPM files, whose values Pillow scales by the largest that a header allows."""
    (tile,) = file.tile
    if tile.codec_name != "raw":
        largest = tile.args[1]
    else:
        largest = LARGEST_OF_16_BITS if raw_mode(file) == "I;16B" else 255
    if largest <= 255:
        return None
    mode = "L" if file.mode == "I" else "RGB"
    shape = (file.height, file.width, len(mode))

    def read() -> DeepImage:
        count, content = math.prod(shape), memoryview(encoded)[tile.offset :]
        if tile.codec_name == "ppm_plain":
            values = _plain_numbers(bytes(content), count)
        else:
            values = np.frombuffer(content, ">u2", min(count, len(content) // 2))
        if values.size < count:
            raise ValueError(f"image file is truncated: {values.size} of {count} values are there")
        # Writers that know nothing of the values put 65535 into the header.
        white = 0 if largest == LARGEST_OF_16_BITS else largest
        return DeepImage(values.reshape(shape), mode, white=white)

    return DeepFile(mode, read)


def _plain_numbers(text: bytes, count: int) -> UInt16[np.ndarray, " value"]:
    """Parses numbers that are written as text, with comments. Raises ``ValueError``."""
    # One by one, as a list of all would take many times the memory of the image.
    words = itertools.islice(re.finditer(rb"\S+", re.sub(rb"#[^\r\n]*", b" ", text)), count)
    try:
        return np.fromiter((int(word[0]) for word in words), np.uint16)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a value is no number from 0 to {LARGEST_OF_16_BITS}") from error


def _deep_jpeg2000(
    file: Image.Image, encoded: bytes, reopen: Callable[[], Image.Image]
) -> DeepFile | None:
    """Handles JPEG 2000 files, whose grey values Pillow shifts to 16 bits, and colours to 8.

    Source: ISO/IEC 15444-1, annex A.5.1: the sizes of the components, 3 bytes for each one, follow
    the marker.
    """
    start = encoded.find(_START_OF_JPEG2000)
    sizes = encoded[start + 42 : start + 42 + 3 * int.from_bytes(encoded[start + 40 : start + 42])]
    bits = min(max(((size & 0x7F) + 1 for size in sizes[::3]), default=8), 16)
    if bits <= 8 or file.mode not in ("I;16", "LA", "RGB", "RGBA", "CMYK"):
        return None
    if file.mode != "I;16":
        return _deep_upper_bytes(file, bits, reopen)

    def read() -> DeepImage:
        values = np.asarray(reopen())[..., None] >> (16 - bits)
        return DeepImage(values, "L", white=0 if bits == 16 else 2**bits - 1)

    return DeepFile("L", read)


def _has_16_bits_of_sgi(file: Image.Image) -> bool:
    """Tells whether an SGI file has values of 16 bits."""
    codec = _codec(file)
    return codec == "SGI16" or (codec == "sgi_rle" and file.tile[0].args[-1] == 2)


def _deep_upper_bytes(file: Image.Image, bits: int, reopen: Callable[[], Image.Image]) -> DeepFile:
    """Handles a file of which Pillow decodes only the upper 8 bits: the others cannot be had."""
    largest, mode = 2**bits - 1, file.mode

    def read() -> DeepImage:
        upper = np.asarray(reopen())
        upper = upper[..., None] if upper.ndim == 2 else upper
        values = np.rint(upper * (largest / 255)).astype(np.uint16)
        return DeepImage(values, mode, opaque=largest, white=largest)

    return DeepFile(mode, read, is_plain=True)


def _grey(file: Image.Image) -> DeepImage:
    """Reads the values of a file of one channel, which Pillow decodes with all their bits."""
    raw, tags = raw_mode(file), getattr(file, "tag_v2", {})
    is_swapped = _codec(file) == "libtiff" and sys.byteorder == "little"
    values = np.asarray(file)[..., None]
    if is_swapped and raw in _SWAPPED_TWICE:
        values = values.astype(_SWAPPED_TWICE[raw]).byteswap()
    sample_format = tags.get(_SAMPLE_FORMAT, (1,))
    if file.format == "TIFF" and file.mode == "I" and sample_format[0] == 1:
        values = values.view(np.uint32)  # the file's values are unsigned, Pillow's are signed
    transparent = file.info.get(_TRANSPARENT)
    return DeepImage(
        values,
        "L",
        white=4095 if raw == "I;12" else 0,
        is_inverted=tags.get(_PHOTOMETRIC, 1) == 0,  # Pillow inverts values of 8 bits only
        no_value=no_value_of(tags.get(_NO_VALUE)),
        transparent=(transparent,) if isinstance(transparent, int) else None,
    )


def no_value_of(tag_value: object) -> float | None:
    """Parses the value of GDAL's tag in TIFF files: the number where nothing was measured.

    Returns None if it is no number.
    """
    try:
        return float(str(tag_value).strip("\0 "))
    except ValueError:
        return None


def _has_deep_colours(file: Image.Image) -> bool:
    """Tells whether a file has colours, or grey and alpha, of 16 bits, of which Pillow keeps 8."""
    raw = raw_mode(file)
    if raw == _GREY_AND_ALPHA:
        return file.mode == "RGBA"  # LA, in some versions of Pillow, cannot hold the 4 bytes
    return raw.rpartition(";")[2] in _OTHER_BYTE and file.mode in ("RGB", "RGBA", "CMYK")


def _deep_colours(file: Image.Image, reopen: Callable[[], Image.Image]) -> DeepFile:
    """Handles files for which ``_has_deep_colours`` is true: decodes both bytes of each value."""
    raw, transparent = raw_mode(file), file.info.get(_TRANSPARENT)
    no_value = no_value_of(getattr(file, "tag_v2", {}).get(_NO_VALUE))
    space, _, order = raw.rpartition(";")
    mode = "LA" if raw == _GREY_AND_ALPHA else file.mode
    is_premultiplied = space == "RGBa"
    if is_premultiplied:
        space = "RGBA"  # else Pillow would divide each byte by the opacity, as if it were a value

    def read() -> DeepImage:
        if mode == "LA":  # decoded as four bytes: two of grey and two of alpha
            halves = _decoded(reopen(), "RGBA")
            values = _joined(halves[..., ::2], halves[..., 1::2])
        else:
            upper = _decoded(reopen(), f"{space};{order}")
            lower = _decoded(reopen(), f"{space};{_OTHER_BYTE[order]}")
            values = _joined(upper, lower)
        return DeepImage(
            values,
            mode,
            is_premultiplied=is_premultiplied,
            no_value=no_value,
            transparent=transparent if isinstance(transparent, tuple) else None,
        )

    return DeepFile(mode, read, is_plain=not (is_premultiplied or isinstance(transparent, tuple)))


def _joined(
    upper: UInt8[np.ndarray, "*shape"], lower: UInt8[np.ndarray, "*shape"]
) -> UInt16[np.ndarray, "*shape"]:
    """Joins the upper and the lower bytes of values."""
    return upper.astype(np.uint16) << 8 | lower


def _decoded(file: Image.Image, raw: str) -> UInt8[np.ndarray, "height width channel"]:
    """Decodes a file as if it had the raw mode ``raw``."""
    file.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in file.tile
    ]
    return np.asarray(file)


def _codec(file: Image.Image) -> str:
    """Returns Pillow's name of what decodes a file; "" where it names none."""
    return file.tile[0].codec_name if getattr(file, "tile", None) else ""


def raw_mode(file: Image.Image) -> str:
    """Returns Pillow's name of the order of a file's channels and bytes; "" where it names none."""
    args = file.tile[0].args if getattr(file, "tile", None) else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""
