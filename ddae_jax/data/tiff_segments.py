"""What strips and tiles of TIFF files unpack to, looked at before all of it is in memory.

Tifffile, and what it calls, unpacks a strip as a whole, however large that is, and takes of it
what the image needs.
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

_NONE, _LZW, _PACKBITS, _LZMA = 1, 5, 32773, 34925  # compressions
_DEFLATE, _ZSTD, _FAX = (8, 32946, 50013), (50000, 34926), (2, 3, 4)
_JPEG, _JPEG2000 = (6, 7, 33007, 34892), (33003, 33004, 33005, 34712)
_PNG, _WEBP = (34933,), (50001, 34927)

_MOST_OF_DEFLATE = 1032  # bytes that one byte becomes
_MOST_OF_PACKBITS = 64
_SLICE = 2**14  # bytes that are unpacked at once
_MOST_LZMA_MEMORY = 2**28
_HARMLESS = 2**24  # bytes: a strip that cannot become more is not looked at
_ROOMY = 2**26  # bytes of a strip or tile that may be larger than its image
_READ_SIZE: dict[int, Callable[[bytes], tuple[int, int] | None]] = {
    **dict.fromkeys(_JPEG, jpeg_size),
    **dict.fromkeys(_JPEG2000, jpeg2000_size),
    **dict.fromkeys(_PNG, png_size),
    **dict.fromkeys(_WEBP, webp_size),
}

_KNOWN = {_LZW, _PACKBITS, _LZMA, *_DEFLATE, *_ZSTD, *_FAX, *_READ_SIZE}

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_segments(content: bytes, pages: list[Any]) -> None:
    """Raises `Refused` if a strip or a tile is, or becomes, far larger than its image needs.

    And for compressions of which that cannot be told.

    **Arguments:**

    - `content`: of the file.
    - `pages`: of it, of one kind.
    """
    for page in filter(None, pages):
        keyframe = page.keyframe
        if keyframe.compression == _NONE or not _is_read(keyframe.compression):
            continue
        most = _most_of_a_segment(keyframe)
        segments = zip(page.dataoffsets, page.databytecounts, strict=False)
        for offset, count in segments:
            if not count:  # nothing was stored where there is nothing
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
    return math.prod(page.shaped) * page.dtype.itemsize


def _most_of_a_segment(page: "tifffile.TiffPage") -> int:
    """What a strip or tile may become, bytes; some programs fill up the last one.

    Raises `Refused` for tiles that are far larger than the image.
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
    """Tells whether what unpacks it is installed, which else is told where it is needed.

    Raises `Refused` for compressions of which nothing here knows what they become.
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
    """Tells whether a segment becomes more than so many bytes. Damage is left to its decoder."""
    compression, harmless = int(page.compression), max(most, _HARMLESS)
    if compression in _FAX:  # unpacked to the size of the page, and no further
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
    """Tells whether sizes sum up to more; those of what is damaged end where it is."""
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
    unpacker = zlib.decompressobj()
    for start in range(0, len(segment), _SLICE):
        yield len(unpacker.decompress(segment[start : start + _SLICE]))
        if unpacker.eof:
            return


def _unpacked(unpacker: Any, segment: bytes) -> Iterator[int]:
    """Sizes of what an unpacker like that of `lzma` gives."""
    given = segment
    while not unpacker.eof:
        size = len(unpacker.decompress(given, _HARMLESS))
        given = b""
        yield size
        if not size and unpacker.needs_input:
            return


def _runs_of_packbits(segment: bytes) -> Iterator[int]:
    """Sizes of the runs. Source: TIFF 6.0, section 9."""
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
    import tifffile

    decode = tifffile.TIFF.DECOMPRESSORS[compression]
    if decode.__module__.startswith("tifffile"):  # from Python 3.14 on; it takes no limit
        unpacker = importlib.import_module("compression.zstd").ZstdDecompressor()
        return _unpacks_beyond(_unpacked(unpacker, segment), most)
    try:
        return len(decode(segment, out=most)) >= most
    except Exception as error:
        return "too small" in str(error).lower()
