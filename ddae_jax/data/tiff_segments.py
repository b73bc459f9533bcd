"""Checking how large strips and tiles of TIFF files become before they are unpacked.

Tifffile and the libraries it calls unpack a strip as a whole, however large it becomes, and only
then take what the image needs: a small hostile file could fill the memory.
"""

import importlib
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ddae_jax.data.files import DAMAGED, NOT_READ, Refused
from ddae_jax.data.header_sizes import jpeg2000_size, jpeg_size, png_size, webp_size

if TYPE_CHECKING:
    import tifffile

# Numbers of compressions in TIFF.
_NONE, _LZW, _PACKBITS, _LZMA = 1, 5, 32773, 34925
_DEFLATE, _ZSTD, _FAX = (8, 32946, 50013), (50000, 34926), (2, 3, 4)
_JPEG, _JPEG2000 = (6, 7, 33007, 34892), (33003, 33004, 33005, 34712)
_PNG, _WEBP = (34933,), (50001, 34927)

_MOST_OF_DEFLATE = 1032  # the most bytes that one compressed byte becomes
_MOST_OF_PACKBITS = 64
_SLICE = 2**14  # bytes that are unpacked at once
_MOST_LZMA_MEMORY = 2**28  # bytes
_HARMLESS = 2**24  # bytes: a strip that cannot become larger is not checked
_ROOMY = 2**26  # bytes by which a strip or tile may always exceed its image
_READ_SIZE: dict[int, Callable[[bytes], tuple[int, int] | None]] = {
    **dict.fromkeys(_JPEG, jpeg_size),
    **dict.fromkeys(_JPEG2000, jpeg2000_size),
    **dict.fromkeys(_PNG, png_size),
    **dict.fromkeys(_WEBP, webp_size),
}

_KNOWN = {_LZW, _PACKBITS, _LZMA, *_DEFLATE, *_ZSTD, *_FAX, *_READ_SIZE}

# Each byte with its bits in reverse order.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_segments(content: bytes, pages: list[Any]) -> None:
    """Checks that no strip or tile becomes far larger than its image needs.

    Args:
        content: of the file.
        pages: of the file, which are alike.

    Raises:
        Refused: if one does, and for compressions for which this cannot be told.
    """
    for page in filter(None, pages):
        keyframe = page.keyframe
        if keyframe.compression == _NONE or not _is_read(keyframe.compression):
            continue
        most = _most_of_a_segment(keyframe)
        segments = zip(page.dataoffsets, page.databytecounts, strict=False)
        for offset, count in segments:
            if not count:  # an empty part of the image, which is not stored
                continue
            segment = content[offset : offset + count]
            if keyframe.fillorder == 2 and keyframe.compression not in _JPEG:
                segment = segment.translate(_REVERSED)
            if _is_larger(segment, keyframe, most):
                raise Refused(
                    f"a strip or tile of it becomes more than {most:,} bytes when it is unpacked, "
                    f"of an image of {_size_of(keyframe):,}",
                    DAMAGED,
                )


def _size_of(page: "tifffile.TiffPage") -> int:
    """Returns the bytes of a page's image."""
    return math.prod(page.shaped) * page.dtype.itemsize


def _most_of_a_segment(page: "tifffile.TiffPage") -> int:
    """Returns the most bytes that a strip or tile may become.

    It leaves room, as some programs fill up the last one. Raises ``Refused`` for tiles far larger
    than the image.
    """
    if page.is_tiled:
        pixels = page.tiledepth * page.tilelength * page.tilewidth
    else:
        pixels = min(page.rowsperstrip, page.imagelength) * page.imagewidth
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    size = pixels * samples * page.dtype.itemsize
    if size > 4 * _size_of(page) + _ROOMY:
        raise Refused(
            f"its tiles have {page.tilelength} x {page.tilewidth} pixels, and the image "
            f"{page.imagelength} x {page.imagewidth}",
            DAMAGED,
        )
    return 2 * size + 2**16


def _is_read(compression: int) -> bool:
    """Tells whether a decoder is installed. If not, decoding fails and says what to install.

    Raises ``Refused`` for compressions whose unpacked size cannot be told here.
    """
    import tifffile

    if compression not in _KNOWN:
        raise Refused(
            f"its compression {getattr(compression, 'name', compression)} is not read; deflate, "
            "LZW, ZSTD and JPEG are",
            NOT_READ,
        )
    return compression in tifffile.TIFF.DECOMPRESSORS


def _is_larger(segment: bytes, page: "tifffile.TiffPage", most: int) -> bool:
    """Tells whether a segment becomes more than ``most`` bytes. Damage is left to its decoder."""
    compression, harmless = int(page.compression), max(most, _HARMLESS)
    if compression in _FAX:  # decoders stop at the size of the page
        return False
    if compression in _DEFLATE:
        if len(segment) * _MOST_OF_DEFLATE <= harmless:
            return False
        return _unpacks_beyond(_inflated(segment), most)
    if compression == _LZMA:
        unpacker = lzma.LZMADecompressor(memlimit=_MOST_LZMA_MEMORY)
        return _unpacks_beyond(_unpacked(unpacker, segment), most)
    if compression == _PACKBITS:
        if len(segment) * _MOST_OF_PACKBITS <= harmless:
            return False
        return _unpacks_beyond(_runs_of_packbits(segment), most)
    if compression in (_LZW, *_ZSTD):
        return _decodes_beyond(segment, compression, most)
    size = _READ_SIZE[compression](segment)
    if size is None:
        raise Refused(f"a strip or tile of it is no {page.compression.name}", DAMAGED)
    samples = max(page.samplesperpixel, 4)
    return size[0] * size[1] * samples * page.dtype.itemsize > 4 * most


def _unpacks_beyond(sizes: Iterator[int], most: int) -> bool:
    """Tells whether sizes sum up to more than ``most``. They end where the data are damaged."""
    total = 0
    try:
        for size in sizes:
            total += size
            if total > most:
                return True
    except (zlib.error, lzma.LZMAError, EOFError):
        pass
    return False


def _inflated(segment: bytes) -> Iterator[int]:
    """Yields the sizes of the parts that deflate unpacks a segment to."""
    unpacker = zlib.decompressobj()
    for start in range(0, len(segment), _SLICE):
        yield len(unpacker.decompress(segment[start : start + _SLICE]))
        if unpacker.eof:
            return


def _unpacked(unpacker: Any, segment: bytes) -> Iterator[int]:
    """Yields the sizes of the parts that an unpacker with ``lzma``'s interface unpacks."""
    remaining = segment
    while not unpacker.eof:
        size = len(unpacker.decompress(remaining, _HARMLESS))
        remaining = b""
        yield size
        if not size and unpacker.needs_input:
            return


def _runs_of_packbits(segment: bytes) -> Iterator[int]:
    """Yields the sizes of the runs of PackBits. Source: TIFF 6.0, section 9."""
    position = 0
    while position < len(segment):
        code = segment[position]
        if code > 128:
            yield 257 - code
            position += 2
        else:
            if code < 128:
                yield code + 1
                position += code + 1
            position += 1


def _decodes_beyond(segment: bytes, compression: int, most: int) -> bool:
    """Tells whether imagecodecs unpacks a segment to ``most`` bytes or more, stopping there."""
    import tifffile

    decode = tifffile.TIFF.DECOMPRESSORS[compression]
    if decode.__module__.startswith("tifffile"):  # from Python 3.14 on: tifffile's takes no limit
        unpacker = importlib.import_module("compression.zstd").ZstdDecompressor()
        return _unpacks_beyond(_unpacked(unpacker, segment), most)
    try:
        return len(decode(segment, out=most)) >= most
    except Exception as error:
        return "too small" in str(error).lower()
