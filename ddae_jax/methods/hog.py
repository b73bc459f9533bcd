"""Histograms of oriented gradients (HOG), of images on the device. Pure functions on arrays."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

HogForm = Literal["differences", "sobel"]
"""How gradients are taken, and where the parts of the half circle begin: see :func:`hog`."""

FORMS = get_args(HogForm)

_FLAT = 1e-5
"""Mean gradient below which a block is flat: above what resizing in float32 leaves, and below what
one pixel that differs by a 255th does to a cell of 8 x 8."""

_STEEPEST = 1e-4
"""Of a gradient, share of its way to the right below which it points straight down: above what
pixels in float32 are off by, and below what a 255th does to the steepest gradient of Sobel's."""


def hog(
    images: Float[ArrayLike, "batch height width channels"],
    cell_size: int = 8,
    num_orientations: int = 9,
    cells_per_block: int = 1,
    form: HogForm = "differences",
) -> Float[Array, "batch cell_rows cell_columns channels orientations"]:
    """How strongly each cell's pixels rise in each direction, channel by channel.

    1. Each pixel has a gradient, down and to the right. It votes, with its length, for one of
       ``num_orientations`` equal parts of the half circle: an edge and its negative are the same.
    2. A cell has the mean votes of its pixels.
    3. The votes of a block are divided by their Euclidean length. Blocks do not overlap: each cell
       belongs to one.

    Form ``differences`` is scikit-image's:

    - the gradient is ``(p[r+1] - p[r-1], p[c+1] - p[c-1])``, and 0 across a border of the image;
    - part k of the half circle covers ``[k, k + 1) * 180 / num_orientations`` degrees;
    - the votes ``v`` of a block are divided by ``sqrt(|v|^2 + 1e-10)``.

    Form ``sobel`` is that of MaskFeat's authors:

    - the gradient is that of Sobel's filters, of an image that is reflected at its borders;
    - part k covers ``(k - 1/2, k + 1/2] * 180 / num_orientations`` degrees, so that an upright edge
      votes for the middle of part 0;
    - votes are divided by ``max(|v|, 1e-5)``.

    Args:
        images: of any scale and offset: the result does not change with them, up to these small
            numbers.
        cell_size: side of a cell, pixels.
        num_orientations: parts of the half circle.
        cells_per_block: side of the squares of cells that are normalised together, in each channel.
        form: see above.

    Raises:
        ValueError: if the image is not made of whole cells and blocks, or there is no such form.

    Source: Dalal & Triggs 2005; as a target, Wei et al. 2022, "Masked Feature Prediction for
    Self-Supervised Visual Pre-Training" (MaskFeat), section 3.
    """
    check_form(form)
    batch, height, width, channels = images.shape
    side = cell_size * cells_per_block
    if side < 1 or height % side or width % side:
        raise ValueError(
            f"cell_size={cell_size}, cells_per_block={cells_per_block}; an image of "
            f"{height}x{width} pixels is not made of blocks of {side}x{side}"
        )
    is_centred = form == "sobel"
    down, right = (_sobel if is_centred else _differences)(jnp.asarray(images, jnp.float32))
    part = (_centred_part if is_centred else _part)(down, right, num_orientations)
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
    length = jnp.maximum(jnp.sqrt(squares), _FLAT) if is_centred else jnp.sqrt(squares + 1e-10)
    return (blocks / length).reshape(cells.shape)


def directions(
    num_orientations: int = 9, form: HogForm = "differences"
) -> Float[np.ndarray, " orientations"]:
    """The middle of each part of the half circle, radians from the right, turning downwards.

    Raises ``ValueError`` if there is no such form.
    """
    check_form(form)
    first = 0.5 if form == "differences" else 0.0
    return (np.arange(num_orientations) + first) * np.pi / num_orientations


def check_form(form: str) -> None:
    """Raises ``ValueError`` for what is no form of :func:`hog`."""
    if form not in FORMS:
        raise ValueError(f"hog_form={form!r}; known: {', '.join(map(repr, FORMS))}")


def _part(down: Array, right: Array, num_orientations: int) -> Array:
    """The index of the part ``[k, k + 1)`` that each gradient lies in."""
    angle = jnp.mod(jnp.arctan2(down, right), jnp.pi)
    return jnp.floor(angle / (jnp.pi / num_orientations)).astype(jnp.int32) % num_orientations


def _centred_part(down: Array, right: Array, num_orientations: int) -> Array:
    """The index of the part ``(k - 1/2, k + 1/2]`` that each gradient lies in.

    Angles are taken from below. Many gradients point straight down, where 9 parts have the end of
    one: rounding errors must not tear these apart.
    """
    right = jnp.where(jnp.abs(right) < _STEEPEST * jnp.abs(down), 0.0, right)
    right, down = jnp.where(down < 0, -right, right), jnp.abs(down)
    from_below = jnp.arctan2(right, down) / math.pi * num_orientations
    part = -jnp.floor(from_below - (num_orientations - 1) / 2)
    return part.astype(jnp.int32) % num_orientations


def _differences(images: Float[Array, "batch height width channels"]) -> tuple[Array, Array]:
    return _slope(images, axis=1), _slope(images, axis=2)


def _sobel(images: Float[Array, "batch height width channels"]) -> tuple[Array, Array]:
    """Gradients down and to the right, each smoothed by 1, 2, 1 across its own direction."""
    around = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    of_columns = around[:, :, :-2] + 2 * around[:, :, 1:-1] + around[:, :, 2:]
    of_rows = around[:, :-2] + 2 * around[:, 1:-1] + around[:, 2:]
    return of_columns[:, 2:] - of_columns[:, :-2], of_rows[:, :, 2:] - of_rows[:, :, :-2]


def _slope(images: Float[Array, "batch height width channels"], axis: int) -> Array:
    """The difference of each pixel's two neighbours along an axis; 0 at both ends."""
    size = images.shape[axis]
    padding = [(1, 1) if a == axis else (0, 0) for a in range(images.ndim)]
    if size < 3:
        return jnp.zeros_like(images)
    later = jax.lax.slice_in_dim(images, 2, size, axis=axis)
    return jnp.pad(later - jax.lax.slice_in_dim(images, 0, size - 2, axis=axis), padding)
