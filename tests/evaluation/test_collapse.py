"""Tests of collapse metrics against NumPy, SciPy and sums by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddae_jax import random_mask
from ddae_jax.evaluation.collapse import (
    effective_rank,
    make_collapse_metrics,
    mean_deviation,
    position_share,
)
from ddae_jax.methods.ddae import ddae
from ddae_jax.methods.mae import mae
from ddae_jax.models.vit import ViT
from ddae_jax.training.sharding import make_mesh

ENCODER = ViT((8, 8), patch_size=4, width=8, depth=2, num_heads=2, mlp_ratio=2.0)
COUNT = 5  # number of images, which no mesh of eight devices divides


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rank_by_numpy(embeddings):
    centred = embeddings.astype(np.float64) - embeddings.astype(np.float64).mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    return np.exp(scipy.stats.entropy(singular))


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (12, 12)])
def test_effective_rank_is_the_entropy_of_numpys_singular_values(shape):
    embeddings = drawn(*shape) * np.geomspace(1, 1e-3, shape[1], dtype=np.float32) + 3
    np.testing.assert_allclose(effective_rank(embeddings), rank_by_numpy(embeddings), rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_orthogonal_directions_of_one_length_are_k(k):
    basis, _ = np.linalg.qr(drawn(9, 9))
    directions = 4 * basis[:k].astype(np.float32)
    np.testing.assert_allclose(
        effective_rank(np.concatenate([directions, -directions])), k, rtol=1e-4
    )


def test_what_all_images_have_in_common_hides_no_direction():
    embeddings = drawn(30, 6)
    np.testing.assert_allclose(
        effective_rank(embeddings + 100), effective_rank(embeddings), rtol=1e-3
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e5])
def test_equal_embeddings_have_rank_1_though_rounding_tells_them_apart(constant):
    row = np.full((20, 8), constant, np.float32) * np.arange(8, dtype=np.float32)
    assert effective_rank(row) == 1
    last_bit = np.where(drawn(20, 8) > 0, np.float32(2**-23), 0)
    assert effective_rank(row * (1 + last_bit)) == 1


@given(arrays(np.float32, (6, 4), elements=st.floats(-1e3, 1e3, width=32)))
def test_rank_deviation_and_share_stay_within_their_bounds(values):
    assert 1 <= effective_rank(values) <= 4 * (1 + 1e-5)
    assert 0 <= mean_deviation(values) <= 1 + 1e-5
    assert 0 <= position_share(values[:, None]) <= 1


def test_mean_deviation_is_that_of_scores_by_scipy_and_has_no_unit():
    embeddings = drawn(30, 16) + 2 * drawn(16, seed=1)
    by_scipy = scipy.stats.zscore(embeddings, axis=1).std(axis=0).mean()
    np.testing.assert_allclose(mean_deviation(embeddings), by_scipy, rtol=1e-4)
    np.testing.assert_allclose(mean_deviation(50 * embeddings + 7), by_scipy, rtol=1e-4)
    scaled = np.geomspace(1, 9, 30)[:, None] * embeddings[0]
    np.testing.assert_allclose(mean_deviation(scaled), 0, atol=1e-4)


def test_position_share_by_hand():
    # Values 3 and 1 (mean 2) at one position, 0 and 2 (mean 1) at another: the residual is 4 of 14.
    targets = np.array([[[3.0], [0.0]], [[1.0], [2.0]]])
    np.testing.assert_allclose(position_share(targets), 10 / 14, rtol=1e-6)


def test_position_share_is_1_of_what_is_the_same_in_all_images_and_of_nothing():
    at_places = drawn(1, 4, 8)
    np.testing.assert_allclose(position_share(np.repeat(at_places, 6, axis=0)), 1, atol=1e-6)
    assert position_share(np.zeros((6, 4, 8))) == 1


def test_position_share_is_0_of_what_has_mean_0_at_each_place():
    targets = scipy.stats.zscore(drawn(6, 4, 8) + 5 * drawn(1, 4, 8, seed=1), axis=0)
    np.testing.assert_allclose(position_share(targets), 0, atol=1e-6)


def method_of(make, **options):
    return make(
        ENCODER,
        None,
        sample_mask=functools.partial(random_mask, grid=(2, 2), num_masked=2),
        num_masked=2,
        depths=(1, 2),
        **options,
    )


@pytest.fixture(scope="module")
def student():
    return jax.jit(ENCODER.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


@pytest.fixture(scope="module")
def teacher():
    return jax.jit(ENCODER.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))["params"]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)


def normalize(images):
    return images / 127.5 - 1


NORMALIZED = {"layer": -1, "batch": (0, 1), "position": (0, 1), "instance": 1}
"""Axes of (batch, patches, width) over which the watched features are standardised."""


@pytest.mark.slow
@pytest.mark.parametrize(("normalization", "axes"), NORMALIZED.items())
def test_features_are_looked_at_as_predictions_are_compared_with_them_but_by_place(
    normalization, axes, teacher, images
):
    method = method_of(ddae, mode="deep", feature_normalization=normalization)
    seen = normalize(images).astype(np.float32)
    found = np.asarray(method.watched_features(teacher, seen))
    raw = ENCODER.apply({"params": teacher}, seen, depths=(1, 2), normalize=False).patches
    for depth in range(2):
        by_scipy = scipy.stats.zscore(np.asarray(raw[depth], np.float64), axis=axes)
        np.testing.assert_allclose(found[depth], by_scipy, atol=2e-4)
    if normalization == "position":  # it would make the mean at each position 0
        return
    predictions = drawn(2, COUNT, 4, 8)
    errors = method.objectives["features"].error(
        predictions, method.targets(teacher, seen)["features"]
    )
    np.testing.assert_allclose(errors, ((predictions - found) ** 2).mean(axis=-1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8])
def test_metrics_are_those_of_student_and_teacher_on_any_devices(
    num_devices, student, teacher, images
):
    method = method_of(ddae, mode="deep")
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    found = make_collapse_metrics(method, normalize, mesh)(student, teacher, images)
    expected = {}
    for name, params in (("student", student), ("teacher", teacher)):
        patches = ENCODER.apply({"params": params}, normalize(images)).patches[0]
        embeddings = np.asarray(patches).mean(axis=1)
        expected[f"rank/{name}"] = rank_by_numpy(embeddings)
        scores = scipy.stats.zscore(embeddings, axis=1)
        expected[f"deviation/{name}"] = scores.std(axis=0).mean()
    raw = ENCODER.apply({"params": teacher}, normalize(images), depths=(1, 2), normalize=False)
    targets = scipy.stats.zscore(np.asarray(raw.patches, np.float64), axis=-1)
    for depth, of_depth in enumerate(targets, start=1):
        rest = ((of_depth - of_depth.mean(axis=0)) ** 2).sum()
        expected[f"position_share/depth_{depth}"] = 1 - rest / (of_depth**2).sum()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("make", "options"), [(mae, {}), (ddae, {"feature_weight": 0.0})], ids=["mae", "ddae"]
)
def test_a_method_without_a_teacher_is_looked_at_alone(make, options, student, images):
    method = method_of(make, mode="deep", **options)
    found = make_collapse_metrics(method, normalize, make_mesh())(student, {}, images)
    assert found.keys() == {"rank/student", "deviation/student"}
