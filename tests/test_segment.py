"""Segmentation from end to end, on made-up scenes whose classes have colours."""

import contextlib
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from sklearn import metrics

import annotated
import golden_arrays
from ddae_jax import evaluate, segment
from ddae_jax.builders.segmentation import (
    build_pairs,
    build_segment,
    build_segmentation_task,
    default_depths,
)
from ddae_jax.config import from_plain
from ddae_jax.data.annotations import IGNORED
from ddae_jax.data.eval_pairs import eval_pairs
from ddae_jax.interop import backbones
from ddae_jax.jobs import exits
from ddae_jax.models import vit
from ddae_jax.training.metrics import read_metrics
from undrawn import pictures_left_out

pytestmark = pytest.mark.xdist_group("segmented scenes")  # its runs are made once

CONFIG = """
from ddae_jax.config import segment_defaults
from ddae_jax.models import vit

vit.SIZES["micro"] = vit.Size(16, 4, 2)


def get_config():
    config = segment_defaults()
    config.batch_size = 8
    config.epochs = 4.0
    config.model.size = "micro"
    config.model.image_size = (24, 24)
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.head.width = 8
    config.augment.base_size = (24, 36)
    config.augment.distorts_colours = False
    config.optimizer.learning_rate = 0.3
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.layer_decay = 1.0
    config.data.num_classes = 3
    config.data.ignore_label = 7
    config.log.every_steps = 4
    config.log.tensorboard = False
    config.checkpoint.every_epochs = 2.0
    config.evaluation.every_epochs = 2.0
    return config
"""


@pytest.fixture(autouse=True)
def small_size(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 4, 2))


def write_scenes(root, count, split):
    """Sky above ground, with a box on it, and a frame that nobody labelled."""
    rng = np.random.default_rng(len(split))
    colours = np.array([[40, 90, 230], [60, 200, 60], [230, 60, 40]])
    for number in range(count):
        labels = np.zeros((30, 40), int)
        horizon, left = rng.integers(8, 20), rng.integers(4, 24)
        labels[horizon:] = 1
        labels[horizon - 4 : horizon + 6, left : left + 10] = 2
        image = np.clip(colours[labels] + rng.normal(0, 10, (30, 40, 3)), 0, 255)
        labels[:2] = 7
        annotated.write_pair(root, f"{number:03d}", image, labels, split)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("segment")
    write_scenes(folder / "data", 40, "training")
    write_scenes(folder / "data", 5, "validation")
    (folder / "segment.py").write_text(CONFIG)
    sizes = dict(vit.SIZES)
    assert run(folder, "run", draws=True) == 0
    vit.SIZES.update(sizes)
    return folder


def run(folder, name, *options, draws=False):
    arguments = [f"--config={folder / 'segment.py'}", f"--workdir={folder / name}"]
    arguments.append(f"--config.data.data_dir={folder / 'data'}")
    with contextlib.nullcontext() if draws else pictures_left_out():
        return segment.main([*arguments, *options])


def restored(workdir):
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    return ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")


def test_it_learns_and_leaves_what_people_look_at(folder):
    workdir = folder / "run"
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["num_pixels"] == 5 * 28 * 40  # each pixel with a class, once
    assert scores["pixel_accuracy"] > 0.6
    assert scores["iou"].keys() == {"0", "1", "2"}
    records = read_metrics(workdir / "metrics.jsonl")
    assert records[-1]["test/miou"] == pytest.approx(scores["miou"])
    assert records[-1]["loss"] < records[0]["loss"]
    names = {path.stem for path in (workdir / "figures").iterdir()}
    assert names == {"overlays", "iou", "loss", "schedule"}
    assert "Mean IoU" in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_scores_are_scikit_learns_of_the_same_predictions(folder):
    config = from_plain(json.loads((folder / "run" / "config.json").read_text()))
    task = build_segmentation_task(config)
    state = restored(folder / "run")
    variables = (state["params"], {"statistics": state["teacher"]["statistics"], "average": {}})
    predict = build_segment(config, task)(variables)
    true, found = [], []
    for pair in eval_pairs(build_pairs(config, "validation")):
        counts = pair["annotation"] != IGNORED
        true.append(pair["annotation"][counts])
        found.append(predict(pair["image"])[counts])
    true, found = np.concatenate(true), np.concatenate(found)
    scores = json.loads((folder / "run" / "scores.json").read_text())
    np.testing.assert_array_equal(
        scores["confusion"], metrics.confusion_matrix(true, found, labels=range(3))
    )
    assert scores["miou"] == pytest.approx(metrics.jaccard_score(true, found, average="macro"))


@pytest.mark.slow
def test_evaluated_again_it_reaches_the_same_and_other_views_are_averaged(folder, capsys):
    arguments = [f"--workdir={folder / 'run'}", "--task=segmentation"]
    assert evaluate.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    scores = json.loads((folder / "run" / "scores.json").read_text())
    assert scores.items() <= result.items()
    assert evaluate.main([*arguments, "--scales=1,1.5", "--flip"]) == 0
    other = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (other["scales"], other["flip"]) == ([1.0, 1.5], True)
    assert other["confusion"] != result["confusion"]


@pytest.mark.slow
def test_a_linear_head_continued_ends_bit_identical(folder, tmp_path):
    options = ("--config.head.kind=linear", "--config.epochs=1", "--config.average.decay=0.5")
    shutil.copy(folder / "segment.py", tmp_path)
    shutil.copytree(folder / "data", tmp_path / "data")
    often = "--config.checkpoint.every_epochs=0.4"
    assert run(tmp_path, "whole", *options, often) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    steps = sorted(int(path.name) for path in (tmp_path / "parts" / "checkpoints").iterdir())
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / str(steps[-1]))
    assert run(tmp_path, "parts", *options, often) == 0
    jax.tree.map(
        np.testing.assert_array_equal, restored(tmp_path / "whole"), restored(tmp_path / "parts")
    )


@pytest.mark.slow
def test_images_of_five_channels_are_segmented_and_evaluated(folder, tmp_path, capsys):
    shutil.copy(folder / "segment.py", tmp_path)
    for split in ("training", "validation"):
        annotations = folder / "data" / "annotations" / split
        shutil.copytree(annotations, tmp_path / "data" / "annotations" / split)
        for path in (folder / "data" / "images" / split).iterdir():
            image = np.asarray(Image.open(path))
            stack = tmp_path / "data" / "images" / split / f"{path.stem}.npy"
            stack.parent.mkdir(parents=True, exist_ok=True)
            np.save(stack, np.concatenate([image, image[..., :2]], axis=-1))
    options = ["--config.data.channels=5", "--config.augment.distorts_colours=True"]
    options += [f"--config.data.{key}=0.5,0.5,0.5,0.5,0.5" for key in ("mean", "std")]
    options += ["--config.epochs=1", "--config.head.kind=linear"]
    assert run(tmp_path, "run", *options, draws=True) == 0
    assert (tmp_path / "run" / "figures" / "overlays.png").exists()
    capsys.readouterr()
    assert evaluate.main([f"--workdir={tmp_path / 'run'}", "--task=segmentation"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert result["miou"] == scores["miou"] > 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["channels"] == 5


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("lose an annotation", (), "003"),
        ("shrink an annotation", (), "002.png"),
        ("another class", (), "001.png"),
        ("another class among many to train on", (), "077.png"),
        ("another class among many to test on", (), "077.png"),
        (None, ("--config.data.num_classes=300",), "in [2, 255]"),
        (None, ("--config.head.depths=1,2",), "head.depths=(1, 2); four blocks"),
        (None, ("--config.evaluation.stride=30,30",), "exceeds model.image_size=(24, 24)"),
        (None, ("--config.data.source=digits",), "has no annotations of pixels"),
        (None, ("--config.data.test_split=dev",), "dev"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(
    change, options, message, folder, tmp_path, capsys
):
    shutil.copy(folder / "segment.py", tmp_path)
    shutil.copytree(folder / "data", tmp_path / "data")
    annotations = tmp_path / "data" / "annotations" / "training"
    if change == "lose an annotation":
        (annotations / "003.png").unlink()
    elif change == "shrink an annotation":
        annotated.write_pair(tmp_path / "data", "002", np.zeros((30, 40, 3)), np.zeros((15, 20)))
    elif change == "another class":
        annotated.write_pair(tmp_path / "data", "001", np.zeros((30, 40, 3)), np.full((30, 40), 5))
    elif change:
        split = "training" if "train" in change else "validation"
        for number in range(100):
            labels = np.full((2, 2), 5 if number == 77 else 0)
            annotated.write_pair(tmp_path / "data", f"{number:03d}", labels, labels, split)
    with pytest.raises(exits.CommandEnded) as ended:
        run(tmp_path, "never", *options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_blocks_that_the_encoder_of_another_run_has_not_are_named_before_anything_is_written(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(backbones._HEADS_OF_WIDTH, 16, 2)
    monkeypatch.setitem(vit.SIZES, "golden", vit.Size(16, 2, 2))
    file = golden_arrays.FOLDER / "torch_files" / "mae.pth"  # of two blocks
    shutil.copy(folder / "segment.py", tmp_path)
    with pytest.raises(exits.CommandEnded) as ended:
        run(tmp_path, "never", f"--config.init_from={file}", "--config.head.depths=1,2,3,4")
    assert ended.value.code == 2
    told = f"head.depths=(1, 2, 3, 4); the encoder of init_from='{file}' has 2 blocks"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_an_encoder_of_three_blocks_has_no_four_depths(folder):
    with pytest.raises(ValueError, match="set head.kind='linear'"):
        default_depths(3)
    assert default_depths(12) == (4, 6, 8, 12)
    assert default_depths(24) == (8, 12, 16, 24)
