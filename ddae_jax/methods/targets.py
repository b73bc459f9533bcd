"""What masked patches are predicted against, and how far a prediction is off."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ddae_jax.hog import hog
from ddae_jax.models.vit import ViT
from ddae_jax.patches import normalize_patches, patch_statistics, patchify, unpatchify


def pixel_targets(
    images: Float[Array, "batch height width channels"], patch_size: int, normalize: bool
) -> Float[Array, "batch patches values"]:
    """The pixels of each patch, float32; each patch normalised by its own statistics if asked.

    Source: He et al. 2022, section 4.1 ("Reconstruction target").
    """
    patches = patchify(images.astype(jnp.float32), patch_size)
    return normalize_patches(patches) if normalize else patches


def show_pixels(encoder: ViT, is_normalized: bool) -> Callable[..., dict[str, Array]]:
    """``Method.show`` of an objective ``pixels``: ``reconstructions`` at each depth.

    They are images in the units of those given, of shape (depths, batch, height, width, channels);
    normalised predictions get the true patches' mean and deviation back.
    """

    def show(predictions, targets, teacher, images):
        patches = predictions["pixels"].astype(jnp.float32)
        if is_normalized:
            true_patches = patchify(images.astype(jnp.float32), encoder.patch_size)
            mean, deviation = patch_statistics(true_patches)
            patches = patches * deviation + mean
        return {"reconstructions": unpatchify(patches, encoder.grid, encoder.patch_size)}

    return show


def feature_error(
    predictions: Float[Array, "*batch width"], features: Float[Array, "*batch width"]
) -> Float[Array, "*batch"]:
    """Mean squared error of each patch against features, layer-normalised without affine.

    They are normalised here, and not among the targets, so that only those of hidden patches are.

    Source: Chen et al., DDAE; Baevski et al. 2022, data2vec, section 3.3.
    """
    return squared_error(predictions, normalize_features(features))


def normalize_features(
    features: Float[Array, "*batch width"], axes: int | tuple[int, ...] = -1, epsilon: float = 1e-6
) -> Float[Array, "*batch width"]:
    """Zero mean and unit variance over some axes, in float32; layer normalisation by default."""
    features = features.astype(jnp.float32)
    mean = features.mean(axis=axes, keepdims=True)
    variance = features.var(axis=axes, keepdims=True)
    return (features - mean) / jnp.sqrt(variance + epsilon)


FeatureNormalization = Literal["layer", "batch", "position", "instance"]

NORMALIZED_AXES: Mapping[FeatureNormalization, tuple[int, ...]] = MappingProxyType(
    {"layer": (-1,), "batch": (1, 2), "position": (1,), "instance": (2,)}
)
"""The axes of ``(depths, batch, patches, width)`` over which features are standardised.

``layer``: over a patch's values. The others standardise each dimension: over all patches of the
whole batch, over the batch at each place, or over the patches of an image.
"""


class FeatureStatistics(NamedTuple):
    """Means over a batch, as wide as features where they are not averaged over."""

    mean: Float[Array, "depths 1 #patches width"]
    mean_square: Float[Array, "depths 1 #patches width"]


def feature_statistics(
    features: Float[Array, "depths batch patches width"], normalization: FeatureNormalization
) -> FeatureStatistics:
    """What ``batch`` and ``position`` normalisation need; averages over equal parts of a batch."""
    features = features.astype(jnp.float32)
    axes = NORMALIZED_AXES[normalization]
    return FeatureStatistics(
        features.mean(axis=axes, keepdims=True), jnp.square(features).mean(axis=axes, keepdims=True)
    )


def standardize(
    features: Float[Array, "depths batch patches width"],
    statistics: FeatureStatistics,
    epsilon: float = 1e-6,
) -> Float[Array, "depths batch patches width"]:
    """Features of zero mean and unit variance, by given statistics; in their own dtype."""
    variance = jnp.maximum(statistics.mean_square - jnp.square(statistics.mean), 0)
    scaled = (features.astype(jnp.float32) - statistics.mean) / jnp.sqrt(variance + epsilon)
    return scaled.astype(features.dtype)


def hog_targets(
    images: Float[Array, "batch height width channels"], patch_size: int, cell_size: int
) -> Float[Array, "batch patches values"]:
    """The histograms of oriented gradients of each patch's cells, float32.

    Values of a patch: row of cells, column, channel, orientation. Raises ``ValueError`` if a patch
    is not made of whole cells.

    Source: Wei et al. 2022, MaskFeat, section 3.
    """
    check_cells(patch_size, cell_size)
    cells = hog(images, cell_size)
    return patchify(cells.reshape(*cells.shape[:3], -1), patch_size // cell_size)


def check_cells(patch_size: int, hog_cell: int) -> None:
    """Raises ``ValueError`` unless a patch is made of whole cells; sides in pixels."""
    if hog_cell < 1 or patch_size % hog_cell:
        raise ValueError(
            f"hog_cell={hog_cell} does not divide patch_size={patch_size}: a patch is made of "
            "whole cells"
        )


def cross_entropy(
    logits: Float[Array, "*batch codes"], tokens: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """``-log softmax(logits)[token]``, in float32; the tokens may have leading axes of size 1."""
    logits = logits.astype(jnp.float32)
    tokens = jnp.broadcast_to(tokens, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)


def absolute_error(
    predictions: Float[Array, "*batch values"], targets: Float[Array, "*batch values"]
) -> Float[Array, "*batch"]:
    """Mean absolute error of each patch, in float32."""
    return jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32)).mean(axis=-1)


def squared_error(
    predictions: Float[Array, "*batch values"], targets: Float[Array, "*batch values"]
) -> Float[Array, "*batch"]:
    """Mean squared error of each patch, in float32."""
    difference = predictions.astype(jnp.float32) - targets.astype(jnp.float32)
    return jnp.square(difference).mean(axis=-1)
