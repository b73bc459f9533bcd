"""What masked patches are predicted against, and how far a prediction is off."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae_jax.patches import Grid, normalize_patches, patch_statistics, patchify, unpatchify


def pixel_targets(
    images: Float[Array, "batch height width channels"], patch_size: int, normalize: bool
) -> Float[Array, "batch patches values"]:
    """The pixels of each patch, float32; each patch normalised by its own statistics if asked.

    Source: He et al. 2022, section 4.1 ("Reconstruction target").
    """
    patches = patchify(images.astype(jnp.float32), patch_size)
    return normalize_patches(patches) if normalize else patches


def images_from_pixel_predictions(
    predictions: Float[Array, "depths batch patches values"],
    images: Float[Array, "batch height width channels"],
    grid: Grid,
    patch_size: int,
    is_normalized: bool,
) -> Float[Array, "depths batch height width channels"]:
    """Predicted pixels as images; normalised ones get the true patches' mean and deviation back."""
    predictions = predictions.astype(jnp.float32)
    if is_normalized:
        mean, deviation = patch_statistics(patchify(images.astype(jnp.float32), patch_size))
        predictions = predictions * deviation + mean
    return unpatchify(predictions, grid, patch_size)


def feature_targets(
    features: Float[Array, "*batch width"], epsilon: float = 1e-6
) -> Float[Array, "*batch width"]:
    """Teacher features, layer-normalised without affine, float32.

    Source: Chen et al., DDAE; Baevski et al. 2022, data2vec, section 3.3.
    """
    features = features.astype(jnp.float32)
    mean = features.mean(axis=-1, keepdims=True)
    variance = features.var(axis=-1, keepdims=True)
    return (features - mean) / jnp.sqrt(variance + epsilon)


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
