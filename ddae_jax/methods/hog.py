"""Histograms of oriented gradients (HOG), computed by JAX. Pure functions on arrays."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

HogForm = Literal["differences", "sobel"]
"""How gradients are computed and how the half circle is divided: see :func:`hog`."""

FORMS = get_args(HogForm)

_FLAT = 1e-5
"""Mean gradient below which a block counts as flat.

It is larger than the gradients that resizing in float32 leaves in a flat area, and smaller than the
mean gradient of an 8 x 8 cell in which a single pixel differs by 1/255.
"""

_STEEPEST = 1e-4
"""Ratio ``|right| / |down|`` below which a gradient counts as pointing straight down or up.

It is larger than the rounding errors of float32 pixels, and smaller than what a difference of 1/255
does to the steepest gradient of Sobel's filters.
"""


def hog(
    images: Float[ArrayLike, "batch height width channels"],
    cell_size: int = 8,
    num_orientations: int = 9,
    cells_per_block: int = 1,
    form: HogForm = "differences",
) -> Float[Array, "batch cell_rows cell_columns channels orientations"]:
    """Returns the histogram of gradient directions in each cell, channel by channel.

    1. The half circle of directions is divided into ``num_orientations`` equal parts. Each pixel's
       gradient (down, right) votes for the part it lies in, by its length. Opposite directions are
       one, so that an edge and its negative have the same votes.
    2. The histogram of a cell is the mean of its pixels' votes.
    3. The histograms of a block of cells are divided by their joint Euclidean length. Blocks do not
       overlap.

    Form ``differences`` is scikit-image's:

    - the gradient is ``(p[r+1] - p[r-1], p[c+1] - p[c-1])``; its component across a border of the
      image is 0;
    - part k of the half circle covers ``[k, k + 1) * 180 / num_orientations`` degrees;
    - the votes ``v`` of a block are divided by ``sqrt(|v|^2 + 1e-10)``.

    Form ``sobel`` is the one of MaskFeat's authors:

    - the gradient is computed by Sobel's filters, on an image that is reflected at its borders;
    - part k covers ``(k - 1/2, k + 1/2] * 180 / num_orientations`` degrees, so that an upright edge
      votes for the middle of part 0;
    - votes are divided by ``max(|v|, 1e-5)``.

    Args:
        images: of any scale and offset; only the constants above make the result depend on them.
        cell_size: side of a cell, pixels.
        num_orientations: parts of the half circle.
        cells_per_block: side of the squares of cells that are normalised together, in each channel.
        form: ``differences`` or ``sobel``, see above.

    Raises:
        ValueError: if images do not divide into whole blocks, or the form is unknown.

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
    """Returns the middle of each part of the half circle: radians from the right, clockwise.

    Raises ``ValueError`` if the form is unknown.
    """
    check_form(form)
    first = 0.5 if form == "differences" else 0.0
    return (np.arange(num_orientations) + first) * np.pi / num_orientations


def check_form(form: str) -> None:
    """Raises ``ValueError`` if ``form`` is not a form of :func:`hog`."""
    if form not in FORMS:
        raise ValueError(f"hog_form={form!r}; known: {', '.join(map(repr, FORMS))}")


def _part(down: Array, right: Array, num_orientations: int) -> Array:
    """Returns the index k of the part ``[k, k + 1)`` that each gradient lies in."""
    angle = jnp.mod(jnp.arctan2(down, right), jnp.pi)
    return jnp.floor(angle / (jnp.pi / num_orientations)).astype(jnp.int32) % num_orientations


def _centred_part(down: Array, right: Array, num_orientations: int) -> Array:
    """Returns the index k of the part ``(k - 1/2, k + 1/2]`` that each gradient lies in.

    Angles are measured from straight down, where many gradients point. Of 9 parts, two meet there,
    and rounding errors must not distribute these gradients over both.
    """
    right = jnp.where(jnp.abs(right) < _STEEPEST * jnp.abs(down), 0.0, right)
    right, down = jnp.where(down < 0, -right, right), jnp.abs(down)
    from_below = jnp.arctan2(right, down) / math.pi * num_orientations
    part = -jnp.floor(from_below - (num_orientations - 1) / 2)
    return part.astype(jnp.int32) % num_orientations


def _differences(images: Float[Array, "batch height width channels"]) -> tuple[Array, Array]:
    return _slope(images, axis=1), _slope(images, axis=2)


def _sobel(images: Float[Array, "batch height width channels"]) -> tuple[Array, Array]:
    """Returns gradients down and to the right, each smoothed by 1, 2, 1 across its direction."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    sideways = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    upright = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return sideways[:, 2:] - sideways[:, :-2], upright[:, :, 2:] - upright[:, :, :-2]


def _slope(images: Float[Array, "batch height width channels"], axis: int) -> Array:
    """Returns the difference of each pixel's two neighbours along an axis; 0 at both ends."""
    size = images.shape[axis]
    padding = [(1, 1) if a == axis else (0, 0) for a in range(images.ndim)]
    if size < 3:
        return jnp.zeros_like(images)
    later = jax.lax.slice_in_dim(images, 2, size, axis=axis)
    return jnp.pad(later - jax.lax.slice_in_dim(images, 0, size - 2, axis=axis), padding)
