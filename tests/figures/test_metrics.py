"""Tests of figures of records: order and colours of lines, and what is left out."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ddae_jax.figures import metrics as figures
from ddae_jax.figures import style
from ddae_jax.figures.metrics import (
    CAPTIONS,
    beta_figure,
    codebook_figure,
    collapse_figure,
    keys_by_objective,
    knn_figure,
    latest,
    logged_depths,
    loss_figure,
    running_mean,
    schedule_figure,
    series,
)
from drawn import has_colour, picture


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


def colours_of(records):
    return style.depth_colours(logged_depths(records))


RECORD_FIGURES = {
    beta_figure: "beta/pixels/depth_6",
    loss_figure: "loss",
    knn_figure: "knn/trained",
    schedule_figure: "gradient_norm",
    codebook_figure: "codebook/perplexity",
    collapse_figure: "rank/teacher",
}


def test_depths_are_ordered_by_number_and_objectives_as_logged():
    records = [{"beta/pixels/depth_10": 0.0, "loss/pixels/depth_1": 0.0}]
    records += [{"beta/a/b/depth_3": 0.0, "beta/pixels/depth_9": 0.0, "beta/pixels/depth_100": 0.0}]
    found = keys_by_objective(records, "beta")
    assert list(found) == ["pixels", "a/b"]
    assert list(found["pixels"].values()) == [9, 10, 100]
    assert found["a/b"] == {"beta/a/b/depth_3": 3}


def test_a_depth_has_one_colour_in_every_figure_and_deeper_is_darker():
    records = a_run()
    colours = colours_of(records)
    assert list(colours) == [6, 8, 10, 12]
    luminance = [np.dot(colour[:3], (0.2126, 0.7152, 0.0722)) for colour in colours.values()]
    assert luminance == sorted(luminance, reverse=True)
    without_betas = [{k: v for k, v in r.items() if "beta" not in k} for r in records]
    assert colours_of(without_betas) == colours


def test_series_is_sorted_and_a_point_logged_again_counts_once():
    records = [{"epoch": 2, "loss": 5}, {"epoch": 1, "loss": None}, {"epoch": 2.0, "loss": 7}]
    records += [{"loss": 9}, {"epoch": float("nan"), "loss": 9}, {"epoch": 3}]
    epochs, loss = series(records, "loss")
    np.testing.assert_array_equal(epochs, [1, 2])
    np.testing.assert_array_equal(loss, [np.nan, 7])


def test_latest_is_the_last_finite_value():
    records = [{"a": 1}, {"a": np.float32(2)}, {"a": float("nan")}, {"b": 3}]
    assert latest(records, "a") == 2
    assert latest(records, "c") is None


def test_running_mean_by_hand():
    values = np.array([1.0, 2.0, np.nan, 4.0, np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(
        running_mean(values, 3), [1.5, 1.5, 3.0, 4.0, 4.0, np.nan, np.nan]
    )
    np.testing.assert_array_equal(running_mean(values[:2], 1), values[:2])


@pytest.mark.parametrize("draw", [beta_figure, loss_figure])
def test_each_depth_is_drawn_in_its_colour(draw, tmp_path):
    records = a_run()
    assert draw(tmp_path / "a.png", records)
    pixels = picture(tmp_path / "a.png")
    for colour in colours_of(records).values():
        assert has_colour(pixels, colour)


def test_betas_that_stay_at_zero_are_not_drawn(tmp_path):
    records = [{"epoch": 1, "progress": p, "beta/pixels/depth_6": 0.0} for p in (0.5, 1.0)]
    assert beta_figure(tmp_path / "a.png", records) is False


def test_the_plain_loss_is_drawn_beside_the_weighted_one_where_they_differ(tmp_path):
    plain = [record | {"plain_loss": 2 * record["loss"]} for record in a_run()]
    same = [record | {"plain_loss": record["loss"]} for record in a_run()]
    muted = []
    for records in (plain, same):
        loss_figure(tmp_path / "a.png", records)
        pixels = picture(tmp_path / "a.png")
        assert has_colour(pixels, to_rgb(style.ACCENT))
        off = np.abs(pixels - np.asarray(to_rgb(style.MUTED))).max(axis=-1)
        muted.append((off < 1.5 / 255).sum())
    assert muted[0] > muted[1] + 300  # one more line


@pytest.mark.slow
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
    assert knn_figure(tmp_path / "without.png", trained)
    assert knn_figure(tmp_path / "with.png", baselines + trained)
    orange = matplotlib_rgb("#c2571a")
    assert not has_colour(picture(tmp_path / "without.png"), orange)
    assert has_colour(picture(tmp_path / "with.png"), orange)


def test_collapse_figure_draws_student_teacher_and_each_depth_in_its_colour(tmp_path):
    student = [{"epoch": i, "rank/student": 9.0 - i, "deviation/student": 0.5} for i in range(5)]
    teacher = [{"rank/teacher": 7.0, "deviation/teacher": 0.6} for _ in student]
    shares = [{f"position_share/depth_{d}": d / 20 for d in (12, 6, 8, 10)} for _ in student]
    whole = [a | b | c for a, b, c in zip(student, teacher, shares, strict=True)]
    assert collapse_figure(tmp_path / "alone.png", student)
    assert collapse_figure(tmp_path / "whole.png", whole)
    alone, whole = picture(tmp_path / "alone.png"), picture(tmp_path / "whole.png")
    assert has_colour(alone, to_rgb(style.ACCENT))
    assert has_colour(whole, to_rgb(style.ACCENT))
    assert has_colour(whole, to_rgb(style.BASELINE))
    for colour in colours_of(a_run()).values():  # depths 6 to 12, in the colours of losses
        assert has_colour(whole, colour)
        assert not has_colour(alone, colour)


def matplotlib_rgb(code):
    return [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def test_a_long_run_with_many_objectives_is_drawn(tmp_path):
    records = [
        {"epoch": i / 10, "loss": 1.0, **{f"loss/o{o}/depth_{o}": 1.0 / (i + 1) for o in range(4)}}
        for i in range(200)
    ]
    assert loss_figure(tmp_path / "a.png", records)
    picture(tmp_path / "a.png")


def test_every_figure_has_a_caption():
    drawn = {name.removesuffix("_figure") for name in vars(figures) if name.endswith("_figure")}
    assert {name for name in drawn if name} == set(CAPTIONS)
