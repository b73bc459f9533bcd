"""How far each hidden patch lies from what the model sees. Pure functions on arrays."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddae_jax.patches import Grid


def distance_map(mask: Bool[Array, "*batch patches"], grid: Grid) -> Float[Array, "*batch patches"]:
    """Euclidean distance, in patches, of each hidden patch to the nearest visible one.

    The exact transform, as two min-plus passes over the two axes of the grid::

        d2(r, c) = min_r' ((r - r')**2 + min_c' ((c - c')**2 + inf * mask(r', c')))

    in O(N * (h + w)) operations an image, without a gather, so that the compiler fuses it.
    Squared distances are whole numbers, so the only rounding is the final square root's.

    Args:
        mask: True where a patch is hidden, row by row over the grid.
        grid: ``(h, w)``, with ``h * w`` patches.

    Returns:
        float32 distances; 0 on visible patches; ``inf`` throughout a row of the batch in which no
        patch is visible, as there is nothing to measure from.

    Raises:
        ValueError: if the grid does not hold as many patches as the mask.

    Source: Chen et al., DDAE (the distance map); Felzenszwalb & Huttenlocher 2012 (the transform).
    """
    h, w = grid
    if mask.shape[-1] != h * w:
        raise ValueError(f"mask has {mask.shape[-1]} patches; a grid of {h}x{w} has {h * w}")
    to_visible = jnp.where(mask.reshape(*mask.shape[:-1], h, w), jnp.inf, 0.0).astype(jnp.float32)
    along_columns = _min_plus(to_visible)
    along_rows = _min_plus(along_columns.swapaxes(-1, -2)).swapaxes(-1, -2)
    return jnp.sqrt(along_rows).reshape(mask.shape)


def _min_plus(values: Float[Array, "*batch length"]) -> Float[Array, "*batch length"]:
    """``min_j ((i - j)**2 + values[j])`` for each i along the last axis."""
    position = jnp.arange(values.shape[-1], dtype=values.dtype)
    squared_offset = (position[:, None] - position[None, :]) ** 2
    return (values[..., None, :] + squared_offset).min(axis=-1)
