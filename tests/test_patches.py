"""Images as patches: the order of rows, columns and channels, the way back, the statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddae_jax.patches import (
    normalize_patches,
    patch_grid,
    patch_statistics,
    patchify,
    unpatchify,
)

small = st.integers(1, 3)


def images_of(batch: int, height: int, width: int, channels: int) -> np.ndarray:
    """Images in which no two values are equal."""
    size = batch * height * width * channels
    return np.arange(size, dtype=np.float32).reshape(batch, height, width, channels)


def test_patches_are_counted_row_by_row_and_their_values_row_column_channel():
    images = images_of(2, 6, 4, 3)
    patches = np.asarray(patchify(images, 2))
    assert patches.shape == (2, 6, 12)
    for image in range(2):
        for row in range(3):
            for column in range(2):
                cut = images[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                np.testing.assert_array_equal(patches[image, row * 2 + column], cut.ravel())


@pytest.mark.slow
@settings(max_examples=15)
@given(h=small, w=small, patch_size=small, channels=small, batch=small)
def test_unpatchify_is_the_inverse_of_patchify(h, w, patch_size, channels, batch):
    images = images_of(batch, h * patch_size, w * patch_size, channels)
    patches = patchify(images, patch_size)
    np.testing.assert_array_equal(unpatchify(patches, (h, w), patch_size), images)


def test_unpatchify_keeps_any_leading_axes():
    images = images_of(6, 4, 8, 2)
    patches = patchify(images, 4).reshape(2, 3, 2, 32)
    np.testing.assert_array_equal(
        unpatchify(patches, (1, 2), 4), images.reshape(2, 3, *images.shape[1:])
    )
    np.testing.assert_array_equal(unpatchify(patches[0, 0], (1, 2), 4), images[0])


def test_patchify_keeps_the_type_and_compiles():
    images = images_of(1, 4, 4, 1).astype(np.uint8)
    patches = jax.jit(patchify, static_argnums=1)(images, 2)
    assert patches.dtype == jnp.uint8
    np.testing.assert_array_equal(patches[0, 3], [10, 11, 14, 15])


@pytest.mark.parametrize(
    ("image_size", "patch_size", "grid"),
    [((224, 224), 16, (14, 14)), ((8, 24), 4, (2, 6)), ((5, 7), 1, (5, 7)), ((3, 3), 3, (1, 1))],
)
def test_patch_grid_counts_rows_and_columns(image_size, patch_size, grid):
    assert patch_grid(image_size, patch_size) == grid


@pytest.mark.parametrize(
    ("image_size", "patch_size", "nearest"),
    [((224, 225), 16, "(224, 224)"), ((30, 32), 8, "(32, 32)"), ((9, 8), 8, "(8, 8)")],
)
def test_a_size_that_no_patches_tile_is_an_error_naming_the_nearest_that_is(
    image_size, patch_size, nearest
):
    with pytest.raises(ValueError, match="not divisible") as error:
        patch_grid(image_size, patch_size)
    assert nearest in str(error.value)
    assert str(image_size) in str(error.value)
    with pytest.raises(ValueError, match="not divisible"):
        patchify(np.zeros((1, *image_size, 3)), patch_size)


@pytest.mark.parametrize(("image_size", "patch_size"), [((8, 4), 8), ((0, 8), 8), ((8, 8), 0)])
def test_an_image_smaller_than_a_patch_is_an_error(image_size, patch_size):
    with pytest.raises(ValueError, match="at least one patch"):
        patch_grid(image_size, patch_size)


def test_normalised_patch_by_hand():
    # mean 3, deviations -2, -1, 0, 3, unbiased variance (4 + 1 + 0 + 9) / 3 = 14/3 = 2.1602...**2
    normalised = normalize_patches(jnp.array([1.0, 2.0, 3.0, 6.0]))
    np.testing.assert_allclose(normalised, np.array([-2, -1, 0, 3]) / (14 / 3) ** 0.5, rtol=1e-6)


def test_statistics_are_numpys_unbiased_ones_and_undo_the_normalisation():
    patches = np.random.default_rng(0).normal(2, 3, (2, 5, 48)).astype(np.float32)
    mean, deviation = patch_statistics(patches)
    assert mean.shape == deviation.shape == (2, 5, 1)
    expected = patches.astype(np.float64)
    np.testing.assert_allclose(mean[..., 0], expected.mean(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(deviation[..., 0], expected.std(-1, ddof=1), rtol=1e-5)
    undone = normalize_patches(patches) * deviation + mean
    np.testing.assert_allclose(undone, patches, rtol=1e-5, atol=1e-5)


def test_a_patch_of_one_colour_normalises_to_zero():
    np.testing.assert_array_equal(normalize_patches(jnp.full((1, 16), 0.25)), np.zeros((1, 16)))


def test_a_patch_of_one_value_cannot_be_normalised_and_says_what_to_change():
    with pytest.raises(ValueError, match="normalize_pixels=False"):
        normalize_patches(jnp.ones((4, 1)))
