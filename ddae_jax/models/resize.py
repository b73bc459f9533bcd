"""Encoder parameters for images of another size: its positions, resized to the new grid."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.vit import ViT
from ddae_jax.patches import Grid


def adapt_encoder(params: PyTree, old: ViT, new: ViT) -> PyTree:
    """Parameters of one encoder as those of another, for other images or with learned positions.

    Positions follow the grid, see :func:`resize_positions` and :func:`resize_relative_positions`.
    Sine-cosine positions become learned ones where the new encoder has these. What only the old
    one has, such as a mask token, is left out.

    Args:
        params: of ``old``.
        old, new: alike but for image size and positions.

    Source: Dosovitskiy et al. 2021, section 3.2 (interpolated positions); He et al. 2022, whose
    fine-tuning learns positions that begin as sine-cosine.
    """
    params = dict(params)
    if old.positions == "sincos" and new.positions == "learned":
        params["positions"] = jnp.asarray(sincos_positions(old.grid, old.width))
    if "positions" in params:
        params["positions"] = resize_positions(params["positions"], old.grid, new.grid)
    for name, part in params.items():
        if isinstance(part, dict) and "table" in part:
            table = resize_relative_positions(part["table"], old.grid, new.grid)
            params[name] = part | {"table": table}
    params.pop("mask_token", None)
    return params


def resize_positions(
    positions: Float[Array, "old_patches features"], old: Grid, new: Grid
) -> Float[Array, "new_patches features"]:
    """One embedding a patch, from one grid to another, as torch's bicubic interpolation does it.

    Source: Keys 1981, equation 15, with a = -3/4; what MAE and BEiT are released with.
    """
    if old == new:
        return positions
    positions = np.asarray(positions)
    rows, columns = (_bicubic_weights(*sides) for sides in zip(old, new, strict=True))
    on_grid = positions.reshape(*old, -1)
    resized = np.einsum("nr,mc,rcw->nmw", rows, columns, on_grid, optimize=True)
    return jnp.asarray(resized.reshape(-1, positions.shape[-1]), positions.dtype)


def resize_relative_positions(
    table: Float[Array, "old_positions heads"], old: Grid, new: Grid
) -> Float[Array, "new_positions heads"]:
    """Entries of :class:`ddae_jax.models.attention.RelativePositionBias`, for another grid.

    A table is not stretched: neighbours stay neighbours. Its entries are put at distances that
    grow geometrically, from 1 for the nearest to the width of the new grid for the furthest, and a
    cubic spline through them is read at whole distances. Along a side that stays the same they
    stay as they are, and so do those of the class token, which come last.

    Source: Bao et al. 2021, BEiT, as its fine-tuning is released.
    """
    if old == new:
        return table
    table = np.asarray(table)
    sides = [2 * side - 1 for side in old]
    of_patches, of_class_token = np.split(table, [np.prod(sides)])
    on_grid = of_patches.reshape(*sides, -1)
    for axis in (0, 1):
        on_grid = _respaced(on_grid, axis, old[axis], new[axis])
    resized = on_grid.reshape(-1, table.shape[-1])
    return jnp.asarray(np.concatenate([resized, of_class_token]), table.dtype)


def _bicubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """How much each of the old places counts at each of the new; the outermost are repeated."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        places = np.floor(centres).astype(int) + step
        kernel = _cubic_kernel(np.abs(centres - places))
        np.add.at(weights, (np.arange(new), places.clip(0, old - 1)), kernel)
    return weights


def _cubic_kernel(
    distance: Float[np.ndarray, "places"], a: float = -0.75
) -> Float[np.ndarray, "places"]:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def _respaced(
    values: Float[np.ndarray, "rows columns heads"], axis: int, old: int, new: int
) -> Float[np.ndarray, "new_rows new_columns heads"]:
    """Relative positions of ``old`` places along an axis as those of ``new`` places."""
    from scipy.interpolate import make_interp_spline  # slow to import, and hardly ever needed

    if old == new:
        return values
    distances = _geometric_distances(old, new)
    wanted = np.arange(1 - new, new).clip(distances[0], distances[-1])
    degree = min(3, len(distances) - 1)  # less than cubic for so few places
    return make_interp_spline(distances, values, degree, axis=axis)(wanted)


def _geometric_distances(old: int, new: int) -> Float[np.ndarray, "distances"]:
    """0, and on both sides 1, 1 + q, 1 + q + q^2, ..., of which the last is near ``new - 1``.

    As released, q lies from 1.01 to 1.5 and is found to a millionth. So a smaller grid takes the
    middle of a table, and a far larger one repeats its edge.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if np.sum(ratio ** np.arange(old - 1)) > new - 1:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(old - 1))
    return np.concatenate([-distances[::-1], [0.0], distances])
