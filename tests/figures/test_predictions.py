"""Tests of figures of predictions: what they show, and what is refused."""

import numpy as np
import pytest

from ddae_jax.figures import predictions as figures
from ddae_jax.figures.images import HIDDEN_COLOUR, code_colours
from ddae_jax.figures.predictions import (
    CAPTIONS,
    histograms_figure,
    reconstruction_figure,
    supervision_figure,
    tokens_figure,
)
from drawn import has_colour, picture

GREY = np.array(HIDDEN_COLOUR, np.float32)


@pytest.mark.slow
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
    """A wholly hidden image has infinite distances, and an extreme beta has extreme weights."""
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
