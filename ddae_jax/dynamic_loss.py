"""The dynamic loss: errors of hidden patches, weighted by distance ** beta. Pure functions.

Notation of docs/method.md: ``m`` mask (True = hidden), ``d`` distance map, ``dn = d / max d`` of
each image, ``e`` error of a patch, ``beta`` one learnable scalar per objective and depth::

    w_i  = dn_i ** beta
    L_os = sum_i m_i w_i e_osi / sum_i m_i
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ddae_jax.patches import Grid

Weighting = Literal["power", "normalised"]

# exp(40) = 2.4e17: times an error and summed over any batch, it still fits into a float32.
_MAX_LOG_WEIGHT = 40.0
_LARGEST = 1e38


def dynamic_weights(
    distance: Float[ArrayLike, "batch patches"],
    mask: Bool[ArrayLike, "batch patches"],
    beta: Float[ArrayLike, "*readouts"],
    weighting: Weighting = "power",
) -> Float[Array, "*readouts batch patches"]:
    """Returns the weight of each hidden patch, ``dn ** beta``, and 0 on visible patches.

    ``beta < 0`` favours patches near visible ones, ``beta = 0`` weights all alike, ``beta > 0``
    favours distant ones. With ``power``, ``dn <= 1`` makes every weight's derivative by beta
    ``w log dn <= 0``, so gradient descent can only raise beta: training moves from near to far.
    ``normalised`` divides by the mean weight of the image's hidden patches; descent then lowers
    beta, towards the easy patches. It exists for ablations.

    Args:
        distance: distance map, patches (see :func:`ddae_jax.distance.distance_map`).
        mask: True where hidden.
        beta: exponents, of any shape.
        weighting: ``"power"`` or ``"normalised"``.

    Returns:
        Weights of shape ``beta.shape + (batch, patches)``, finite for every finite beta; float32
        unless an argument is float64. Where an image's hidden patches are all equally far, or it
        has no visible patch, every hidden patch has weight 1.

    Raises:
        ValueError: if ``weighting`` is neither of the two.

    Source: Chen et al., DDAE, dynamic loss.
    """
    distance, mask = jnp.asarray(distance), jnp.asarray(mask)
    log_distance = _log_normalised_distance(distance, mask)
    log_weight = _at_least_float32(jnp.asarray(beta))[..., None, None] * log_distance
    if weighting == "power":
        weights = jnp.exp(jnp.minimum(log_weight, _MAX_LOG_WEIGHT))
        return jnp.where(mask, weights, 0)
    if weighting == "normalised":
        log_weight = jnp.clip(log_weight, -_LARGEST, _LARGEST)  # so that differences stay finite
        share = jax.nn.softmax(jnp.where(mask, log_weight, -jnp.inf), axis=-1, where=mask)
        return jnp.where(mask, share * mask.sum(axis=-1, keepdims=True), 0)
    raise ValueError(f"weighting={weighting!r}; known: 'power', 'normalised'")


def neighbourhood_weights(
    mask: Bool[ArrayLike, "batch patches"], grid: Grid
) -> Float[Array, "batch patches"]:
    """Returns ``1 +`` the hidden share of the 3x3 patches around a hidden patch; 0 on visible ones.

    It is a static alternative to :func:`dynamic_weights`, for comparison: a patch surrounded by
    hidden patches weighs up to twice as much. Places outside the image count as visible.

    Args:
        mask: True where hidden.
        grid: ``(h, w)``, with ``h * w`` patches.

    Returns:
        float32 weights in [10/9, 2] on hidden patches.

    Source: Dong et al. 2022, "Bootstrapped Masked Autoencoders" (the authors' code).
    """
    mask = jnp.asarray(mask)
    hidden = mask.reshape(-1, *grid).astype(jnp.float32)
    padded = jnp.pad(hidden, ((0, 0), (1, 1), (1, 1)))
    h, w = grid
    num_hidden = sum(
        padded[:, row : row + h, column : column + w] for row in range(3) for column in range(3)
    )
    return jnp.where(mask, 1 + num_hidden.reshape(mask.shape) / 9, 0)


def masked_mean(
    errors: Float[ArrayLike, "*readouts batch patches"],
    weights: Float[ArrayLike, "*#readouts batch patches"] | Bool[ArrayLike, "batch patches"],
    mask: Bool[ArrayLike, "batch patches"],
) -> Float[Array, "*readouts"]:
    """Returns ``sum_i m_i w_i e_i / sum_i m_i``, at least in float32; 0 if nothing is hidden.

    The mask itself, as ``weights``, weights all hidden patches equally.
    """
    mask, weights = jnp.asarray(mask), jnp.asarray(weights)
    errors = jnp.where(mask, _at_least_float32(jnp.asarray(errors)), 0)
    return (weights * errors).sum(axis=(-2, -1)) / jnp.maximum(mask.sum(), 1)


def dynamic_loss(
    errors: Float[ArrayLike, "*readouts batch patches"],
    distance: Float[ArrayLike, "batch patches"],
    mask: Bool[ArrayLike, "batch patches"],
    beta: Float[ArrayLike, "*readouts"],
    weighting: Weighting = "power",
) -> Float[Array, "*readouts"]:
    """Returns the weighted mean error of the hidden patches, ``L_os``, one for each beta.

    With ``beta = 0`` it is the plain masked mean, MAE's loss.

    Args:
        errors: error of each patch, with the leading axes of ``beta``; those of visible patches
            are ignored.
        distance: distance map, patches.
        mask: True where hidden.
        beta: exponents.
        weighting: see :func:`dynamic_weights`.

    Returns:
        Losses in the shape of ``beta``, at least in float32; 0 if nothing is hidden.

    Raises:
        ValueError: if the shape of ``errors`` is not ``beta.shape + (batch, patches)``.

    Source: Chen et al., DDAE; docs/method.md.
    """
    errors, mask, beta = jnp.asarray(errors), jnp.asarray(mask), jnp.asarray(beta)
    if errors.shape != (*beta.shape, *mask.shape):
        raise ValueError(
            f"errors have shape {errors.shape}; beta {beta.shape} and mask {mask.shape} ask for "
            f"{(*beta.shape, *mask.shape)}"
        )
    return masked_mean(errors, dynamic_weights(distance, mask, beta, weighting), mask)


def _log_normalised_distance(
    distance: Float[Array, "batch patches"], mask: Bool[Array, "batch patches"]
) -> Float[Array, "batch patches"]:
    """Returns ``log(d / max d)``, at most 0; 0 on visible patches and where nothing is visible."""
    distance = _at_least_float32(distance)
    is_measured = mask & jnp.isfinite(distance)
    safe = jnp.where(is_measured, distance, 1)
    farthest = jnp.where(is_measured, distance, 0).max(axis=-1, keepdims=True)
    farthest = jnp.where(farthest > 0, farthest, 1)
    return jnp.where(is_measured, jnp.log(safe / farthest), 0)


def _at_least_float32(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
