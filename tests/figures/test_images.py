"""Tests of image arrays for figures: the value of each pixel."""

import numpy as np
import pytest

from ddae_jax.figures.images import (
    HIDDEN_COLOUR,
    code_colours,
    hide_patches,
    paste_hidden,
    patch_map_to_image,
    stars,
    to_rgb_images,
)

GREY = np.array(HIDDEN_COLOUR, np.float32)


def test_patch_map_spreads_each_value_over_the_pixels_of_its_patch():
    on_pixels = patch_map_to_image(np.arange(6), (2, 3), (4, 3))
    np.testing.assert_array_equal(on_pixels, [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]])


def test_patch_map_keeps_leading_axes():
    values = np.arange(12.0).reshape(2, 3, 2)
    on_pixels = patch_map_to_image(values, (1, 2), (2, 4))
    assert on_pixels.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(on_pixels[1, 2], [[10, 10, 11, 11]] * 2)


@pytest.mark.parametrize(
    ("grid", "size", "message"),
    [((2, 2), (4, 4), "6 patches; a grid of 2x2 has 4"), ((2, 3), (4, 4), "4x4 pixels")],
)
def test_patch_map_that_does_not_fit_is_refused(grid, size, message):
    with pytest.raises(ValueError, match=message):
        patch_map_to_image(np.zeros((1, 6)), grid, size)


def test_hidden_patches_are_grey_exactly_where_the_mask_says():
    images = np.linspace(0, 1, 2 * 2 * 6, dtype=np.float32).reshape(1, 4, 6, 1)
    mask = np.array([[True, False, False, False, False, True]])
    shown = hide_patches(images, mask, (2, 3))
    expected = np.repeat(images, 3, axis=-1)
    expected[0, :2, :2] = GREY
    expected[0, 2:, 4:] = GREY
    np.testing.assert_array_equal(shown, expected)


def test_hidden_patches_take_the_given_colour_and_each_image_its_own_mask():
    images = np.zeros((2, 2, 4, 3), np.uint8)
    shown = hide_patches(images, np.array([[True, False], [False, True]]), (1, 2), (1, 0, 0))
    np.testing.assert_array_equal(shown[..., 0], [[[1, 1, 0, 0]] * 2, [[0, 0, 1, 1]] * 2])
    np.testing.assert_array_equal(shown[..., 1:], 0)


def test_no_grey_image_contains_the_hidden_colour():
    assert len(set(HIDDEN_COLOUR)) == 3


def test_reconstruction_is_pasted_into_hidden_patches_only():
    images, restored = np.zeros((1, 2, 4, 1), np.float32), np.ones((1, 2, 4, 1), np.float32)
    shown = paste_hidden(images, restored, np.array([[False, True]]), (1, 2))
    np.testing.assert_array_equal(shown[0, ..., 0], [[0, 0, 1, 1]] * 2)


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        (np.array([255, 51, 0], np.uint8), [1.0, 0.2, 0.0]),
        (np.array([1.5, 0.5, -1.0], np.float32), [1.0, 0.5, 0.0]),
        (np.array([0.25], np.float32), [0.25, 0.25, 0.25]),
        (np.array([0.25, 0.75], np.float32), [0.25, 0.25, 0.25]),
        (np.array([0.1, 0.2, 0.3, 0.4], np.float32), [0.1, 0.2, 0.3]),
        (np.array([np.nan, 1.0, 1.0], np.float32), [0.0, 1.0, 1.0]),
    ],
)
def test_any_image_becomes_rgb_between_zero_and_one(pixel, expected):
    shown = to_rgb_images(pixel.reshape(1, 1, 1, -1))
    np.testing.assert_allclose(shown[0, 0, 0], expected, rtol=1e-6)


def test_like_codes_have_like_colours():
    around = np.eye(4)[:, None] + np.random.default_rng(0).normal(0, 0.01, (4, 5, 4))
    colours = code_colours(around.reshape(20, 4)).reshape(4, 5, 3)
    assert colours.shape == (4, 5, 3)
    assert 0 <= colours.min() <= colours.max() <= 1
    within = np.linalg.norm(colours - colours.mean(1, keepdims=True), axis=-1).mean()
    between = np.linalg.norm(colours.mean(1) - colours.mean((0, 1)), axis=-1).mean()
    assert between > 2 * within
    assert code_colours(np.ones((2, 1))).shape == (2, 3)


def test_a_star_s_line_runs_along_the_edge():
    histograms = np.zeros((1, 1, 2, 9), np.float32)
    histograms[0, 0, 0, 0] = 1.0  # the gradient points to the right: the edge is vertical
    histograms[0, 0, 1, 4] = 1.0  # the gradient points down: the edge is horizontal
    directions = np.arange(9) * np.pi / 8
    drawn = stars(histograms, directions, side=17)
    upright, lying = np.split(drawn[0, :, :, 0], 2, axis=1)
    for star, axis in ((upright, 0), (lying, 1)):
        extent = [np.ptp(np.nonzero(star)[a]) for a in (0, 1)]
        assert extent[axis] > 4 * extent[1 - axis]
    np.testing.assert_array_equal(upright, upright[:, ::-1])
    np.testing.assert_array_equal(lying, lying[::-1])
    assert upright.max() == 1
