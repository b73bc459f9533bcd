"""The dynamic loss: errors of hidden patches weighed by distance ** beta. Pure functions.

Notation of docs/method.md: ``m`` mask (True = hidden), ``d`` distance map, ``dn = d / max d`` of
each image, ``e`` error of a patch, ``beta`` one learnable scalar per objective and depth::

    w_i  = dn_i ** beta
    L_os = sum_i m_i w_i e_osi / sum_i m_i
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddae_jax.patches import Grid

Weighting = Literal["power", "normalised"]

# exp(40) = 2.4e17: times an error, and summed over any batch, it still is a float32.
_MAX_LOG_WEIGHT = 40.0
_LARGEST = 1e38


def dynamic_weights(
    distance: Float[Array, "batch patches"],
    mask: Bool[Array, "batch patches"],
    beta: Float[Array, "..."],
    weighting: Weighting = "power",
) -> Float[Array, "... batch patches"]:
    """Weight of each hidden patch, ``dn ** beta``; 0 on visible patches.

    ``beta < 0`` favours patches near visible ones, ``beta = 0`` weighs all alike, ``beta > 0``
    favours distant ones. With ``power``, ``dn <= 1`` makes every weight's derivative by beta
    ``w log dn <= 0``, so gradient descent can only raise beta: training moves from near to far.
    ``normalised`` divides by the mean weight of the image's hidden patches; descent then lowers
    beta, to the easy patches. It is there for ablation.

    Args:
        distance: distance map, patches (see :func:`ddae_jax.distance.distance_map`).
        mask: True where hidden.
        beta: exponents, of any shape.
        weighting: ``"power"`` or ``"normalised"``.

    Returns:
        Weights of shape ``beta.shape + (batch, patches)``; finite for every finite beta; float32
        unless an argument is float64. Images whose hidden patches are all equally far, and images
        without any visible patch, have weight 1 on each hidden patch.

    Raises:
        ValueError: if ``weighting`` is neither.

    Source: Chen et al., DDAE, dynamic loss.
    """
    log_distance = _log_normalised_distance(distance, mask)
    log_weight = _at_least_float32(jnp.asarray(beta))[..., None, None] * log_distance
    if weighting == "power":
        weights = jnp.exp(jnp.minimum(log_weight, _MAX_LOG_WEIGHT))
        return jnp.where(mask, weights, 0)
    if weighting == "normalised":
        log_weight = jnp.clip(log_weight, -_LARGEST, _LARGEST)  # differences of them stay finite
        share = jax.nn.softmax(jnp.where(mask, log_weight, -jnp.inf), axis=-1, where=mask)
        return jnp.where(mask, share * mask.sum(axis=-1, keepdims=True), 0)
    raise ValueError(f"weighting={weighting!r}; known: 'power', 'normalised'")


def neighbourhood_weights(
    mask: Bool[Array, "batch patches"], grid: Grid
) -> Float[Array, "batch patches"]:
    """``1 +`` the hidden share of the 3x3 patches around each hidden patch; 0 on visible patches.

    A static relative of :func:`dynamic_weights`, to compare with: what is amid hidden patches
    counts for up to twice as much. What lies outside the image counts as visible.

    Args:
        mask: True where hidden.
        grid: ``(h, w)``, with ``h * w`` patches.

    Returns:
        float32 weights in [10/9, 2] on hidden patches.

    Source: Dong et al. 2022, "Bootstrapped Masked Autoencoders" (the authors' code).
    """
    hidden = mask.reshape(-1, *grid).astype(jnp.float32)
    padded = jnp.pad(hidden, ((0, 0), (1, 1), (1, 1)))
    h, w = grid
    around = sum(
        padded[:, row : row + h, column : column + w] for row in range(3) for column in range(3)
    )
    return jnp.where(mask, 1 + around.reshape(mask.shape) / 9, 0)


def masked_mean(
    errors: Float[Array, "... batch patches"],
    weights: Float[Array, "... batch patches"],
    mask: Bool[Array, "batch patches"],
) -> Float[Array, "..."]:
    """``sum_i m_i w_i e_i / sum_i m_i``, at least float32; 0 if nothing is hidden."""
    errors = jnp.where(mask, _at_least_float32(errors), 0)
    return (weights * errors).sum(axis=(-2, -1)) / jnp.maximum(mask.sum(), 1)


def dynamic_loss(
    errors: Float[Array, "... batch patches"],
    distance: Float[Array, "batch patches"],
    mask: Bool[Array, "batch patches"],
    beta: Float[Array, "..."],
    weighting: Weighting = "power",
) -> Float[Array, "..."]:
    """Weighted mean error of the hidden patches, ``L_os``, one for each beta.

    With ``beta = 0`` it is the plain masked mean, MAE's loss.

    Args:
        errors: error of each patch; leading axes as in ``beta``; visible patches' are ignored.
        distance: distance map, patches.
        mask: True where hidden.
        beta: exponents.
        weighting: see :func:`dynamic_weights`.

    Returns:
        Losses of ``beta``'s shape, at least float32; 0 if nothing is hidden.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Chen et al., DDAE; docs/method.md.
    """
    beta = jnp.asarray(beta)
    if errors.shape != (*beta.shape, *mask.shape):
        raise ValueError(
            f"errors have shape {errors.shape}; beta {beta.shape} and mask {mask.shape} ask for "
            f"{(*beta.shape, *mask.shape)}"
        )
    return masked_mean(errors, dynamic_weights(distance, mask, beta, weighting), mask)


def _log_normalised_distance(
    distance: Float[Array, "batch patches"], mask: Bool[Array, "batch patches"]
) -> Float[Array, "batch patches"]:
    """``log(d / max d)``, at most 0; 0 on visible patches and where nothing is visible."""
    distance = _at_least_float32(distance)
    is_measured = mask & jnp.isfinite(distance)
    safe = jnp.where(is_measured, distance, 1)
    farthest = jnp.where(is_measured, distance, 0).max(axis=-1, keepdims=True)
    farthest = jnp.where(farthest > 0, farthest, 1)
    return jnp.where(is_measured, jnp.log(safe / farthest), 0)


def _at_least_float32(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
