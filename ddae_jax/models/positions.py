"""Fixed position embeddings."""

import numpy as np
from jaxtyping import Float

from ddae_jax.patches import Grid


def sincos_positions(grid: Grid, width: int) -> Float[np.ndarray, "patches width"]:
    """Two-dimensional sine-cosine embedding of a patch grid, float32.

    A quarter of ``width`` each: sine and cosine of the column, sine and cosine of the row, at
    frequencies from 1 down to 1/10000.

    Raises ``ValueError`` if ``width`` is not divisible by 4.
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
