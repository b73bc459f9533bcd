"""Colours of 16 bits, of which Pillow decodes the upper 8 alone."""

import sys
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
"""By how Pillow calls an order of bytes: the order that has the other byte where it looks."""

_GREY_AND_ALPHA = "LA;16B"


def has_deep_colours(file: Image.Image) -> bool:
    """Tells whether a file that is not decoded yet has colours, or grey and alpha, of 16 bits."""
    raw = raw_mode(file)
    if raw == _GREY_AND_ALPHA:
        return file.mode == "RGBA"  # some versions of Pillow have it as LA, which takes no 4 bytes
    return raw.rpartition(";")[2] in _OTHER_BYTE and file.mode in ("RGB", "RGBA")


def deep_colours(
    open_file: Callable[[], Image.Image],
) -> UInt16[np.ndarray, "height width channel"]:
    """Decodes colours of 16 bits: 0 to 65535; a fourth channel is how opaque each pixel is.

    Args:
        open_file: opens one that :func:`has_deep_colours`; more than once, for either byte.
    """
    file = open_file()
    raw = raw_mode(file)
    if raw == _GREY_AND_ALPHA:  # four bytes: two of either
        halves = _decoded(file, "RGBA")
        grey, alpha = np.moveaxis(_joined(halves[..., ::2], halves[..., 1::2]), -1, 0)
        return np.stack([grey, grey, grey, alpha], axis=-1)
    space, _, order = raw.rpartition(";")
    lower = _decoded(open_file(), f"{space};{_OTHER_BYTE[order]}")
    return _joined(_decoded(file, raw), lower)


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


def raw_mode(file: Image.Image) -> str:
    """Tells how Pillow names the order of a file's channels and bytes; "" where it names none."""
    args = file.tile[0].args if getattr(file, "tile", None) else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""
