"""Targets and errors, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.methods.targets import (
    pixel_targets,
    squared_error,
    visualize_pixels,
)
from ddae_jax.models.vit import ViT


def images_of(channels=3, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(1, 2, (2, 4, 6, channels)).astype(dtype)


def test_pixel_targets_are_the_pixels_of_each_patch():
    images = images_of()
    targets = np.asarray(pixel_targets(images, 2, normalize=False))
    assert targets.shape == (2, 6, 12)
    # Patch 4 of a 2x3 grid: second row, second column.
    np.testing.assert_array_equal(targets[1, 4], images[1, 2:4, 2:4].ravel())


def test_normalised_pixel_targets_have_each_patchs_own_statistics():
    images = images_of().astype(np.float64)
    targets = pixel_targets(images, 2, normalize=True)
    patch = images[0, 2:4, 4:6].ravel()
    expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(targets[0, 5], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_targets_are_float32_even_of_bfloat16_images(normalize):
    assert pixel_targets(jnp.asarray(images_of(), "bfloat16"), 2, normalize).dtype == jnp.float32


def shown(predictions, images, normalize):
    encoder = ViT((4, 6), 2, width=8, depth=1, num_heads=2)
    show = visualize_pixels(encoder, normalize)
    return show({"pixels": jnp.asarray(predictions)}, {}, {}, images)["reconstructions"]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_perfect_predictions_become_the_original_images(normalize, channels):
    images = images_of(channels)
    perfect = jnp.stack([pixel_targets(images, 2, normalize)] * 3)
    restored = shown(perfect, images, normalize)
    assert restored.shape == (3, *images.shape)
    np.testing.assert_allclose(restored, np.stack([images] * 3), rtol=1e-5, atol=1e-5)


def test_normalised_predictions_of_zero_become_each_patchs_mean_colour():
    images = images_of(1)
    restored = shown(np.zeros((1, 2, 6, 4), np.float32), images, True)
    means = images.reshape(2, 2, 2, 3, 2).mean(axis=(2, 4))  # batch, row, column
    expected = means.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(restored[0, ..., 0], expected, rtol=1e-5, atol=1e-6)


def test_squared_error_is_the_mean_over_the_values_of_a_patch():
    predictions = jnp.array([[1.0, 2.0], [0.0, -3.0]])
    targets = jnp.array([[1.0, 4.0], [1.0, 0.0]])
    np.testing.assert_array_equal(squared_error(predictions, targets), [2.0, 5.0])


def test_squared_error_is_computed_in_float32():
    # In bfloat16, 1 + 1/256 is 1 and the sum of 1024 squares stalls.
    predictions = jnp.full((1, 1024), 1.0, jnp.bfloat16)
    targets = jnp.full((1, 1024), 1 + 1 / 256, jnp.float32)
    error = squared_error(predictions, targets)
    assert error.dtype == jnp.float32
    np.testing.assert_allclose(error, [2.0**-16], rtol=1e-6)
