"""Colours of 16 bits, of which Pillow decodes the upper 8 alone."""

import sys
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from PIL import Image

_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
"""By how Pillow calls an order of bytes: the order that has the other byte where it looks."""

_GREY_AND_ALPHA = "LA;16B"


def has_deep_colours(file: Image.Image) -> bool:
    """Tells whether a file that is not decoded yet has colours, or grey and alpha, of 16 bits."""
    raw = _raw_mode(file)
    if raw == _GREY_AND_ALPHA:
        return file.mode == "RGBA"  # some versions of Pillow have it as LA, which takes no 4 bytes
    return raw.rpartition(";")[2] in _OTHER_BYTE and file.mode in ("RGB", "RGBA")


def deep_colours(
    open_file: Callable[[], Image.Image],
) -> Float64[np.ndarray, "height width channel"]:
    """Decodes colours of 16 bits: 0 to 65535; a fourth channel is how opaque each pixel is.

    Args:
        open_file: opens one that :func:`has_deep_colours`; more than once, for either byte.
    """
    file = open_file()
    raw = _raw_mode(file)
    if raw == _GREY_AND_ALPHA:  # four bytes: two of either
        bytes_ = _decoded(file, "RGBA")
        grey, alpha = (256 * bytes_[..., k] + bytes_[..., k + 1] for k in (0, 2))
        return np.stack([grey, grey, grey, alpha], axis=-1)
    space, _, order = raw.rpartition(";")
    return 256 * _decoded(file, raw) + _decoded(open_file(), f"{space};{_OTHER_BYTE[order]}")


def _decoded(file: Image.Image, raw: str) -> Float64[np.ndarray, "height width channel"]:
    """Decodes a file by another raw mode than its own."""
    file.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in file.tile
    ]
    return np.asarray(file).astype(np.float64)


def _raw_mode(file: Image.Image) -> str:
    """How Pillow names the order of a file's channels and bytes; empty where it names none."""
    args = file.tile[0].args if getattr(file, "tile", None) else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""
