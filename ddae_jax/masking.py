"""Which patches are hidden. Pure functions of a random key, with static shapes."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ddae_jax.patches import Grid


def num_masked_patches(grid: Grid, mask_ratio: float, unit: int = 1) -> int:
    """How many of the grid's patches a mask ratio hides, in whole units.

    A unit is a square of ``unit`` x ``unit`` patches (see :func:`random_mask`).

    Raises ``ValueError`` if the ratio lies outside (0, 1), or hides no patch or all of them, or the
    grid is not made of whole units.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(
            f"mask_ratio={mask_ratio}; it is the hidden share of patches and lies in (0, 1)"
        )
    h, w = _unit_grid(grid, unit)
    total = h * w * unit**2
    # Single patches are rounded, larger units rounded up, as the authors of SimMIM do it.
    num_units = round(mask_ratio * h * w) if unit == 1 else math.ceil(mask_ratio * h * w - 1e-9)
    num_masked = num_units * unit**2
    if not 0 < num_masked < total:
        kept = "no visible" if num_masked else "no hidden"
        raise ValueError(
            f"mask_ratio={mask_ratio} leaves {kept} patch of the {total} in a {grid[0]}x{grid[1]} "
            "grid; choose another ratio, a smaller patch or a larger image"
        )
    return num_masked


def random_mask(
    key: PRNGKeyArray, batch: int, grid: Grid, num_masked: int, *, unit: int = 1
) -> Bool[Array, "batch patches"]:
    """Hides ``num_masked`` patches of each image, every choice of units equally likely.

    Args:
        key: random key; the mask is a pure function of it.
        batch: number of images.
        grid: ``(h, w)``.
        num_masked: hidden patches of each image, exactly.
        unit: side of the squares of patches that are hidden or visible as a whole.

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

    Each block's area is uniform between ``min_block`` and what is still to be hidden, its aspect
    ratio log-uniform in ``[min_aspect, 1 / min_aspect]``, its place uniform. The block that would
    hide too many gives up its outermost rows, so that the count is exact and shapes are static.

    Args:
        key: random key; the mask is a pure function of it.
        batch: number of images.
        grid: ``(h, w)``.
        num_masked: hidden patches of each image, exactly.
        min_block: smallest area of a block, patches; by default what 16 patches are to BEiT's
            14x14 grid, in proportion to this grid.
        min_aspect: smallest height-to-width ratio of a block, in (0, 1].

    Returns:
        True where hidden.

    Raises:
        ValueError: if ``num_masked`` lies outside [0, h * w], or ``min_aspect`` outside (0, 1].

    Source: Bao et al. 2021, "BEiT", algorithm 1; exact counts are this package's.
    """
    total = _checked_total(grid, num_masked)
    if not 0 < min_aspect <= 1:
        raise ValueError(f"min_aspect={min_aspect}; it lies in (0, 1]")
    if min_block is None:
        min_block = max(1, round(total * 16 / 196))
    # Every block hides at least one new patch unless it falls inside hidden ones; after so many
    # tries the few patches that may be left are drawn at random.
    max_tries = 8 * total

    def add_block(carry):
        mask, key, tries = carry
        key, block_key = jax.random.split(key)
        new = _block(block_key, grid, mask.sum(), num_masked, min_block, min_aspect) & ~mask
        kept = jnp.cumsum(new) <= num_masked - mask.sum()
        return mask | (new & kept), key, tries + 1

    def is_unfinished(carry):
        mask, _, tries = carry
        return (mask.sum() < num_masked) & (tries < max_tries)

    def one(key):
        key, fill_key, flip_key = jax.random.split(key, 3)
        start = (jnp.zeros(total, bool), key, jnp.int32(0))
        mask, _, _ = jax.lax.while_loop(is_unfinished, add_block, start)
        noise = jax.random.uniform(fill_key, (1, total)) - mask  # hidden ones stay hidden
        mask = _lowest(noise, num_masked)[0]
        # The trimmed block loses its lower rows: turn half of the masks upside down.
        upside_down = mask.reshape(grid)[::-1].reshape(-1)
        return jnp.where(jax.random.bernoulli(flip_key), upside_down, mask)

    return jax.vmap(one)(jax.random.split(key, batch))


def smallest_block(num_masked: int, share: float) -> int | None:
    """The ``min_block`` of :func:`block_mask` that is a share of the hidden patches, rounded down.

    None for a share of 0, which leaves it to that function.
    """
    return max(1, math.floor(share * num_masked + 1e-9)) if share else None


def visible_indices(
    mask: Bool[Array, "batch patches"], num_visible: int
) -> Int[Array, "batch visible"]:
    """Indices of each image's visible patches, ascending; each row must have ``num_visible``."""
    return jnp.argsort(mask, axis=-1, stable=True)[:, :num_visible]


def hidden_indices(
    mask: Bool[Array, "batch patches"], num_masked: int
) -> Int[Array, "batch hidden"]:
    """Indices of each image's hidden patches, ascending; each row must have ``num_masked``."""
    return visible_indices(~mask, num_masked)


def sample_hidden(
    key: PRNGKeyArray, mask: Bool[Array, "batch patches"], count: int
) -> Bool[Array, "batch patches"]:
    """True at ``count`` of each image's hidden patches, every choice of them equally likely.

    Each row of the mask must have as many hidden patches.
    """
    noise = jax.random.uniform(key, mask.shape) + ~mask  # visible patches come last
    return _lowest(noise, count)


def spread_hidden(
    values: Float[Array, "*batch hidden"], mask: Bool[Array, "batch patches"]
) -> Float[Array, "*batch patches"]:
    """One value for each hidden patch, ascending, in their places; 0 at visible ones."""
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
    """True at the ``count`` lowest values of each row; ties go to the earlier one."""
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
