"""Files of more than 8 bits that Pillow opens, of which it would drop or rescale values."""

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
"""By how Pillow calls an order of bytes: the order that has the other byte where it looks."""

_GREY_AND_ALPHA = "LA;16B"
_TRANSPARENT = "transparency"  # in what Pillow knows of a file
_OF_THE_OTHER_ORDER = {"F;32BF": np.float32, "I;16BS": np.int16, "I;32BS": np.int32}
"""Raw modes by which Pillow swaps the bytes of what libtiff had swapped already, and their types.

In its names of the other modes it minds that libtiff unpacks to the order of the machine.
"""

_START_OF_JPEG2000 = b"\xff\x4f\xff\x51"
_PHOTOMETRIC, _SAMPLE_FORMAT, _NO_VALUE = 262, 339, 42113  # tags of TIFF


@dataclass(frozen=True)
class DeepFile:
    """A file of more than 8 bits.

    **Arguments:**

    - `mode`: what its channels are; see `ddae_jax.data.bit_depth.DeepImage`.
    - `read`: decodes it.
    - `is_plain`: whether Pillow's own 8 bits are those of values of all 16 bits, and no more than
        a rounding away from what is read here.
    """

    mode: str
    read: Callable[[], DeepImage]
    is_plain: bool = False


def deep_file(
    file: Image.Image, encoded: bytes, reopen: Callable[[], Image.Image]
) -> DeepFile | None:
    """What reads the values of a file that is not decoded yet; None if it has 8 bits or fewer.

    **Arguments:**

    - `file`: as Pillow opened it.
    - `encoded`: its content.
    - `reopen`: opens it anew, as reading may need it more than once.
    """
    if file.format == "PPM" and file.mode in ("I", "RGB"):
        return _of_netpbm(file, encoded)
    if file.format == "JPEG2000":
        return _of_jpeg2000(file, encoded, reopen)
    if file.format == "SGI":
        return _of_upper_bytes(file, 16, reopen) if _has_16_bits_of_sgi(file) else None
    if _has_deep_colours(file):
        return _of_colours(file, reopen)
    if file.mode.startswith(("I", "F")):
        return DeepFile("L", lambda: _grey(reopen()))
    return None


def _of_netpbm(file: Image.Image, encoded: bytes) -> DeepFile | None:
    """Of PGM and PPM files, whose values Pillow scales by the largest that their header allows."""
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
        # 65535 is what is written if nothing is known of the values.
        white = 0 if largest == LARGEST_OF_16_BITS else largest
        return DeepImage(values.reshape(shape), mode, white=white)

    return DeepFile(mode, read)


def _plain_numbers(text: bytes, count: int) -> UInt16[np.ndarray, " value"]:
    """Numbers that are written as text, with comments."""
    # One by one: a list of all of them would take many times the memory of the image.
    words = itertools.islice(re.finditer(rb"\S+", re.sub(rb"#[^\r\n]*", b" ", text)), count)
    try:
        return np.fromiter((int(word[0]) for word in words), np.uint16)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a value is no number from 0 to {LARGEST_OF_16_BITS}") from error


def _of_jpeg2000(
    file: Image.Image, encoded: bytes, reopen: Callable[[], Image.Image]
) -> DeepFile | None:
    """Of JPEG 2000, of which Pillow shifts grey to 16 bits, and colours to 8.

    Source: ISO/IEC 15444-1, annex A.5.1: sizes follow the marker, 3 bytes for each component.
    """
    start = encoded.find(_START_OF_JPEG2000)
    sizes = encoded[start + 42 : start + 42 + 3 * int.from_bytes(encoded[start + 40 : start + 42])]
    bits = min(max(((size & 0x7F) + 1 for size in sizes[::3]), default=8), 16)
    if bits <= 8 or file.mode not in ("I;16", "LA", "RGB", "RGBA", "CMYK"):
        return None
    if file.mode != "I;16":
        return _of_upper_bytes(file, bits, reopen)

    def read() -> DeepImage:
        values = np.asarray(reopen())[..., None] >> (16 - bits)
        return DeepImage(values, "L", white=0 if bits == 16 else 2**bits - 1)

    return DeepFile("L", read)


def _has_16_bits_of_sgi(file: Image.Image) -> bool:
    codec = _codec(file)
    return codec == "SGI16" or (codec == "sgi_rle" and file.tile[0].args[-1] == 2)


def _of_upper_bytes(file: Image.Image, bits: int, reopen: Callable[[], Image.Image]) -> DeepFile:
    """Of a file of which Pillow decodes the upper 8 bits alone: all that there is to go by."""
    largest, mode = 2**bits - 1, file.mode

    def read() -> DeepImage:
        upper = np.asarray(reopen())
        upper = upper[..., None] if upper.ndim == 2 else upper
        values = np.rint(upper * (largest / 255)).astype(np.uint16)
        return DeepImage(values, mode, opaque=largest, white=largest)

    return DeepFile(mode, read, is_plain=True)


def _grey(file: Image.Image) -> DeepImage:
    """Values of one channel, which Pillow has with all their bits."""
    raw, tags = raw_mode(file), getattr(file, "tag_v2", {})
    is_swapped = _codec(file) == "libtiff" and sys.byteorder == "little"
    values = np.asarray(file)[..., None]
    if is_swapped and raw in _OF_THE_OTHER_ORDER:
        values = values.astype(_OF_THE_OTHER_ORDER[raw]).byteswap()
    sample_format = tags.get(_SAMPLE_FORMAT, (1,))
    if file.format == "TIFF" and file.mode == "I" and sample_format[0] == 1:
        values = values.view(np.uint32)  # Pillow's own are signed
    transparent = file.info.get(_TRANSPARENT)
    return DeepImage(
        values,
        "L",
        white=4095 if raw == "I;12" else 0,
        is_inverted=tags.get(_PHOTOMETRIC, 1) == 0,  # Pillow turns those of 8 bits alone
        no_value=no_value_of(tags.get(_NO_VALUE)),
        transparent=(transparent,) if isinstance(transparent, int) else None,
    )


def no_value_of(told: object) -> float | None:
    """The number that a TIFF's tag of GDAL says to stand where nothing was measured."""
    try:
        return float(str(told).strip("\0 "))
    except ValueError:
        return None


def _has_deep_colours(file: Image.Image) -> bool:
    """Tells whether a file has colours, or grey and alpha, of 16 bits, of which Pillow takes 8."""
    raw = raw_mode(file)
    if raw == _GREY_AND_ALPHA:
        return file.mode == "RGBA"  # some versions of Pillow have it as LA, which takes no 4 bytes
    return raw.rpartition(";")[2] in _OTHER_BYTE and file.mode in ("RGB", "RGBA", "CMYK")


def _of_colours(file: Image.Image, reopen: Callable[[], Image.Image]) -> DeepFile:
    raw, transparent = raw_mode(file), file.info.get(_TRANSPARENT)
    no_value = no_value_of(getattr(file, "tag_v2", {}).get(_NO_VALUE))
    space, _, order = raw.rpartition(";")
    mode = "LA" if raw == _GREY_AND_ALPHA else file.mode
    is_premultiplied = space == "RGBa"
    if is_premultiplied:
        space = "RGBA"  # else Pillow divides each byte by the opacity, as if it were a value

    def read() -> DeepImage:
        if mode == "LA":  # four bytes: two of either
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
    """Makes values of their upper and their lower bytes."""
    return upper.astype(np.uint16) << 8 | lower


def _decoded(file: Image.Image, raw: str) -> UInt8[np.ndarray, "height width channel"]:
    """Decodes a file by another raw mode than its own."""
    file.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in file.tile
    ]
    return np.asarray(file)


def _codec(file: Image.Image) -> str:
    """What decodes a file, as Pillow calls it; empty where that is not told."""
    return file.tile[0].codec_name if getattr(file, "tile", None) else ""


def raw_mode(file: Image.Image) -> str:
    """Tells how Pillow names the order of a file's channels and bytes; "" where it names none."""
    args = file.tile[0].args if getattr(file, "tile", None) else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""
