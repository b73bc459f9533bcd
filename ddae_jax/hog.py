"""Histograms of oriented gradients (HOG), of images on the device. Pure functions on arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hog(
    images: Float[Array, "batch height width channels"],
    cell_size: int = 8,
    num_orientations: int = 9,
    cells_per_block: int = 1,
) -> Float[Array, "batch cell_rows cell_columns channels orientations"]:
    """How strongly each cell's pixels rise in each direction, channel by channel.

    1. The gradient of a pixel is ``(p[r+1] - p[r-1], p[c+1] - p[c-1])``, and 0 across a border of
       the image.
    2. It votes, with its length, for one of ``num_orientations`` equal parts of the half circle:
       an edge and its negative are the same. A cell has the mean votes of its pixels.
    3. The votes of a block, ``v``, are divided by ``sqrt(|v|^2 + 1e-10)``. Blocks do not overlap:
       each cell belongs to one.

    Args:
        images: of any scale and offset: the result does not change with them, up to that 1e-10.
        cell_size: side of a cell, pixels.
        num_orientations: parts of the half circle; part k covers ``[k, k + 1) * 180 / parts``
            degrees.
        cells_per_block: side of the squares of cells that are normalised together, in each channel.

    Raises:
        ValueError: if the image is not made of whole cells and blocks.

    Source: Dalal & Triggs 2005; as a target, Wei et al. 2022, "Masked Feature Prediction for
    Self-Supervised Visual Pre-Training" (MaskFeat), section 3.
    """
    batch, height, width, channels = images.shape
    side = cell_size * cells_per_block
    if side < 1 or height % side or width % side:
        raise ValueError(
            f"cell_size={cell_size}, cells_per_block={cells_per_block}; an image of "
            f"{height}x{width} pixels is not made of blocks of {side}x{side}"
        )
    images = images.astype(jnp.float32)
    down, right = _slope(images, axis=1), _slope(images, axis=2)
    angle = jnp.mod(jnp.arctan2(down, right), jnp.pi)
    part = jnp.floor(angle / (jnp.pi / num_orientations)).astype(jnp.int32) % num_orientations
    strength = jnp.sqrt(jnp.square(down) + jnp.square(right))
    votes = jnp.where(part[..., None] == jnp.arange(num_orientations), strength[..., None], 0.0)
    cells = votes.reshape(
        batch,
        height // cell_size,
        cell_size,
        width // cell_size,
        cell_size,
        channels,
        num_orientations,
    ).mean(axis=(2, 4))
    p = cells_per_block
    blocks = cells.reshape(batch, height // side, p, width // side, p, channels, num_orientations)
    squares = jnp.square(blocks).sum(axis=(2, 4, 6), keepdims=True)
    return (blocks / jnp.sqrt(squares + 1e-10)).reshape(cells.shape)


def _slope(images: Float[Array, "batch height width channels"], axis: int) -> Array:
    """The difference of each pixel's two neighbours along an axis; 0 at both ends."""
    size = images.shape[axis]
    padding = [(1, 1) if a == axis else (0, 0) for a in range(images.ndim)]
    if size < 3:
        return jnp.zeros_like(images)
    later = jax.lax.slice_in_dim(images, 2, size, axis=axis)
    return jnp.pad(later - jax.lax.slice_in_dim(images, 0, size - 2, axis=axis), padding)
