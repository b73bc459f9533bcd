"""The command that evaluates a run, knowing only the workdir."""

import importlib
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from sklearn.neighbors import KNeighborsClassifier

import tiny
from ddae_jax import evaluate
from ddae_jax.evaluation.embeddings import Embedded
from ddae_jax.evaluators import TASKS
from ddae_jax.models import vit
from ddae_jax.training.workdir import Workdir
from drawn import picture

pytestmark = pytest.mark.xdist_group("evaluated run")  # its runs are made once


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A short run on the digits, with the checkpoints of steps 4 and 8."""
    return tiny.copy_of_short_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    """The size that tiny.CONFIG calls micro."""
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 3, 2))


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_last_line_is_json_with_both_baselines(task, workdir, capsys):
    assert evaluate.main([f"--workdir={workdir}", f"--task={task}"]) == 0
    result = last_line(capsys)
    assert result["task"] == task
    assert (result["step"], result["encoder"], result["depth"]) == (8, "student", 3)
    assert (result["num_train"], result["num_test"]) == (1442, 355)
    for name in ("accuracy", "untrained", "raw_pixels"):
        assert 0.1 < result[name] <= 1


@pytest.mark.slow
def test_any_encoder_depth_pool_and_step_can_be_asked_for(workdir, capsys):
    accuracies = set()
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    for arguments, shown in (
        (["--encoder=teacher"], {"encoder": "teacher"}),
        (["--depth=1"], {"depth": 1}),
        (["--pool=class_token"], {"pool": "class_token"}),
        ([f"--step={steps[0]}"], {"step": steps[0]}),
        (["--k=3", "--temperature=0"], {"k": 3, "temperature": 0.0}),
    ):
        assert evaluate.main([f"--workdir={workdir}", "--task=knn", *arguments]) == 0
        result = last_line(capsys)
        assert shown.items() <= result.items()
        accuracies.add((result["accuracy"], result["untrained"]))
    assert len(accuracies) > 2


def test_knn_of_the_command_agrees_with_scikit_learn_on_the_cached_features(workdir, capsys):
    arguments = [f"--workdir={workdir}", "--task=knn", "--k=5", "--temperature=0.1"]
    assert evaluate.main(arguments) == 0
    result = last_line(capsys)
    for path in Workdir(workdir).features.glob("*.npz"):
        with np.load(path) as stored:
            key = json.loads(str(stored["key"]))
            wanted = {"encoder": "student", "step": 8, "depth": 3, "pool": "mean"}
            wanted["dtype"] = "float32"
            wanted["view"] = {"share": 0.875, "interpolation": "bicubic", "mode": "center"}
            if not wanted.items() <= key.items():
                continue
            oracle = KNeighborsClassifier(
                5, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
            )
            oracle.fit(stored["train_features"], stored["train_labels"])
            right = oracle.predict(stored["test_features"]) == stored["test_labels"]
            # One example in 355 may be a tie that rounding decides.
            assert abs(right.mean() - result["accuracy"]) <= 1 / 355
            return
    pytest.fail("the features were not cached")


@pytest.mark.slow
def test_the_type_of_the_computation_can_be_chosen(workdir, tmp_path):
    found = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.npz"
        arguments = [f"--workdir={workdir}", "--task=embed", f"--dtype={dtype}", f"--out={out}"]
        assert evaluate.main([*arguments, "--limit=16"]) == 0
        with np.load(out) as stored:
            found[dtype] = stored["features"]
    difference = np.abs(found["float32"] - found["bfloat16"]).max()
    assert 1e-5 < difference < 0.2


@pytest.mark.slow
def test_a_second_evaluation_reads_the_features_from_the_cache(workdir, capsys, monkeypatch):
    arguments = [f"--workdir={workdir}", "--task=knn", "--depth=2"]
    assert evaluate.main(arguments) == 0
    first = last_line(capsys)

    def extract_again(*_):
        raise AssertionError("features were extracted again")

    monkeypatch.setattr("ddae_jax.evaluation.labelled_images.encode_dataset", extract_again)
    assert evaluate.main(arguments) == 0
    assert last_line(capsys) == first


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--depth=9"], "it lies in [1, 3]"),
        (["--step=3"], "no checkpoint of step 3"),
        (
            ["--task=detection"],
            "<knn|linear|few_shot|depths|attention_distance|embed|classification|segmentation>",
        ),
        (["--pool=max"], "<mean|class_token|normed_mean>"),
    ],
)
def test_bad_input_is_explained(arguments, reason, workdir, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main([f"--workdir={workdir}", "--task=knn", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main([f"--workdir={tmp_path}", "--task=knn"])
    assert ended.value.code == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err


def test_labels_that_are_missing_are_asked_for(workdir, tmp_path, capsys):
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"source": "folder", "data_dir": str(tmp_path / "photos")}
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.json").write_text(json.dumps(config))
    (moved / "checkpoints").symlink_to(workdir / "checkpoints")
    for split in ("train", "test"):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        Image.new("L", (20, 20)).save(folder / "one.png")
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={moved}", "--task=knn"])
    assert "needs labelled images" in capsys.readouterr().err


def a_like_run(workdir, folder, checkpoints=True, **changes):
    """A run with the same checkpoints, its config changed by section."""
    config = json.loads((workdir / "config.json").read_text())
    for section, values in changes.items():
        config[section] |= values
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if checkpoints:
        (folder / "checkpoints").symlink_to(workdir / "checkpoints")
    return folder


@pytest.mark.slow
def test_locality_of_a_run_is_measured_drawn_and_told(workdir, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--task=attention_distance"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    of_run = result["runs"]["digits"]
    assert (of_run["encoder"], of_run["step"], of_run["num_images"]) == ("student", 8, 355)
    assert (result["grid"], of_run["patch_size"]) == ([4, 4], 4)
    distance = np.array(of_run["distance"])
    assert distance.shape == (3, 2)
    # No attention reaches further on average than from corner to corner.
    assert ((distance > 0) & (distance < 18**0.5)).all()
    near, wide, all_but = (np.array(of_run["mass_within"][radius]) for radius in ("1", "2", "4"))
    assert ((near > 0) & (near < wide) & (wide < all_but) & (all_but < 1)).all()
    assert table[0].startswith("digits (student, step 8): 355 images, 4 x 4 patches")
    assert f"{distance[1].mean():.2f} ± {distance[1].std():.2f}" in table[3]
    assert f"{result['uniform']['distance']:.2f}" in table[-2]
    assert table[-1] == f"figure: {result['figure']}"
    assert picture(workdir / "figures" / "attention_distance.png").size


@pytest.mark.slow
def test_runs_are_compared_on_the_images_of_the_first(workdir, tmp_path, capsys):
    nowhere = {"source": "folder", "data_dir": "/nowhere"}
    same = a_like_run(workdir, tmp_path / "a" / "digits", data=nowhere)
    other = a_like_run(workdir, tmp_path / "b" / "digits", evaluation={"encoder": "teacher"})
    arguments = ["--task=attention_distance", "--limit=40", "--batch_size=24"]
    assert evaluate.main([f"--workdir={workdir}", f"--compare={same},{other}", *arguments]) == 0
    result = last_line(capsys)
    first, second, third = result["runs"].values()
    assert len(set(result["runs"])) == 3  # though the folders have one name
    assert first["distance"] == second["distance"] != third["distance"]
    assert [run["num_images"] for run in (first, second, third)] == [40] * 3
    assert (third["encoder"], first["encoder"]) == ("teacher", "student")
    assert evaluate.main([f"--workdir={workdir}", "--encoder=teacher", *arguments]) == 0
    assert last_line(capsys)["runs"]["digits"]["distance"] == third["distance"]


@pytest.mark.slow
def test_two_checkpoints_of_one_run_are_compared(workdir, capsys):
    first, *_, last = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    arguments = [f"--workdir={workdir}", "--task=attention_distance", "--limit=8"]
    arguments += ["--batch_size=8"]
    assert evaluate.main([*arguments, f"--compare={workdir}@{first}"]) == 0
    *table, told = capsys.readouterr().out.splitlines()
    late, early = (json.loads(told)["runs"][f"digits@{step}"] for step in (last, first))
    assert (late["step"], early["step"]) == (last, first)
    assert late["distance"] != early["distance"]
    assert [line for line in table if line.startswith(f"digits (student, step {first}): 8 images")]


def test_locality_needs_no_labels_and_no_writable_folder(workdir, tmp_path, capsys):
    data = {"source": "folder", "data_dir": str(tmp_path / "photos"), "test_split": "test"}
    run = a_like_run(workdir, tmp_path / "run", data=data)
    (tmp_path / "photos" / "test").mkdir(parents=True)
    for name in ("one", "two"):
        Image.new("L", (20, 20), 99).save(tmp_path / "photos" / "test" / f"{name}.png")
    (run / "figures").touch()  # in the way of the folder
    assert evaluate.main([f"--workdir={run}", "--task=attention_distance"]) == 0
    result = last_line(capsys)
    assert result["runs"]["run"]["num_images"] == 2
    assert result["figure"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--compare=EMPTY"], "--compare=EMPTY holds no run: there is no config.json in it"),
        (["--compare=FINER"], "--compare=FINER has 8 x 8 patches, --workdir=WORKDIR has 4 x 4;"),
        (["--compare=WORKDIR"], "--compare: WORKDIR is given twice at step 8"),
        (["--compare=WORKDIR@8"], "--compare: WORKDIR is given twice at step 8"),
        (["--compare=WORKDIR@3"], "no checkpoint of step 3"),
        (["--compare=MAE", "--encoder=teacher"], "--compare=MAE: evaluation.encoder='teacher'"),
        (["--compare=FINER", "--task=knn"], "--compare is for --task=attention_distance"),
    ],
)
def test_what_cannot_be_compared_is_named(arguments, reason, workdir, tmp_path, capsys):
    folders = {
        "EMPTY": tmp_path / "empty",
        "FINER": a_like_run(workdir, tmp_path / "finer", False, model={"patch_size": 2}),
        "MAE": a_like_run(workdir, tmp_path / "mae", targets={"feature_weight": 0.0}),
        "WORKDIR": workdir,
    }
    for name, folder in folders.items():
        arguments = [argument.replace(name, str(folder)) for argument in arguments]
        reason = reason.replace(name, str(folder))
    with pytest.raises(SystemExit) as ended:
        evaluate.main([f"--workdir={workdir}", "--task=attention_distance", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


# ---- few labels, depths, embeddings


@pytest.mark.slow
def test_few_images_of_each_class_of_several_draws(workdir, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--task=few_shot", "--limit=200"]) == 0
    result = last_line(capsys)
    one, ten = (result["per_class"][count] for count in ("1", "10"))
    assert one.keys() == {"accuracy", "untrained", "raw_pixels"}
    assert ten["raw_pixels"]["mean"] > one["raw_pixels"]["mean"] > 0.2  # more labels, more known
    assert 0 < one["accuracy"]["std"] < 0.3


@pytest.mark.slow
def test_every_depth_is_read_by_both_classifiers_and_drawn(workdir, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--task=depths", "--limit=150"]) == 0
    result = last_line(capsys)
    assert result["depths"] == [1, 2, 3]
    assert picture(workdir / "figures" / "depths.png").std() > 0.02
    for name in ("knn", "linear"):
        assert (
            evaluate.main([f"--workdir={workdir}", f"--task={name}", "--depth=2", "--limit=150"])
            == 0
        )
        alone = last_line(capsys)
        assert result[name][1] == alone["accuracy"]
        assert result[f"{name}_untrained"][1] == alone["untrained"]
        assert result[f"{name}_raw_pixels"] == alone["raw_pixels"]


def test_help_names_every_task(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    usage = capsys.readouterr().out.partition("flags:")[0]
    assert [task for task in TASKS if not re.search(rf"(?<!=)\b{task}\b", usage)] == []


@pytest.mark.parametrize("names", [["a", "b"], ["a"], []])
@pytest.mark.parametrize("tell_every_s", [-1, 60])
def test_the_last_word_on_progress_comes_also_where_images_are_unreadable(
    names, tell_every_s, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "ddae_jax")
    embed = importlib.import_module("ddae_jax.evaluators.embed")  # whose name its function has, too
    monkeypatch.setattr(embed, "_LOG_EVERY_S", tell_every_s)
    batches = [Embedded(np.zeros((len(n), 2)), np.zeros(len(n)), n) for n in (["x"], names)]
    assert list(embed._with_progress(iter(batches), count=3)) == batches
    said = [record.getMessage() for record in caplog.records]
    unreadable = 2 - len(names)
    assert said[-1].startswith(f"{1 + len(names)} of 3 images, {unreadable} unreadable, ")
    assert len(said) == (3 if tell_every_s < 0 else 1)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_features_of_a_folder_go_to_a_file_with_names(suffix, workdir, tmp_path, capsys):
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        tiny.write_image(images / name / "1.png", (20, 30))
    tiny.write_image(images / "dog" / "2.png")
    (images / "dog" / "broken.png").write_bytes(b"no image")
    out = tmp_path / f"features.{suffix}"
    arguments = [f"--workdir={workdir}", "--task=embed", f"--images={images}", f"--out={out}"]
    assert evaluate.main(arguments) == 0
    result = last_line(capsys)
    assert (result["num_images"], result["num_unreadable"], result["width"]) == (3, 1, 16)
    if suffix == "npz":
        with np.load(out) as stored:
            features, labels, names = (stored[k] for k in ("features", "labels", "names"))
    else:
        table = parquet.read_table(out)
        features = np.stack(table["features"].to_numpy())
        labels, names = table["label"].to_numpy(), table["name"].to_pylist()
    assert [str(name).partition("images/")[2] for name in names] == [
        "cat/1.png", "dog/1.png", "dog/2.png",
    ]  # fmt: skip
    assert labels.tolist() == [0, 1, 1]
    assert features.shape == (3, 16)
    np.testing.assert_array_equal(features[0], features[1])  # the same image
    assert np.abs(features[0] - features[2]).max() > 1e-3


def test_all_images_of_a_folder_are_embedded_though_its_parts_look_like_splits(
    workdir, tmp_path, capsys, caplog
):
    for name in ("train", "validation", "other"):
        (tmp_path / "images" / name).mkdir(parents=True)
        tiny.write_image(tmp_path / "images" / name / "1.png")
    arguments = [f"--workdir={workdir}", "--task=embed", f"--images={tmp_path / 'images'}"]
    arguments.append(f"--out={tmp_path / 'features.npz'}")
    assert evaluate.main(arguments) == 0
    assert last_line(capsys)["num_images"] == 3
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.slow
def test_features_of_the_run_s_data_are_those_that_knn_sees(workdir, tmp_path, capsys):
    out = tmp_path / "features.npz"
    arguments = [f"--workdir={workdir}", "--task=embed", f"--out={out}", "--split=train"]
    assert evaluate.main([*arguments, "--limit=30"]) == 0
    assert evaluate.main([f"--workdir={workdir}", "--task=knn", "--limit=30"]) == 0
    with np.load(out) as stored:
        features, names = stored["features"], stored["names"]
    assert names[0] == "digits/train[0]"
    kept = [np.load(path) for path in Workdir(workdir).features.glob("*.npz")]
    assert any(
        np.array_equal(cache["train_features"], features)
        for cache in kept
        if cache["train_features"].shape == features.shape
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=embed"], "--out=FILE.npz or --out=FILE.parquet is missing"),
        (["--task=embed", "--out=a.txt"], "it is a file called *.npz or *.parquet"),
        (["--task=embed", "--out=a.npz", "--images=nowhere"], "no folder nowhere"),
        (
            ["--task=embed", "--out=a.npz", "--images=x", "--split=train"],
            "--split is of the run's data, and --images=x is another folder",
        ),
        (
            ["--task=embed", "--out=a.npz", "--images=x", "--data_dir=y"],
            "--data_dir is of the run's data, and --images=x is another folder",
        ),
        (["--task=classification"], "is a run of ddae_jax.pretrain; --task=classification is for"),
        (
            ["--task=few_shot", "--compare=x"],
            "--compare is for --task=attention_distance; --task=f",
        ),
        (["--task=knn", "--split=train"], "--split is for --task=embed, classification, segmen"),
        (["--task=knn", "--images=x"], "--images is for --task=embed; --task=knn ignores it"),
        (["--task=knn", "--out=a.npz"], "--out is for --task=embed; --task=knn ignores it"),
        (["--task=knn", "--scales=1,2"], "--scales is for --task=segmentation; --task=knn ignores"),
        (["--task=knn", "--flip"], "--flip is for --task=segmentation; --task=knn ignores it"),
        (["--task=linear", "--k=3"], "--k is for --task=knn, depths; --task=linear ignores it"),
        (["--task=depths", "--depth=2"], "--depth is for --task=knn, linear, few_shot, embed; --t"),
        (["--task=classification", "--pool=mean"], "--pool is for --task=knn, linear, few_shot"),
    ],
)
def test_what_a_task_cannot_do_is_explained(arguments, message, workdir, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main([f"--workdir={workdir}", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
