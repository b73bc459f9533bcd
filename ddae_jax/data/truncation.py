"""Telling whether an image file is truncated, by what its format says of where it ends."""

import struct

import numpy as np

_END_OF_PNG = b"IEND\xae\x42\x60\x82"
_END_OF_QOI = b"\0\0\0\0\0\0\0\x01"
_START_OF_SCAN, _END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
_START_OF_JPEG2000 = b"\xff\x4f\xff\x51"
_BODIES = (b"mdat", b"jp2c")  # boxes of AVIF and JPEG 2000 that hold the image

# TIFF: the tags of the offsets and of the byte counts of strips, and those of tiles.
_SEGMENTS = ((273, 279), (324, 325))
_NUMBERS = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # NumPy's types by those of TIFF


def breaks_off(content: bytes) -> bool:
    """Tells whether the end of an image file is missing; False where that cannot be told.

    It is meant for files that cannot be decoded. Some files that can be decoded lack an end too,
    which no decoder needs.
    """
    try:
        return _breaks_off(content)
    except (struct.error, ValueError):  # the file ends in the middle of a number
        return True


def _breaks_off(content: bytes) -> bool:
    """Does what ``breaks_off`` does, but may raise where a number is cut in two."""
    if content.startswith(b"\x89PNG"):
        return _END_OF_PNG not in content
    if content.startswith(b"\xff\xd8"):
        return content.rfind(_END_OF_JPEG) <= content.rfind(_START_OF_SCAN)
    if content.startswith(b"RIFF"):
        return len(content) < 8 + struct.unpack_from("<I", content, 4)[0]
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff_breaks_off(content)
    if content[4:8] in (b"ftyp", b"jP  "):
        return _boxes_break_off(content)
    if content.startswith(_START_OF_JPEG2000):
        return not content.endswith(_END_OF_JPEG)
    if content.startswith(b"GIF8"):
        return not content.rstrip(b"\0").endswith(b";")
    if content.startswith(b"BM"):
        return len(content) < struct.unpack_from("<I", content, 2)[0]
    if content.startswith(b"qoif"):
        return not content.endswith(_END_OF_QOI)
    if content.startswith(b"PK\x03\x04"):
        return b"PK\x05\x06" not in content
    if content.startswith(b"\x0a") and content[1:2] in (b"\0", b"\2", b"\3", b"\5"):
        return len(content) < 128  # bytes of the header of PCX
    return False


def _boxes_break_off(content: bytes) -> bool:
    """Tells whether an AVIF or JPEG 2000 file breaks off: a sequence of boxes with their sizes."""
    position, has_body = 0, False
    while position < len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, position + 8)
        if size == 0:  # the box reaches to the end of the file
            return kind == b"jp2c" and not content.endswith(_END_OF_JPEG)
        if size < 8:
            return False
        position += size
        has_body |= kind in _BODIES
    return position > len(content) or not has_body


def _tiff_breaks_off(content: bytes) -> bool:
    """Tells whether a page's list of tags, its strips or its tiles lie beyond a TIFF file's end.

    Source: TIFF 6.0, section 2. BigTIFF has numbers of 8 bytes in place of those of 4, and in place
    of the 2 bytes of the number of tags.
    """
    order = "<" if content.startswith(b"II") else ">"
    is_big = b"+" in content[:4]
    word, count, entry = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (position,) = struct.unpack_from(order + word, content, 8 if is_big else 4)
    visited: set[int] = set()  # pages, which in a damaged file may follow each other in a circle
    while position and position not in visited:
        visited.add(position)
        (number,) = struct.unpack_from(order + count, content, position)
        start = position + struct.calcsize(order + count)
        (position,) = struct.unpack_from(order + word, content, start + number * entry)
        tags = {}
        for at in range(start, start + number * entry, entry):
            tag, kind = struct.unpack_from(order + "HH", content, at)
            if any(tag in pair for pair in _SEGMENTS) and kind in _NUMBERS:
                tags[tag] = _numbers_of_tag(content, at, order, word, kind)
        for offsets, lengths in _SEGMENTS:
            if offsets in tags and lengths in tags:
                size = min(len(tags[offsets]), len(tags[lengths]))
                ends = tags[offsets][:size].astype(np.uint64) + tags[lengths][:size]
                if size and ends.max() > len(content):
                    return True
    return False


def _numbers_of_tag(content: bytes, at: int, order: str, word: str, kind: int) -> np.ndarray:
    """Reads the numbers of the tag whose entry begins at the byte ``at``.

    Args:
        content: of the file.
        at: the position of the entry.
        order: "<" or ">", the order of bytes.
        word: the code in ``struct`` of the file's offsets.
        kind: the type of the numbers in TIFF.

    Raises:
        ValueError: if they lie beyond the end of the file.
    """
    dtype = np.dtype(order + _NUMBERS[kind])
    (count,) = struct.unpack_from(order + word, content, at + 4)
    place = at + 4 + struct.calcsize(order + word)
    if count * dtype.itemsize > struct.calcsize(order + word):
        (place,) = struct.unpack_from(order + word, content, place)
    if place + count * dtype.itemsize > len(content):
        raise ValueError("the numbers of a tag lie beyond the end")
    return np.frombuffer(content, dtype, count, place)
