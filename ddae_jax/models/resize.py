"""Encoder parameters for images of another size: its positions, resized to the new grid."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.vit import ViT
from ddae_jax.patches import Grid


def adapt_encoder(params: PyTree, old: ViT, new: ViT) -> PyTree:
    """Parameters of one encoder as those of another, for other images or with learned positions.

    Positions are resized with a cubic kernel, over the grid, or, relative ones, over rows and
    columns apart. Sine-cosine positions become learned ones where the new encoder has these. What
    only the old one has, such as a mask token, is left out.

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
    positions: Float[Array, "old_patches width"], old: Grid, new: Grid
) -> Float[Array, "new_patches width"]:
    """One embedding a patch, from one grid to another."""
    if old == new:
        return positions
    width = positions.shape[-1]
    on_grid = jnp.asarray(positions).reshape(*old, width)
    return jax.image.resize(on_grid, (*new, width), "cubic").reshape(-1, width)


def resize_relative_positions(
    table: Float[Array, "old_positions heads"], old: Grid, new: Grid
) -> Float[Array, "new_positions heads"]:
    """Entries of :class:`ddae_jax.models.attention.RelativePositionBias`, for another grid.

    Those of the class token, which come last, stay as they are.
    """
    if old == new:
        return table
    (old_rows, old_columns), (new_rows, new_columns) = (
        (2 * h - 1, 2 * w - 1) for h, w in (old, new)
    )
    heads = table.shape[-1]
    of_patches, of_class_token = np.split(np.asarray(table), [old_rows * old_columns])
    on_grid = jnp.asarray(of_patches).reshape(old_rows, old_columns, heads)
    resized = jax.image.resize(on_grid, (new_rows, new_columns, heads), "cubic")
    return jnp.concatenate([resized.reshape(-1, heads), jnp.asarray(of_class_token)])
