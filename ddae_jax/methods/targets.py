"""Targets of hidden patches, and errors of predictions."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ddae_jax.methods.hog import HogForm, hog
from ddae_jax.models.vit import ViT
from ddae_jax.patches import normalize_patches, patch_statistics, patchify, unpatchify


def pixel_targets(
    images: Float[ArrayLike, "batch height width channels"], patch_size: int, normalize: bool
) -> Float[Array, "batch patches values"]:
    """Returns the float32 pixels of each patch, normalised by its own statistics if asked.

    Source: He et al. 2022, section 4.1 ("Reconstruction target").
    """
    patches = patchify(images.astype(jnp.float32), patch_size)
    return normalize_patches(patches) if normalize else patches


def visualize_pixels(encoder: ViT, is_normalized: bool) -> Callable[..., dict[str, Array]]:
    """Returns a ``Method.visualize_predictions`` for an objective called ``pixels``.

    It returns ``reconstructions``, images of shape (depths, batch, height, width, channels) in the
    units of the given ones. If predictions are normalised, they are scaled back by the mean and
    deviation of the true patches.
    """

    def visualize(predictions, targets, teacher, images):
        patches = predictions["pixels"].astype(jnp.float32)
        if is_normalized:
            true_patches = patchify(images.astype(jnp.float32), encoder.patch_size)
            mean, deviation = patch_statistics(true_patches)
            patches = patches * deviation + mean
        return {"reconstructions": unpatchify(patches, encoder.grid, encoder.patch_size)}

    return visualize


def hog_targets(
    images: Float[ArrayLike, "batch height width channels"],
    patch_size: int,
    cell_size: int,
    form: HogForm = "sobel",
) -> Float[Array, "batch patches values"]:
    """Returns the histograms of oriented gradients of each patch's cells, float32.

    The values of a patch are ordered by row of cells, column of cells, channel and orientation. For
    ``form`` see :func:`ddae_jax.methods.hog.hog`.

    Raises:
        ValueError: if patches do not divide into whole cells.

    Source: Wei et al. 2022, MaskFeat, section 3.
    """
    check_cells(patch_size, cell_size)
    cells = hog(images, cell_size, form=form)
    return patchify(cells.reshape(*cells.shape[:3], -1), patch_size // cell_size)


def check_cells(patch_size: int, hog_cell: int) -> None:
    """Raises ``ValueError`` unless patches divide into whole cells. Sizes are in pixels."""
    if hog_cell < 1 or patch_size % hog_cell:
        raise ValueError(
            f"hog_cell={hog_cell} does not divide patch_size={patch_size}: a patch is made of "
            "whole cells"
        )


def cross_entropy(
    logits: Float[ArrayLike, "*batch codes"], tokens: Int[ArrayLike, "*#batch"]
) -> Float[Array, "*batch"]:
    """Returns ``-log softmax(logits)[token]``, float32; leading axes of tokens may be 1."""
    logits = logits.astype(jnp.float32)
    tokens = jnp.broadcast_to(tokens, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)


def absolute_error(
    predictions: Float[ArrayLike, "*batch values"], targets: Float[ArrayLike, "*#batch values"]
) -> Float[Array, "*batch"]:
    """Returns the mean absolute error of each patch, in float32."""
    return jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32)).mean(axis=-1)


def squared_error(
    predictions: Float[ArrayLike, "*batch values"], targets: Float[ArrayLike, "*#batch values"]
) -> Float[Array, "*batch"]:
    """Returns the mean squared error of each patch, in float32."""
    difference = predictions.astype(jnp.float32) - targets.astype(jnp.float32)
    return jnp.square(difference).mean(axis=-1)
