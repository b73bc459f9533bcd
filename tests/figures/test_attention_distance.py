"""Tests of the figure and the table of attention distances."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ddae_jax.evaluation.attention_distance import Locality
from ddae_jax.figures import style
from ddae_jax.figures.attention_distance import locality_figure, locality_table
from drawn import has_colour, picture


def a_locality(depth=3, heads=2, grid=(3, 3), patch_size=4, radii=(1.0, 2.0)):
    rng = np.random.default_rng(depth)
    mass = {radius: rng.uniform(0.4, 0.9, (depth, heads)) for radius in radii}
    return Locality(rng.uniform(0.5, 1.5, (depth, heads)), mass, 355, grid, patch_size)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 4), (4, 8)], ids=["pixels too", "patches only"])
def test_every_encoder_is_drawn_in_its_colour(tmp_path, sizes):
    localities = {
        "ddae": a_locality(patch_size=sizes[0]),
        "mae": a_locality(depth=6, heads=3, patch_size=sizes[1]),
    }
    locality_figure(tmp_path / "figures" / "attention.png", localities)
    pixels = picture(tmp_path / "figures" / "attention.png")
    colours = style.categorical_colours(localities)
    assert len(set(colours.values())) == 2
    for colour in (*colours.values(), style.MUTED):
        assert has_colour(pixels, to_rgb(colour))


def test_more_encoders_than_colours_can_be_drawn():
    colours = style.categorical_colours("abcdefgh")
    assert list(colours) == list("abcdefgh")
    assert len(set(colours.values())) == 6


def test_the_table_has_a_line_a_depth_with_mean_and_deviation_over_heads():
    mass = {1.0: np.array([[0.25, 0.75], [1.0, 1.0]]), 2.0: np.array([[0.5, 1.0], [1.0, 1.0]])}
    locality = Locality(np.array([[1.0, 2.0], [0.0, 0.5]]), mass, 1234, (3, 3), 4)
    title, heads, *rows, uniform = locality_table({"digits": locality}).splitlines()
    assert title == "digits: 1,234 images, 3 x 3 patches"
    assert heads.split() == ["distance", "(patches)", "<=", "1", "<=", "2"]
    assert [row.split() for row in rows] == [
        ["depth", "1", "1.50", "±", "0.50", "50.0%", "75.0%"],
        ["depth", "2", "0.25", "±", "0.25", "100.0%", "100.0%"],
    ]
    # Within 1 of a 3 x 3 grid: (4 * 3 + 4 * 4 + 5) / 81; within 2: (4 * 6 + 4 * 7 + 9) / 81.
    assert uniform.split()[2:] == ["40.7%", "75.3%"]
    assert len({len(row) for row in (*rows, uniform)}) == 1


@pytest.mark.parametrize(
    "other", [a_locality(grid=(3, 4)), a_locality(radii=(1.0, 3.0))], ids=["grid", "radii"]
)
def test_what_cannot_be_compared_is_refused(other, tmp_path):
    localities = {"ddae": a_locality(), "mae": other}
    with pytest.raises(ValueError, match="'mae' was measured on a grid of .* only the same"):
        locality_table(localities)
    with pytest.raises(ValueError, match="only the same can be compared"):
        locality_figure(tmp_path / "attention.png", localities)
    with pytest.raises(ValueError, match="no locality to show"):
        locality_table({})
    assert not list(tmp_path.iterdir())
