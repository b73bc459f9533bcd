"""The image figures: what a pixel shows, and what is refused."""

import numpy as np
import pytest

from ddae_jax.figures import predictions as figures
from ddae_jax.figures.predictions import (
    CAPTIONS,
    HIDDEN_COLOUR,
    code_colours,
    hide_patches,
    histograms_figure,
    paste_hidden,
    patch_map_to_image,
    reconstruction_figure,
    stars,
    supervision_figure,
    to_rgb_images,
    tokens_figure,
)
from drawn import has_colour, picture

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


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "grid", "depths"),
    [(1, 8, 8, 1, (4, 4), (1,)), (2, 16, 32, 3, (2, 4), (6, 8, 10, 12))],
)
def test_image_figures_show_what_is_hidden(tmp_path, batch, height, width, channels, grid, depths):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    mask = np.arange(grid[0] * grid[1])[None].repeat(batch, 0) % 3 > 0
    reconstructions = rng.uniform(size=(len(depths), *images.shape)).astype(np.float32)
    distance = mask.astype(np.float32)
    weights = np.where(mask, 1.0, 0.0) * np.ones((2, len(depths), 1, 1), np.float32)
    beta = np.zeros((2, len(depths)))

    reconstruction, supervision = tmp_path / "new folder" / "a.png", tmp_path / "b.png"
    reconstruction_figure(reconstruction, images, mask, grid, reconstructions, depths)
    supervision_figure(
        supervision, images, mask, grid, distance, weights, beta, ("pixels", "features"), depths
    )
    assert has_colour(picture(reconstruction), GREY)
    assert has_colour(picture(supervision), GREY)


@pytest.mark.filterwarnings("error")
def test_supervision_figure_survives_numbers_without_end(tmp_path):
    """An image that is hidden whole has infinite distances; an extreme beta, extreme weights."""
    mask = np.array([[True, True], [True, False]])
    distance = np.array([[np.inf, np.inf], [1.0, 0.0]])
    weights = np.array([[[[np.nan, np.nan], [1.0, 0.0]], [[np.inf, 1e30], [0.0, 0.0]]]])
    supervision_figure(
        tmp_path / "a.png",
        np.zeros((2, 4, 8, 1)),
        mask,
        (1, 2),
        distance,
        weights,
        np.array([[np.nan, -30.0]]),
        ("pixels",),
        (1, 2),
    )
    picture(tmp_path / "a.png")


def test_more_reconstructions_than_depths_are_refused(tmp_path):
    images, mask = np.zeros((1, 4, 4, 1)), np.ones((1, 4), bool)
    with pytest.raises(ValueError, match=r"reconstructions holds 2 entries; depths=\(12,\)"):
        reconstruction_figure(
            tmp_path / "a.png", images, mask, (2, 2), np.zeros((2, 1, 4, 4, 1)), (12,)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("depths", [(), (2, 5)])
def test_tokens_are_painted_by_their_codes(tmp_path, depths):
    rng = np.random.default_rng(0)
    images, codes = rng.uniform(size=(2, 8, 12, 3)), rng.normal(size=(10, 4))
    tokens = rng.integers(0, 10, (2, 6))
    mask = np.array([[1, 0, 1, 0, 1, 0]] * 2, bool) if depths else None
    predicted = np.stack([tokens, (tokens + 1) % 10])[: len(depths)]
    path = tmp_path / "a.png"
    tokens_figure(path, images, (2, 3), tokens, codes, mask, predicted, depths)
    shown, colours = picture(path), code_colours(codes)
    for token in np.unique(tokens):
        assert has_colour(shown, colours[token])
    assert has_colour(shown, GREY) == bool(depths)


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
    histograms[0, 0, 0, 0] = 1.0  # rises to the right: the edge is upright
    histograms[0, 0, 1, 4] = 1.0  # rises downwards: it lies
    directions = np.arange(9) * np.pi / 8
    drawn = stars(histograms, directions, side=17)
    upright, lying = np.split(drawn[0, :, :, 0], 2, axis=1)
    for star, axis in ((upright, 0), (lying, 1)):
        extent = [np.ptp(np.nonzero(star)[a]) for a in (0, 1)]
        assert extent[axis] > 4 * extent[1 - axis]
    np.testing.assert_array_equal(upright, upright[:, ::-1])
    np.testing.assert_array_equal(lying, lying[::-1])
    assert upright.max() == 1


def test_histograms_are_drawn_where_they_are_predicted(tmp_path):
    rng = np.random.default_rng(0)
    images, mask = rng.uniform(size=(2, 16, 16, 1)), np.array([[True, False, True, False]] * 2)
    histograms = rng.uniform(size=(2, 4, 4, 9)).astype(np.float32)
    path = tmp_path / "a.png"
    predicted = np.stack([histograms, 0 * histograms])
    of_both = {"histograms": histograms, "predicted": predicted, "directions": np.arange(9) / 3}
    histograms_figure(path, images, mask, (2, 2), **of_both, depths=(1, 2))
    assert has_colour(picture(path), GREY)
    with pytest.raises(ValueError, match="predicted holds 2 entries"):
        histograms_figure(path, images, mask, (2, 2), **of_both, depths=(1,))


def test_every_figure_has_a_caption():
    drawn = {name.removesuffix("_figure") for name in vars(figures) if name.endswith("_figure")}
    assert {name for name in drawn if name} == set(CAPTIONS)
