"""Makes positions.npz: positions of one grid, resized to another by torch and by timm.

TIMM_USE_SCIPY_INTERP=1 python tests/golden/make_positions.py

Needs torch, timm and, for the cubic spline of BEiT's authors, a scipy before 1.14; the tests need
none of them.
"""

import importlib.metadata
import pathlib

import numpy as np
import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

ABSOLUTE = [((4, 6), (8, 12)), ((7, 7), (5, 9)), ((6, 5), (6, 2))]
RELATIVE = [((5, 5), (9, 9)), ((4, 6), (7, 8)), ((6, 6), (4, 4)), ((3, 3), (6, 5))]
NUM_CLASS_TOKEN_POSITIONS = 3


def main() -> None:
    """Stores tables and what becomes of them, under ``KIND/OLD/NEW/{given,resized}``."""
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for kind, grids, resize in (("absolute", ABSOLUTE, absolute), ("relative", RELATIVE, relative)):
        for old, new in grids:
            given, resized = resize(generator, old, new)
            name = f"{kind}/{old[0]}x{old[1]}/{new[0]}x{new[1]}"
            arrays |= {f"{name}/given": given.numpy(), f"{name}/resized": resized.numpy()}
    path = pathlib.Path(__file__).with_name("positions.npz")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "scipy")]
    np.savez_compressed(path, made_with=", ".join(versions), **arrays)
    print(path, f"{path.stat().st_size / 1024:.0f} KiB", *versions)


def absolute(generator: torch.Generator, old: tuple, new: tuple) -> tuple:
    """Embeddings of width 2, as MAE's and BEiT's authors resize them."""
    given = torch.randn((*old, 2), generator=generator)
    resized = torch.nn.functional.interpolate(
        given.permute(2, 0, 1)[None], size=new, mode="bicubic", align_corners=False
    )
    return given.reshape(-1, 2), resized[0].permute(1, 2, 0).reshape(-1, 2)


def relative(generator: torch.Generator, old: tuple, new: tuple) -> tuple:
    """Tables of 2 heads, as BEiT's authors resize them."""
    old_count, new_count = (
        (2 * h - 1) * (2 * w - 1) + NUM_CLASS_TOKEN_POSITIONS for h, w in (old, new)
    )
    given = torch.randn((old_count, 2), generator=generator)
    return given, resize_rel_pos_bias_table(given, new, (new_count, 2), old_window_size=old)


if __name__ == "__main__":
    main()
