"""The pictures of a run: what a pixel shows, in which order, and what is not drawn at all."""

import numpy as np
import pytest
from matplotlib.image import imread

from ddae_jax.evaluation import figures

GREY = np.array(figures.HIDDEN_COLOUR, np.float32)


def picture(path):
    """The RGB pixels of a written PNG, checked to be a picture: large, and not of one colour."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 150
    assert 1000 < max(pixels.shape[:2]) < 6000
    assert (pixels < 0.9).any(axis=-1).mean() > 0.001
    return pixels


def has_colour(pixels, colour):
    return (np.abs(pixels - np.asarray(colour)[:3]) < 1.5 / 255).all(axis=-1).any()


def a_run(num_records=5):
    return [
        {
            "step": 10 * i,
            "progress": i / num_records,
            "epoch": float(i),
            "learning_rate": 1e-4 * i,
            "momentum": 0.996,
            "gradient_norm": 1.0 / i,
            "loss": 2.0 / i,
            **{
                f"{family}/{objective}/depth_{depth}": value / i - depth / 100
                for family, value in (("loss", 1.0), ("beta", -0.5))
                for objective in ("pixels", "features")
                for depth in (12, 6, 8, 10)
            },
        }
        for i in range(1, num_records + 1)
    ]


RECORD_FIGURES = {
    figures.beta_figure: "beta/pixels/depth_6",
    figures.loss_figure: "loss",
    figures.knn_figure: "knn/trained",
    figures.schedule_figure: "gradient_norm",
}


def test_patch_map_spreads_each_value_over_the_pixels_of_its_patch():
    on_pixels = figures.patch_map_to_image(np.arange(6), (2, 3), (4, 3))
    np.testing.assert_array_equal(on_pixels, [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]])


def test_patch_map_keeps_leading_axes():
    values = np.arange(12.0).reshape(2, 3, 2)
    on_pixels = figures.patch_map_to_image(values, (1, 2), (2, 4))
    assert on_pixels.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(on_pixels[1, 2], [[10, 10, 11, 11]] * 2)


@pytest.mark.parametrize(
    ("grid", "size", "message"),
    [((2, 2), (4, 4), "6 patches; a grid of 2x2 has 4"), ((2, 3), (4, 4), "4x4 pixels")],
)
def test_patch_map_that_does_not_fit_is_refused(grid, size, message):
    with pytest.raises(ValueError, match=message):
        figures.patch_map_to_image(np.zeros((1, 6)), grid, size)


def test_hidden_patches_are_grey_exactly_where_the_mask_says():
    images = np.linspace(0, 1, 2 * 2 * 6, dtype=np.float32).reshape(1, 4, 6, 1)
    mask = np.array([[True, False, False, False, False, True]])
    shown = figures.hide_patches(images, mask, (2, 3))
    expected = np.repeat(images, 3, axis=-1)
    expected[0, :2, :2] = GREY
    expected[0, 2:, 4:] = GREY
    np.testing.assert_array_equal(shown, expected)


def test_hidden_patches_take_the_given_colour_and_each_image_its_own_mask():
    images = np.zeros((2, 2, 4, 3), np.uint8)
    shown = figures.hide_patches(
        images, np.array([[True, False], [False, True]]), (1, 2), (1, 0, 0)
    )
    np.testing.assert_array_equal(shown[..., 0], [[[1, 1, 0, 0]] * 2, [[0, 0, 1, 1]] * 2])
    np.testing.assert_array_equal(shown[..., 1:], 0)


def test_no_grey_image_contains_the_hidden_colour():
    assert len(set(figures.HIDDEN_COLOUR)) == 3


def test_reconstruction_is_pasted_into_hidden_patches_only():
    images, restored = np.zeros((1, 2, 4, 1), np.float32), np.ones((1, 2, 4, 1), np.float32)
    shown = figures.paste_hidden(images, restored, np.array([[False, True]]), (1, 2))
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
    shown = figures.to_rgb_images(pixel.reshape(1, 1, 1, -1))
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
    figures.reconstruction_figure(reconstruction, images, mask, grid, reconstructions, depths)
    figures.supervision_figure(
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
    figures.supervision_figure(
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
        figures.reconstruction_figure(
            tmp_path / "a.png", images, mask, (2, 2), np.zeros((2, 1, 4, 4, 1)), (12,)
        )
    assert not list(tmp_path.iterdir())


def test_depths_are_ordered_by_number_and_objectives_as_logged():
    records = [{"beta/pixels/depth_10": 0.0, "loss/pixels/depth_1": 0.0}]
    records += [{"beta/a/b/depth_3": 0.0, "beta/pixels/depth_9": 0.0, "beta/pixels/depth_100": 0.0}]
    found = figures.keys_by_objective(records, "beta")
    assert list(found) == ["pixels", "a/b"]
    assert list(found["pixels"].values()) == [9, 10, 100]
    assert found["a/b"] == {"beta/a/b/depth_3": 3}


def test_a_depth_has_one_colour_in_every_figure_and_deeper_is_darker():
    records = a_run()
    colours = figures.depth_colours(records)
    assert list(colours) == [6, 8, 10, 12]
    luminance = [np.dot(colour[:3], (0.2126, 0.7152, 0.0722)) for colour in colours.values()]
    assert luminance == sorted(luminance, reverse=True)
    without_betas = [{k: v for k, v in r.items() if "beta" not in k} for r in records]
    assert figures.depth_colours(without_betas) == colours


def test_series_is_sorted_and_a_point_logged_again_counts_once():
    records = [{"epoch": 2, "loss": 5}, {"epoch": 1, "loss": None}, {"epoch": 2.0, "loss": 7}]
    records += [{"loss": 9}, {"epoch": float("nan"), "loss": 9}, {"epoch": 3}]
    epochs, loss = figures.series(records, "loss")
    np.testing.assert_array_equal(epochs, [1, 2])
    np.testing.assert_array_equal(loss, [np.nan, 7])


def test_latest_is_the_last_finite_value():
    records = [{"a": 1}, {"a": np.float32(2)}, {"a": float("nan")}, {"b": 3}]
    assert figures.latest(records, "a") == 2
    assert figures.latest(records, "c") is None


def test_running_mean_by_hand():
    values = np.array([1.0, 2.0, np.nan, 4.0, np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(
        figures.running_mean(values, 3), [1.5, 1.5, 3.0, 4.0, 4.0, np.nan, np.nan]
    )
    np.testing.assert_array_equal(figures.running_mean(values[:2], 1), values[:2])


@pytest.mark.parametrize("draw", [figures.beta_figure, figures.loss_figure])
def test_each_depth_is_drawn_in_its_colour(draw, tmp_path):
    records = a_run()
    assert draw(tmp_path / "a.png", records)
    pixels = picture(tmp_path / "a.png")
    for colour in figures.depth_colours(records).values():
        assert has_colour(pixels, colour)


@pytest.mark.parametrize(("draw", "key"), RECORD_FIGURES.items())
@pytest.mark.filterwarnings("error")
def test_one_number_among_nan_is_drawn(draw, key, tmp_path):
    sparse = [{"epoch": 1, "progress": 0.5, key: float("nan")}, {"step": 3}]
    sparse += [{"epoch": 2, "progress": 0.7, key: 0.5}, {"epoch": 3, "progress": 0.9, key: None}]
    assert draw(tmp_path / "a.png", sparse)
    pixels = picture(tmp_path / "a.png")[:-100]  # without the legend
    is_coloured = np.ptp(pixels, axis=-1) > 0.3
    assert is_coloured.sum() > 20


@pytest.mark.parametrize(("draw", "key"), RECORD_FIGURES.items())
def test_nothing_is_written_where_there_is_nothing_to_draw(draw, key, tmp_path):
    nowhere = [{key: 1.0}, {"epoch": 1, "progress": 0.1, key: float("nan")}, {"epoch": 2}]
    for records in ([], nowhere):
        assert draw(tmp_path / "a.png", records) is False
    assert not list(tmp_path.iterdir())


def test_knn_figure_draws_the_baselines(tmp_path):
    trained = [{"epoch": i, "knn/trained": 0.5 + 0.1 * i} for i in range(4)]
    baselines = [{"step": 0, "knn/untrained": 0.2, "knn/raw_pixels": 0.6}]
    assert figures.knn_figure(tmp_path / "without.png", trained)
    assert figures.knn_figure(tmp_path / "with.png", baselines + trained)
    orange = matplotlib_rgb("#c2571a")
    assert not has_colour(picture(tmp_path / "without.png"), orange)
    assert has_colour(picture(tmp_path / "with.png"), orange)


def matplotlib_rgb(code):
    return [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def test_a_long_run_with_many_objectives_is_drawn(tmp_path):
    records = [
        {"epoch": i / 10, "loss": 1.0, **{f"loss/o{o}/depth_{o}": 1.0 / (i + 1) for o in range(4)}}
        for i in range(200)
    ]
    assert figures.loss_figure(tmp_path / "a.png", records)
    picture(tmp_path / "a.png")


def test_every_figure_has_a_caption():
    drawn = {name.removesuffix("_figure") for name in vars(figures) if name.endswith("_figure")}
    assert {name for name in drawn if name} == set(figures.CAPTIONS)
