"""The distance of each hidden patch from the nearest visible one. Pure functions on arrays."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ddae_jax.patches import Grid


def distance_map(
    mask: Bool[ArrayLike, "*batch patches"], grid: Grid
) -> Float[Array, "*batch patches"]:
    """Returns the Euclidean distance of each hidden patch from the nearest visible one, in patches.

    It is the exact distance transform, in two min-plus passes along the two axes of the grid::

        d2(r, c) = min_r' ((r - r')**2 + min_c' ((c - c')**2 + inf * mask(r', c')))

    This takes O(N * (h + w)) operations per image and no gather, so the compiler can fuse it.
    Squared distances are whole numbers, so only the final square root rounds.

    Args:
        mask: True where a patch is hidden, row by row over the grid.
        grid: ``(h, w)``, with ``h * w`` patches.

    Returns:
        float32 distances: 0 on visible patches, and ``inf`` on every patch of an image that has no
        visible patch to measure from.

    Raises:
        ValueError: if the grid and the mask have different numbers of patches.

    Source: Chen et al., DDAE (the distance map); Felzenszwalb & Huttenlocher 2012 (the transform).
    """
    mask = jnp.asarray(mask)
    h, w = grid
    if mask.shape[-1] != h * w:
        raise ValueError(f"mask has {mask.shape[-1]} patches; a grid of {h}x{w} has {h * w}")
    to_visible = jnp.where(mask.reshape(*mask.shape[:-1], h, w), jnp.inf, 0.0).astype(jnp.float32)
    along_columns = _min_plus(to_visible)
    along_rows = _min_plus(along_columns.swapaxes(-1, -2)).swapaxes(-1, -2)
    return jnp.sqrt(along_rows).reshape(mask.shape)


def _min_plus(values: Float[Array, "*batch length"]) -> Float[Array, "*batch length"]:
    """Returns ``min_j ((i - j)**2 + values[j])`` for each i along the last axis."""
    position = jnp.arange(values.shape[-1], dtype=values.dtype)
    squared_offset = (position[:, None] - position[None, :]) ** 2
    return (values[..., None, :] + squared_offset).min(axis=-1)
