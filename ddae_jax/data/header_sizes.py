"""Sizes of images, read from the headers of their files: (width, height) in pixels.

Each function returns None for a header that is not of its format, or not whole.
"""

import re
import struct

_START_OF_JPEG2000 = b"\xff\x4f\xff\x51"
_FRAME_OF_JPEG = re.compile(rb"[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]")


def webp_size(encoded: bytes) -> tuple[int, int] | None:
    """Returns the size of the canvas of a WebP file.

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


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns the size in the first frame header of JPEG data.

    Source: ITU-T T.81, annex B.2.
    """
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        if _FRAME_OF_JPEG.match(data, position + 1):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        has_no_length = data[position + 1] in (0xFF, 0x01)
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += (1 if data[position + 1] == 0xFF else 2) if has_no_length else 2 + length
    return None


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Returns the size of the canvas of JPEG 2000 data.

    Source: ISO/IEC 15444-1, annex A.5.1.
    """
    start = data.find(_START_OF_JPEG2000)
    if start < 0 or len(data) < start + 16:
        return None
    width, height = struct.unpack_from(">II", data, start + 8)
    return width, height


def png_size(data: bytes) -> tuple[int, int] | None:
    """Returns the size of PNG data, which has to begin as PNG.

    Source: PNG (Third Edition), section 11.2.1.
    """
    return struct.unpack_from(">II", data, 16) if len(data) >= 24 else None
