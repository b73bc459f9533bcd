"""Leaving out metadata of image files: broken ones would keep Pillow from reading the image."""

import re
import struct
import zlib

START_OF_PNG = b"\x89PNG\r\n\x1a\n"

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")  # some programs write the orientation there
_ANIMATION = b"acTL"  # the number of frames
_NEEDED = (b"tRNS", b"eXIf", _ANIMATION, *_TEXTS)
_TRANSPARENT_BYTES = {0: 2, 2: 6}  # the length of tRNS by the colour type: 0 is grey, 2 is RGB

_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2})Exif", re.DOTALL)


def without_ancillary_chunks(content: bytes) -> bytes:
    """Returns a PNG file without ancillary chunks that are broken or not needed.

    Critical chunks, transparency, the number of frames, and chunks that may tell the orientation
    remain. Everything from the first incomplete chunk on is left as it is.

    Source: PNG (Third Edition), section 5: chunks.
    """
    parts, start, position = [], 0, len(START_OF_PNG)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content) or not kind.isalpha():
            break
        if kind[:1].islower() and not _is_sound(content, kind, position + 8, length):
            parts.append(content[start:position])
            start = end
        position = end
        if kind == b"IEND":
            break
    return b"".join([*parts, content[start:]]) if start else content


def _is_sound(content: bytes, kind: bytes, position: int, length: int) -> bool:
    """Tells whether an ancillary chunk is needed, and whole enough for Pillow to read it."""
    if kind not in _NEEDED:
        return False
    data = content[position : position + length]
    (checksum,) = struct.unpack_from(">I", content, position + length)
    if zlib.crc32(kind + data) != checksum:
        return False
    if kind == _ANIMATION:
        return length == 8
    if kind == b"tRNS":
        return length >= _TRANSPARENT_BYTES.get(content[25], 1)
    return kind != b"zTXt" or data.partition(b"\0")[2][:1] in (b"\0", b"")


def without_exif_of_avif(content: bytes) -> bytes:
    """Returns an AVIF file whose Exif item has an unknown type, so that readers skip it.

    Other files are returned as they are.

    Source: ISO/IEC 14496-12, section 8.11.6: item information.
    """
    return _EXIF_ITEM.sub(rb"\1none", content) if content[4:8] == b"ftyp" else content
