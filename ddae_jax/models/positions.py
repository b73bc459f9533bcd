"""Positions of patches: fixed embeddings, and the relative position of two tokens."""

import numpy as np
from jaxtyping import Float, Int

from ddae_jax.patches import Grid


def sincos_positions(grid: Grid, width: int) -> Float[np.ndarray, "patches features"]:
    """Returns the two-dimensional sine-cosine embedding of a patch grid, float32.

    Sine and cosine of the column, then sine and cosine of the row, take a quarter of ``width``
    each, at frequencies from 1 down to 1/10000.

    Raises:
        ValueError: if ``width`` is not divisible by 4.

    Source: Vaswani et al. 2017, section 3.5; in two dimensions as in He et al. 2022.
    """
    if width % 4:
        raise ValueError(f"width={width}; sine-cosine positions need a multiple of 4")
    h, w = grid
    frequency = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    row, column = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    parts = []
    for position in (column, row):
        angle = position.reshape(-1, 1) * frequency
        parts += [np.sin(angle), np.cos(angle)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def relative_positions(
    grid: Grid, has_class_token: bool
) -> tuple[Int[np.ndarray, "tokens tokens"], int]:
    """Returns the index of each token pair's relative position, and the number of positions.

    Rows of the index are the tokens that attend, columns those attended to. Pairs of patches that
    are equally many rows and columns apart share one of ``(2h - 1)(2w - 1)`` positions. With a
    class token, three more follow: from it to a patch, from a patch to it, and from it to itself.

    Source: Bao et al. 2021, BEiT, after Raffel et al. 2020, T5.
    """
    h, w = grid
    row, column = (part.ravel() for part in np.meshgrid(np.arange(h), np.arange(w), indexing="ij"))
    rows_apart = row[:, None] - row + h - 1
    columns_apart = column[:, None] - column + w - 1
    count = (2 * h - 1) * (2 * w - 1)
    index = rows_apart * (2 * w - 1) + columns_apart
    if has_class_token:
        index = np.pad(index, ((1, 0), (1, 0)))
        index[0, :], index[:, 0], index[0, 0] = count, count + 1, count + 2
        count += 3
    return index.astype(np.int32), count
