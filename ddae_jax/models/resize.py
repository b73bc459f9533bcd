"""Adaptation of an encoder's parameters to another image size: positions follow the new grid."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.vit import ViT
from ddae_jax.patches import Grid


def adapt_encoder(params: PyTree, old: ViT, new: ViT) -> PyTree:
    """Adapts parameters of one encoder to another with other images or learned positions.

    Positions follow the grid, see :func:`resize_positions` and :func:`resize_relative_positions`.
    Sine-cosine positions become learned ones if the new encoder learns them. The mask token is
    left out.

    Args:
        params: parameters of ``old``.
        old, new: encoders that differ in nothing but image size and positions.

    Source: Dosovitskiy et al. 2021, section 3.2 (interpolated positions); He et al. 2022, whose
    fine-tuning learns positions that start as sine-cosine.
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
    positions: Float[ArrayLike, "old_patches features"], old: Grid, new: Grid
) -> Float[Array | np.ndarray, "new_patches features"]:
    """Resizes embeddings of patches to another grid as torch's bicubic interpolation does.

    Source: Keys 1981, equation 15, with a = -3/4; the released code of MAE and BEiT uses it.
    """
    if old == new:
        return positions
    positions = np.asarray(positions)
    rows, columns = (_bicubic_weights(*sides) for sides in zip(old, new, strict=True))
    on_grid = positions.reshape(*old, -1)
    resized = np.einsum("nr,mc,rcw->nmw", rows, columns, on_grid, optimize=True)
    return jnp.asarray(resized.reshape(-1, positions.shape[-1]), positions.dtype)


def resize_relative_positions(
    table: Float[ArrayLike, "old_positions heads"], old: Grid, new: Grid
) -> Float[Array | np.ndarray, "new_positions heads"]:
    """Resizes a table of :class:`ddae_jax.models.attention.RelativePositionBias` to another grid.

    The table is not stretched: neighbours stay neighbours. Its entries are placed at distances that
    grow geometrically, from 1 for the nearest to the width of the new grid for the furthest, and a
    cubic spline through them is read at whole distances. Entries do not change along a side that
    stays the same, nor do those of the class token, which come last.

    Source: Bao et al. 2021, BEiT, its released fine-tuning code.
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
    """Returns the weight of each old place at each new one; the outermost places are repeated."""
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
    """Resizes relative positions along one axis from ``old`` places to ``new`` ones."""
    from scipy.interpolate import make_interp_spline  # slow to import and rarely needed

    if old == new:
        return values
    distances = _geometric_distances(old, new)
    new_distances = np.arange(1 - new, new).clip(distances[0], distances[-1])
    degree = min(3, len(distances) - 1)  # less than cubic for so few places
    return make_interp_spline(distances, values, degree, axis=axis)(new_distances)


def _geometric_distances(old: int, new: int) -> Float[np.ndarray, "distances"]:
    """Returns 0 and, on both sides, 1, 1 + q, 1 + q + q^2, ..., whose last is near ``new - 1``.

    As in the released code, q is searched in [1.01, 1.5] to a millionth. A smaller grid therefore
    takes the middle of the table, and a far larger one repeats its edge.
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
