"""Masks: the choice of hidden patches. Pure functions of a random key, with static shapes."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ddae_jax.patches import Grid


def num_masked_patches(grid: Grid, mask_ratio: float, unit: int = 1) -> int:
    """Returns how many of the grid's patches a mask ratio hides, in whole units.

    A unit is a square of ``unit`` x ``unit`` patches (see :func:`random_mask`).

    Raises:
        ValueError: if the ratio lies outside (0, 1), or hides no patch or all of them, or the grid
            is not made of whole units.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(
            f"mask_ratio={mask_ratio}; it is the hidden share of patches and lies in (0, 1)"
        )
    h, w = _unit_grid(grid, unit)
    total = h * w * unit**2
    # Single patches are rounded; larger units are rounded up, as in the code of SimMIM's authors.
    num_units = round(mask_ratio * h * w) if unit == 1 else math.ceil(mask_ratio * h * w - 1e-9)
    num_masked = num_units * unit**2
    if not 0 < num_masked < total:
        none = "no visible" if num_masked else "no hidden"
        raise ValueError(
            f"mask_ratio={mask_ratio} leaves {none} patch of the {total} in a {grid[0]}x{grid[1]} "
            "grid; choose another ratio, a smaller patch or a larger image"
        )
    return num_masked


def random_mask(
    key: PRNGKeyArray, batch: int, grid: Grid, num_masked: int, *, unit: int = 1
) -> Bool[Array, "batch patches"]:
    """Hides ``num_masked`` patches of each image; every choice of units is equally likely.

    Args:
        key: random key; the mask is a pure function of it.
        batch: number of images.
        grid: ``(h, w)``.
        num_masked: exact number of hidden patches of each image.
        unit: side, in patches, of the squares that are hidden or visible as a whole.

    Returns:
        True where hidden.

    Raises:
        ValueError: if ``num_masked`` lies outside [0, h * w], or the grid or ``num_masked`` is not
            made of whole units.

    Source: He et al. 2022, section 3 ("Masking"); Xie et al. 2022, section 3.2 (units).
    """
    _checked_total(grid, num_masked)
    h, w = _unit_grid(grid, unit)
    if num_masked % unit**2:
        raise ValueError(f"num_masked={num_masked} is not made of units of {unit}x{unit} patches")
    noise = jax.random.uniform(key, (batch, h * w))
    mask = _lowest(noise, num_masked // unit**2).reshape(batch, h, 1, w, 1)
    return jnp.broadcast_to(mask, (batch, h, unit, w, unit)).reshape(batch, grid[0] * grid[1])


def block_mask(
    key: PRNGKeyArray,
    batch: int,
    grid: Grid,
    num_masked: int,
    *,
    min_block: int | None = None,
    min_aspect: float = 0.3,
) -> Bool[Array, "batch patches"]:
    """Hides rectangular blocks of patches, one after the other, until ``num_masked`` are hidden.

    Each block's area is uniform between ``min_block`` and the number of patches still to be hidden,
    its aspect ratio log-uniform in ``[min_aspect, 1 / min_aspect]``, and its place uniform. A block
    that would hide too many patches loses its outermost rows, so that the count is exact and shapes
    are static.

    Args:
        key: random key; the mask is a pure function of it.
        batch: number of images.
        grid: ``(h, w)``.
        num_masked: exact number of hidden patches of each image.
        min_block: smallest area of a block, in patches; by default the same share of this grid as
            16 patches are of BEiT's 14x14 grid.
        min_aspect: smallest height-to-width ratio of a block, in (0, 1].

    Returns:
        True where hidden.

    Raises:
        ValueError: if ``num_masked`` lies outside [0, h * w], or ``min_aspect`` outside (0, 1].

    Source: Bao et al. 2021, "BEiT", algorithm 1; the exact count is this package's.
    """
    total = _checked_total(grid, num_masked)
    if not 0 < min_aspect <= 1:
        raise ValueError(f"min_aspect={min_aspect}; it lies in (0, 1]")
    if min_block is None:
        min_block = max(1, round(total * 16 / 196))
    # Every block hides at least one new patch unless it falls inside hidden ones. After this many
    # tries, the few patches that may still be missing are drawn at random.
    max_tries = 8 * total

    def add_block(carry):
        mask, key, tries = carry
        key, block_key = jax.random.split(key)
        new = _block(block_key, grid, mask.sum(), num_masked, min_block, min_aspect) & ~mask
        has_room = jnp.cumsum(new) <= num_masked - mask.sum()
        return mask | (new & has_room), key, tries + 1

    def is_unfinished(carry):
        mask, _, tries = carry
        return (mask.sum() < num_masked) & (tries < max_tries)

    def one_mask(key):
        key, fill_key, flip_key = jax.random.split(key, 3)
        start = (jnp.zeros(total, bool), key, jnp.int32(0))
        mask, _, _ = jax.lax.while_loop(is_unfinished, add_block, start)
        noise = jax.random.uniform(fill_key, (1, total)) - mask  # hidden patches stay hidden
        mask = _lowest(noise, num_masked)[0]
        # A trimmed block loses its lower rows, so half of the masks are turned upside down.
        upside_down = mask.reshape(grid)[::-1].reshape(-1)
        return jnp.where(jax.random.bernoulli(flip_key), upside_down, mask)

    return jax.vmap(one_mask)(jax.random.split(key, batch))


def smallest_block(num_masked: int, share: float) -> int | None:
    """Returns a share of the hidden patches, rounded down, as ``min_block`` of :func:`block_mask`.

    For a share of 0 it returns None, which selects that function's default.
    """
    return max(1, math.floor(share * num_masked + 1e-9)) if share else None


def visible_indices(
    mask: Bool[ArrayLike, "batch patches"], num_visible: int
) -> Int[Array, "batch visible"]:
    """Returns the indices of each image's visible patches, in ascending order.

    Each row of the mask must have ``num_visible`` of them.
    """
    return jnp.argsort(mask, axis=-1, stable=True)[:, :num_visible]


def hidden_indices(
    mask: Bool[ArrayLike, "batch patches"], num_masked: int
) -> Int[Array, "batch hidden"]:
    """Returns the indices of each image's hidden patches, in ascending order.

    Each row of the mask must have ``num_masked`` of them.
    """
    return visible_indices(~jnp.asarray(mask), num_masked)


def sample_hidden(
    key: PRNGKeyArray, mask: Bool[ArrayLike, "batch patches"], count: int
) -> Bool[Array, "batch patches"]:
    """Samples ``count`` of each image's hidden patches; every choice is equally likely.

    Each row of the mask must have at least ``count`` hidden patches.

    Returns:
        True at the sampled patches.
    """
    mask = jnp.asarray(mask)
    noise = jax.random.uniform(key, mask.shape) + ~mask  # visible patches come last
    return _lowest(noise, count)


def spread_hidden(
    values: Float[ArrayLike, "*batch hidden"], mask: Bool[ArrayLike, "batch patches"]
) -> Float[Array, "*batch patches"]:
    """Puts one value for each hidden patch, in ascending order, in its place; 0 at visible ones."""
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    place = jnp.clip(jnp.cumsum(mask, axis=-1) - 1, 0, values.shape[-1] - 1)
    place = jnp.broadcast_to(place, (*values.shape[:-1], place.shape[-1]))
    return jnp.where(mask, jnp.take_along_axis(values, place, axis=-1), 0.0)


def _block(
    key: PRNGKeyArray,
    grid: Grid,
    num_hidden: Int[Array, ""],
    num_masked: int,
    min_block: int,
    min_aspect: float,
) -> Bool[Array, "patches"]:
    h, w = grid
    area_key, aspect_key, row_key, column_key = jax.random.split(key, 4)
    largest = jnp.maximum(num_masked - num_hidden, min_block)
    area = jax.random.uniform(area_key, minval=min_block, maxval=largest)
    log_aspect = math.log(min_aspect)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=log_aspect, maxval=-log_aspect))
    height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, h).astype(jnp.int32)
    width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, w).astype(jnp.int32)
    top = jax.random.randint(row_key, (), 0, h - height + 1)
    left = jax.random.randint(column_key, (), 0, w - width + 1)
    row, column = jnp.arange(h)[:, None], jnp.arange(w)[None, :]
    is_inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return is_inside.reshape(-1)


def _lowest(noise: Float[Array, "batch patches"], count: int) -> Bool[Array, "batch patches"]:
    """Marks the ``count`` lowest values of each row with True; ties go to the earlier one."""
    rank = jnp.argsort(jnp.argsort(noise, axis=-1, stable=True), axis=-1, stable=True)
    return rank < count


def _unit_grid(grid: Grid, unit: int) -> Grid:
    if unit < 1 or grid[0] % unit or grid[1] % unit:
        raise ValueError(
            f"mask_unit={unit}; a {grid[0]}x{grid[1]} grid of patches is not made of squares of "
            f"{unit}x{unit}"
        )
    return grid[0] // unit, grid[1] // unit


def _checked_total(grid: Grid, num_masked: int) -> int:
    total = grid[0] * grid[1]
    if not 0 <= num_masked <= total:
        raise ValueError(f"num_masked={num_masked}; a {grid[0]}x{grid[1]} grid has {total} patches")
    return total
