"""Sizes of encoders."""

from typing import NamedTuple


class Size(NamedTuple):
    """Width (values a token), depth (blocks) and attention heads of an encoder."""

    width: int
    depth: int
    num_heads: int


SIZES = {
    "nano": Size(64, 6, 2),
    "micro": Size(96, 6, 3),
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "S12": Size(384, 12, 12),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}
"""Encoder sizes. Ti, S: Touvron et al. 2021; S12, with 12 heads: Chen et al. 2021, MoCo v3; B, L
and H: Dosovitskiy et al. 2021; others: for laptops."""
