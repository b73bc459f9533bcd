"""How a run is watched: what collapses, codebook or features, is told, loudly, and what to do."""

import json
import logging

import pytest

import tiny
from ddae_jax import pretrain
from ddae_jax.hooks.codebook import CodebookWarning
from ddae_jax.hooks.collapse import FeatureCollapseWarning
from undrawn import pictures_left_out


def warnings_of(caplog, perplexities, **options):
    watch = CodebookWarning(**{"least": 16.0, "patience": 3} | options)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ddae_jax.hooks.codebook"):
        for step, value in enumerate(perplexities, start=1):
            watch.on_record(step, {} if value is None else {"codebook/perplexity": value})
    return [record.message for record in caplog.records]


def test_a_codebook_that_stays_below_the_floor_is_told_again_and_again(caplog):
    found = warnings_of(caplog, [100, 5, 4, 3, 3, 3, 2.5])
    assert len(found) == 2
    assert "step 4: the codebook has COLLAPSED: its perplexity is 3.0" in found[0]
    assert "below 16 (its size times tokenizer.min_perplexity_share), for 3 records" in found[0]
    assert "tokenizer.revive_below" in found[0]
    assert "step 7" in found[1]


@pytest.mark.parametrize(
    ("perplexities", "options"),
    [
        ([5, 5, 20, 5, 5, 16], {}),  # it recovers each time
        ([1, 1, 1, 1, 1], {"least": 0.0}),
        ([None] * 9, {}),  # a method without a codebook
    ],
)
def test_what_is_no_collapse_is_left_in_peace(caplog, perplexities, options):
    assert warnings_of(caplog, perplexities, **options) == []


def features_told(caplog, path, records, **options):
    """What is said of a run's records, from step 1, where ``path`` may hold earlier ones."""
    watch = FeatureCollapseWarning(path, **{"most_rank": 63, "patience": 3} | options)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ddae_jax.hooks.collapse"):
        for step, metrics in enumerate(records, start=1):
            watch.on_record(step, metrics)
    return [record.message for record in caplog.records]


def ranks(*values, name="teacher", deviations=None):
    """Records with these ranks, or none; and with these deviations, or 0.5."""
    deviations = deviations or [0.5] * len(values)
    return [
        {} if rank is None else {f"rank/{name}": float(rank), f"deviation/{name}": deviation}
        for rank, deviation in zip(values, deviations, strict=True)
    ]


def test_a_teacher_that_stays_below_a_quarter_of_its_first_rank_is_told_again_and_again(
    caplog, tmp_path
):
    found = features_told(caplog, tmp_path / "none", ranks(20, 4.9, 4, 3, None, 2, 2, 1.5))
    assert len(found) == 2
    assert "step 4: the features of the teacher have COLLAPSED" in found[0]
    assert "in 3.0 directions (rank/teacher), where it was 20.0 at step 1 and can be 63" in found[0]
    for what in ("half_life_epochs", "feature_normalization=", "feature_start", "feature_weight=0"):
        assert what in found[0]
    assert "step 8" in found[1]  # the record without a rank counts for nothing
    assert "6 records in a row" in found[1]


def test_a_student_is_told_too_and_without_a_teacher_what_helps_is_another_thing(caplog, tmp_path):
    alone = ranks(20, 2, 2, 2, name="student")
    (found,) = features_told(caplog, tmp_path / "none", alone)
    assert "the features of the student have COLLAPSED" in found
    assert "optimizer.learning_rate" in found
    assert "feature" not in found.partition("COLLAPSED")[2]
    with_teacher = [
        student | teacher | {"progress": 0.4}
        for student, teacher in zip(alone, ranks(*[20] * 4), strict=True)
    ]
    (found,) = features_told(caplog, tmp_path / "none", with_teacher)
    assert "the features of the student have COLLAPSED" in found
    assert "teacher.half_life_epochs" in found
    (found,) = features_told(caplog, tmp_path / "none", with_teacher, learned_from=0.5)
    assert "teacher.half_life_epochs" not in found  # as features have no weight yet


def test_features_that_only_rounding_tells_apart_are_told(caplog, tmp_path):
    records = ranks(*[20] * 6, deviations=[0.5, 0.13, 0.12, 0.03, 0.02, 0.13])
    (found,) = features_told(caplog, tmp_path / "none", records)
    assert "step 5: the features of the teacher have COLLAPSED" in found
    assert "with a deviation of 0.020 (deviation/teacher), where it was 0.500" in found


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([14.7, 12, 9, 7.3, 7.4, 9, 14, 18.6], {}),  # what a healthy run was seen to do
        ([20, 4, 4, 5.5, 4, 4, 5.5], {}),  # it recovers each time
        ([200, 45, 45, 45, 45], {"most_rank": 255}),  # less than a quarter, but many
        ([8, 5, 5, 5, 5], {}),  # few, but more than a quarter
        ([1, 1, 1, 1, 1], {"most_rank": 1}),  # two images to look at
        ([None] * 9, {}),
    ],
)
def test_healthy_features_are_left_in_peace(caplog, tmp_path, values, options):
    for name in ("teacher", "student"):
        records = ranks(*values, name=name)
        assert features_told(caplog, tmp_path / "none", records, **options) == []


def test_a_continued_run_is_compared_with_its_first_record(caplog, tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = [{"step": 0, "knn/untrained": 0.2}]
    kept += [{"step": 10 * i, **record} for i, record in enumerate(ranks(24, 5), start=1)]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
    (found,) = features_told(caplog, path, ranks(4, 4, 4))
    assert "it was 24.0 at step 10" in found
    assert features_told(caplog, tmp_path / "none", ranks(4, 4, 4)) == []


def shares(*values, progress=None):
    """Records of a run of ten steps, with these shares at its deepest depth."""
    return [
        {
            "progress": step / 10 if progress is None else progress,
            "position_share/depth_12": value,
            "position_share/depth_8": 0.99,
        }
        for step, value in enumerate(values, start=1)
    ]


def test_targets_that_their_place_explains_are_told_once_they_are_learned(caplog, tmp_path):
    records = shares(0.5, 0.96, 0.96, 0.96, 0.97, 0.98, 0.99)
    (found,) = features_told(caplog, tmp_path / "none", records[:5])
    assert "COLLAPSED: 96.0 % of the teacher's features at depth 12" in found
    assert "where a patch lies tells them, without a look at it" in found
    assert "targets.feature_normalization='position', a later" in found
    (found,) = features_told(caplog, tmp_path / "none", records[:5], normalization="position")
    assert "targets.feature_normalization='position' takes that out, and leaves mostly" in found
    assert "COLLAPSED" in found
    assert found.count("feature_normalization") == 1  # it is no advice: it is set already
    (found,) = features_told(caplog, tmp_path / "none", records, learned_from=0.4)
    assert "step 6" in found


@pytest.mark.parametrize(
    ("records", "options"),
    [
        (shares(*[0.9] * 9), {}),
        (shares(0.99, 0.99, 0.9, 0.99, 0.99, 0.9), {}),
        (shares(*[0.99] * 9, progress=0.2), {"learned_from": 0.3}),
    ],
)
def test_targets_that_have_more_to_say_are_left_in_peace(caplog, tmp_path, records, options):
    assert features_told(caplog, tmp_path / "none", records, **options) == []


def test_every_record_of_a_run_tells_how_features_stand_and_they_are_drawn(tmp_path):
    run = tiny.copy_of_short_run(tmp_path / "run")
    records = tiny.records(run)
    assert [record["step"] for record in records] == [0, 2, 4, 6, 8]
    wanted = {f"{what}/{who}" for what in ("rank", "deviation") for who in ("student", "teacher")}
    wanted |= {f"position_share/depth_{depth}" for depth in (2, 3)}
    for record in records:
        assert wanted <= record.keys()
        assert 1 <= record["rank/teacher"] <= 16  # the width; there are 64 images
        assert all(0 < record[name] <= 1 for name in wanted if not name.startswith("rank"))
    assert records[0]["rank/student"] != records[-1]["rank/student"]
    assert (run / "figures" / "collapse.png").exists()


@pytest.mark.slow
def test_a_run_that_collapses_says_so_and_what_it_was_before(tmp_path, capfd):
    """Features alone, of a teacher that follows at once: what all images share is easy to learn."""
    config, workdir = tiny.write_config(tmp_path), tmp_path / "run"
    options = (
        "--config.epochs=1.4",
        "--config.supervision.mode=last",
        "--config.targets.pixel_weight=0",
        "--config.targets.feature_normalization=layer",
        "--config.teacher.copy_every_epochs=0.01",
        "--config.optimizer.learning_rate=4e-2",
    )
    with pictures_left_out():
        assert pretrain.main([f"--config={config}", f"--workdir={workdir}", *options]) == 0
    records, lines = tiny.records(workdir), capfd.readouterr().err.splitlines()
    assert records[0]["step"] == 0
    assert records[0]["deviation/teacher"] > 4 * records[-1]["deviation/teacher"]
    for name in ("student", "teacher"):
        told = [line for line in lines if f"features of the {name} have COLLAPSED" in line]
        assert f"where it was {records[0][f'deviation/{name}']:.3f}" in told[0]
        assert "at step 0 and" in told[0]
