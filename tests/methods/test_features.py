"""Features as targets: statistics, normalisation, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.methods.features import (
    NORMALIZED_AXES,
    FeatureTargets,
    feature_statistics,
    merge_statistics,
    normalize_features,
    standardize,
)
from ddae_jax.models.vit import ViT

SHAPE = (2, 12, 5, 4)  # depths, batch, patches, width


def features_of(mean=0.0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).normal(mean, 2, SHAPE), dtype)


def test_features_are_normalised_by_hand():
    # mean 2, variance (4 + 0 + 0 + 4) / 4 = 2
    targets = normalize_features(jnp.array([0.0, 2.0, 2.0, 4.0]))
    np.testing.assert_allclose(targets, np.array([-2, 0, 0, 2]) / 2**0.5, rtol=1e-5)


def test_normalised_features_have_mean_zero_and_variance_one_in_float32():
    features = np.random.default_rng(0).normal(3, 5, (2, 4, 7, 64))
    targets = normalize_features(jnp.asarray(features, "bfloat16"))
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(np.mean(targets, axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(np.var(targets, axis=-1), 1, atol=1e-5)


def test_features_that_are_all_equal_are_normalised_to_zeros():
    np.testing.assert_array_equal(normalize_features(jnp.full((3, 8), 5.0)), np.zeros((3, 8)))


@pytest.mark.parametrize("normalization", ["batch", "position"])
@pytest.mark.parametrize("mean", [0.0, 3000.0])
def test_statistics_of_parts_make_those_of_the_whole_however_large_the_mean(normalization, mean):
    features = features_of(mean)
    parts = jnp.split(features, 4, axis=1)
    of_parts = jax.tree.map(
        lambda *values: jnp.stack(values),
        *(feature_statistics(part, normalization) for part in parts),
    )
    merged = merge_statistics(of_parts)
    exact = np.asarray(features, np.float64)
    axes = NORMALIZED_AXES[normalization]
    np.testing.assert_allclose(merged.mean, exact.mean(axes, keepdims=True), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(merged.variance, exact.var(axes, keepdims=True), rtol=1e-3)


def test_what_a_dtype_cannot_resolve_beside_its_mean_is_nearly_0_and_no_noise():
    """A bfloat16 of 1000 is a multiple of 4: deviations of 0.01 are lost, those of 30 are not."""
    drawn = np.random.default_rng(0).normal(0, 1, SHAPE)
    drawn[0] = 1000 + 0.01 * drawn[0]
    drawn[0, 0, 0] = 1004  # the only value that rounds to another number
    drawn[1] = 1000 + 30 * drawn[1]
    features = jnp.asarray(drawn, jnp.bfloat16)
    found = standardize(features, feature_statistics(features, "batch"))
    assert found.dtype == jnp.bfloat16
    lost, kept = np.asarray(found, np.float32)
    assert lost.std() < 0.1
    np.testing.assert_allclose(kept.std(), 1, atol=0.05)


@pytest.mark.parametrize("normalization", NORMALIZED_AXES)
def test_a_prediction_that_is_right_up_to_scale_has_no_error_where_both_are_normalised(
    normalization,
):
    """Also if only some patches are predicted, different ones in each image."""
    targets = FeatureTargets(ViT((4, 4), 2, 8, 1, 2), (1, 2), normalization)
    features = features_of(3.0)
    wanted = features
    if normalization != "layer":
        wanted = standardize(features, feature_statistics(features, normalization))
    chosen = np.stack([np.random.default_rng(i).permutation(5)[:3] for i in range(12)])
    some = jnp.take_along_axis(wanted, jnp.asarray(chosen)[None, :, :, None], axis=2)
    error = targets.error(normalizes_predictions=True)
    np.testing.assert_allclose(error(7 * some - 2, some), 0, atol=1e-5)
    assert error(some[:, ::-1], some).mean() > 0.5
    assert targets.error(normalizes_predictions=False)(7 * some - 2, some).mean() > 0.5
