"""Fine-tuning from end to end: from a run, continued exactly, and from others' weights."""

import contextlib
import itertools
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import zipfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from sklearn import metrics

import golden_arrays
import tiny
from ddae_jax import evaluate, finetune
from ddae_jax.builders import data as builders_data
from ddae_jax.builders import networks
from ddae_jax.builders.classification import build_classification_task
from ddae_jax.builders.initialization import inherit_to_finetune
from ddae_jax.config import from_plain, to_plain
from ddae_jax.config.schema import flatten
from ddae_jax.config.values import contradictions
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.sources import make_source
from ddae_jax.interop import backbones
from ddae_jax.jobs import cli
from ddae_jax.models import vit
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.metrics import MetricsHook
from undrawn import pictures_left_out

CONFIG = """
from ddae_jax.config import finetune_defaults
from ddae_jax.models import vit

vit.SIZES["micro"] = vit.Size(16, 3, 2)


def get_config():
    config = finetune_defaults()
    config.batch_size = 64
    config.epochs = 2.0
    config.model.size = "micro"
    config.model.image_size = (16, 16)
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.model.drop_path_rate = 0.2
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_epochs = 0.2
    config.data.source = "digits"
    config.data.test_split = "test"
    config.data.channels = 1
    config.data.mean = (0.3,)
    config.data.std = (0.3,)
    config.data.flip = False
    config.checkpoint.every_epochs = 1.0
    config.log.every_steps = 5
    config.average.decay = 0.9
    return config
"""
TORCH_FILES = golden_arrays.FOLDER / "torch_files"
pytestmark = pytest.mark.xdist_group("fine-tuned run")  # its runs are made once


@pytest.fixture(autouse=True)
def small_size(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 3, 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretrained run, and one that was fine-tuned from it."""
    folder = tmp_path_factory.mktemp("finetune")
    sizes = dict(vit.SIZES)
    vit.SIZES["micro"] = vit.Size(16, 3, 2)
    tiny.write_config(folder)
    tiny.copy_of_short_run(folder / "pretrained")
    (folder / "finetune.py").write_text(CONFIG)
    source = f"--config.init_from={folder / 'pretrained'}"
    assert run(folder, "finetuned", source, draws=True) == 0
    vit.SIZES.update(sizes)
    return folder


def run(folder, name, *options, draws=False):
    arguments = [f"--config={folder / 'finetune.py'}", f"--workdir={folder / name}"]
    with contextlib.nullcontext() if draws else pictures_left_out():
        return finetune.main([*arguments, "--config.log.tensorboard=false", *options])


def status(folder, name, *options):
    try:
        return run(folder, name, *options)
    except SystemExit as ended:
        return ended.code


def test_it_learns_and_leaves_what_people_look_at(runs):
    workdir = runs / "finetuned"
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["num_images"] == 355  # each test image once
    assert np.sum(scores["confusion"]) == 355
    assert scores["top1"] == pytest.approx(np.trace(scores["confusion"]) / 355)
    assert scores["per_class"].keys() == set("0123456789")
    last = tiny.records(workdir)[-1]
    assert last["test/top1"] == pytest.approx(scores["top1"])
    assert last["loss"] < tiny.records(workdir)[0]["loss"]
    names = {path.stem for path in (workdir / "figures").iterdir()}
    assert names == {"accuracy", "confusion", "loss", "schedule"}
    assert "Top-1 accuracy" in (workdir / "report.html").read_text()


def test_evaluated_again_it_reaches_the_same(runs, capsys):
    arguments = [f"--workdir={runs / 'finetuned'}", "--task=classification"]
    assert evaluate.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    scores = json.loads((runs / "finetuned" / "scores.json").read_text())
    assert scores.items() <= result.items()
    with pytest.raises(SystemExit):
        evaluate.main([*arguments[:1], "--task=knn"])
    assert "is a run of ddae_jax.finetune; --task=knn is for" in capsys.readouterr().err


@pytest.mark.slow
def test_scores_are_those_of_the_average_of_the_weights(runs, tmp_path, capsys):
    """By scikit-learn, of the logits of the average's parameters, and not of the others."""
    stored = json.loads((runs / "finetuned" / "config.json").read_text())
    stored["head"]["init_deviation"] = 1.0  # so that two draws differ
    task = build_classification_task(from_plain(stored), num_classes=10)
    init = jax.jit(lambda key: task.init(key, 1))
    params, average = map(init, jax.random.split(jax.random.key(0)))
    write_checkpoint(tmp_path, stored, task, params, average)
    assert evaluate.main([f"--workdir={tmp_path}", "--task=classification"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    test = make_source("digits", split="test", channels=1)
    (batch,) = eval_batches(test, (16, 16), len(test))
    images = networks.build_normalize(from_plain(stored))(batch["image"])
    logits = jax.jit(lambda params: task.network.apply({"params": params}, images))
    of_average, of_params = (
        metrics.log_loss(batch["label"], jax.nn.softmax(logits(tree))) for tree in (average, params)
    )
    assert scores["loss"] == pytest.approx(of_average, rel=1e-4)
    assert abs(of_average - of_params) > 0.01 * of_average


def write_checkpoint(folder, config, task, params, average):
    """What a fine-tuning run leaves, with these parameters and this average."""
    (folder / "config.json").write_text(json.dumps(config))
    state = {"params": params, "teacher": task.init_teacher(params) | {"average": average}}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, 0, {})


def test_it_has_the_architecture_and_the_pixels_of_the_run_it_is_from(runs):
    config = json.loads((runs / "finetuned" / "config.json").read_text())
    assert config["data"]["mean"] == [0.5]  # the pretraining run's, not the file's
    assert config["model"]["positions"] == "learned"  # which began as sine-cosine


@pytest.mark.slow
def test_stopped_and_continued_it_ends_bit_identical_without_what_it_is_from(runs, tmp_path):
    (tmp_path / "finetune.py").write_text(CONFIG)
    source = shutil.copytree(runs / "pretrained", tmp_path / "pretrained")
    option = f"--config.init_from={source}"
    stop_at(tmp_path, "resumed", 11, option)
    shutil.rmtree(source)
    assert run(tmp_path, "resumed", option) == 0
    whole = restored(runs / "finetuned")
    jax.tree.map(np.testing.assert_array_equal, restored(tmp_path / "resumed"), whole)


def stop_at(folder, name, step, *options):
    """A run that is told to stop after so many steps."""
    advance = MetricsHook.after_step

    def stopping(self, reached):
        advance(self, reached)
        if reached == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MetricsHook, "after_step", stopping)
        assert run(folder, name, *options) == 0


def restored(workdir: pathlib.Path):
    """The arrays of the latest checkpoint."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    return ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")


def config_of(runs, given=(), **changes):
    """The config of the fine-tuning run, changed, with what it takes over."""
    config = cli.load_config(str(runs / "finetune.py"), "finetune")
    config.init_from = str(runs / "pretrained")
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    inherit_to_finetune(config, None, given)
    return config


def start_params(config):
    """The encoder's parameters that a run begins with."""
    job = finetune.FinetuneJob(config, initial=inherit_to_finetune(config, None))
    params = job.initial_params(None)
    return params and params["encoder"]


@pytest.mark.slow
def test_from_scratch_it_is_the_same_network_without_what_was_learned(runs):
    learned, scratch = (config_of(runs, from_scratch=is_scratch) for is_scratch in (False, True))
    assert networks.build_encoder(learned) == networks.build_encoder(scratch)
    assert start_params(scratch) is None
    found = start_params(learned)["block_02"]["mlp_in"]["kernel"]
    expected = restored(runs / "pretrained")["params"]["encoder"]["block_02"]["mlp_in"]["kernel"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__size": "L"}, "model.size='L' is given, and the encoder in"),
        ({"model__patch_size": 7}, "model.patch_size=7 is given, and the encoder in"),
        ({"data__channels": 3}, "data.channels=3 is given, and the encoder in"),
    ],
)
def test_another_architecture_than_the_encoder_s_is_refused_where_it_is_given(
    runs, changes, message
):
    keys = [name.replace("__", ".") for name in changes]
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(runs, given=keys, **changes)
    config = config_of(runs, **changes)  # a config file may be for many encoders
    assert all(flatten(config)[name.replace("__", ".")] != v for name, v in changes.items())


def test_given_pixel_statistics_and_epsilon_count_more_than_the_encoder_s(runs, caplog):
    changes = {"data__mean": (0.3,), "data__std": (0.2,), "model__norm_epsilon": 1e-3}
    keys = [name.replace("__", ".") for name in changes]
    with caplog.at_level("WARNING", logger="ddae_jax"):
        config = config_of(runs, given=[*keys, "model.positions", "model.size"], **changes)
    assert (config.data.mean, config.data.std) == ((0.3,), (0.2,))
    assert networks.build_encoder(config).norm_epsilon == 1e-3
    assert f"data.mean=(0.3,) is given; {runs / 'pretrained'} has (0.5,)" in caplog.text


def test_the_teacher_of_a_run_is_a_beginning_too(runs):
    found = start_params(config_of(runs, init_encoder="teacher"))
    expected = restored(runs / "pretrained")["teacher"]["block_02"]["mlp_in"]["kernel"]
    np.testing.assert_array_equal(found["block_02"]["mlp_in"]["kernel"], expected)


@pytest.mark.slow
def test_a_linear_probe_moves_the_head_alone(runs, tmp_path):
    (tmp_path / "finetune.py").write_text(CONFIG)
    options = (
        f"--config.init_from={runs / 'pretrained'}",
        "--config.epochs=0.3",
        "--config.model.is_frozen",
        "--config.head.normalization=batch",
        "--config.model.pool=class_token",
        "--config.optimizer.kind=lars",
        "--config.optimizer.micro_batches=4",
        "--config.average.decay=0",
    )
    assert run(tmp_path, "probe", *options) == 0
    probe, pretrained = restored(tmp_path / "probe"), restored(runs / "pretrained")
    assert probe["teacher"]["statistics"]["norm"]["mean"].std() > 0
    for name, given in pretrained["params"]["encoder"]["block_03"]["mlp_in"].items():
        np.testing.assert_array_equal(probe["params"]["encoder"]["block_03"]["mlp_in"][name], given)


def test_images_of_another_size_get_resized_positions(runs):
    found = start_params(config_of(runs, model__image_size=(24, 24)))
    assert found["positions"].shape == (36, 16)


@pytest.fixture
def size_of_file(monkeypatch):
    """The golden network has a size like others."""
    monkeypatch.setitem(backbones._HEADS_OF_WIDTH, 16, 2)
    monkeypatch.setitem(vit.SIZES, "golden", vit.Size(16, 2, 2))


def test_the_authors_file_is_a_beginning_too(runs, size_of_file, caplog):
    file = str(TORCH_FILES / "mae.pth")
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "channels": 3}
    with caplog.at_level("WARNING", logger="ddae_jax"):
        config = config_of(
            runs, init_from=file, **{f"data__{name}": value for name, value in statistics.items()}
        )
    assert "does not say which pixel values it was trained on" in caplog.text
    encoder = networks.build_encoder(config)
    assert (encoder.depth, encoder.grid, encoder.positions) == (2, (4, 4), "learned")
    assert start_params(config)["positions"].shape == (16, 16)


def test_beit_s_file_can_be_fine_tuned_on_images_of_another_size(runs, size_of_file):
    file = str(TORCH_FILES / "beit.pth")
    half = {f"data__{name}": (0.5,) * 3 for name in ("mean", "std")}
    config = config_of(runs, init_from=file, data__channels=3, **half)
    encoder, params = networks.build_encoder(config), start_params(config)
    assert encoder.grid == (4, 4)  # that of the file is (2, 2)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda p: encoder.apply({"params": p}, images).tokens[0, 0, 0, 0]))
    of_positions = gradient(params)["shared_bias"]["table"]
    assert of_positions.shape == (7 * 7 + 3, 2)
    assert np.isfinite(of_positions).all()
    assert np.abs(of_positions).max() > 0


def test_a_file_for_other_channels_says_what_to_set(runs, size_of_file):
    message = r"images of 3 channels, but data\.channels=1: set --config\.data\.channels=3"
    with pytest.raises(ValueError, match=message):
        config_of(runs, init_from=str(TORCH_FILES / "mae.pth"))


def test_a_continued_run_has_the_channels_of_its_beginning(runs):
    stored = json.loads((runs / "finetuned" / "config.json").read_text())
    config = cli.load_config(str(runs / "finetune.py"), "finetune")
    config.init_from = "gone"
    config.data.channels, config.data.mean, config.data.std = 3, (0.5,) * 3, (0.5,) * 3
    inherit_to_finetune(config, stored)
    assert (config.data.channels, config.data.mean) == (1, (0.5,))
    config.model.size = "L"
    inherit_to_finetune(config, stored, given=["model.size"])
    assert "model.size: 'micro' in the workdir, 'L' given" in contradictions(
        stored, to_plain(config)
    )


def write_tokenless(folder, like):
    """What a run whose encoder has no class token leaves, with the weights of another one."""
    config = json.loads((like / "config.json").read_text())
    config["model"]["use_class_token"] = False
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "checkpoints").symlink_to(like / "checkpoints")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config.init_from=nowhere",), "nowhere' is not there"),
        (("--config.init_from=RUNS",), "holds neither a run nor weights"),
        (("--config.init_from=RUNS/finetuned",), "is a run of ddae_jax.finetune"),
        (("--config.init_from=RUNS/bad.pth",), "asks for posix.system"),
        (("--config.model.is_frozen",), "give what was pretrained as init_from"),
        (("--config.optimizer.micro_batches=7",), "micro_batches=7 does not divide batch_size=64"),
        (("--config.data.test_split=dev",), "has no split 'dev'"),
        (("--config.mask.ratio=0.5",), "config.mask.ratio is no key of a fine-tuning config"),
        (("--config.init_from=RUNS/pretrained", "--config.init_encoder=teachr"), "'teacher'?"),
        (
            ("--config.init_from=RUNS/tokenless", "--config.model.pool=class_token"),
            "'class_token' needs model.use_class_token=True; set model.pool='mean', as the encoder "
            "of init_from='RUNS/tokenless' has none",
        ),
        (
            ("--config.init_from=RUNS/pretrained", "--config.model.image_size=18,16"),
            "model.image_size=(18, 16) is not divisible by model.patch_size=4",
        ),
    ],
)
def test_bad_input_is_explained_before_anything_is_written(
    options, message, runs, tmp_path, capsys
):
    class Bad:
        def __reduce__(self):
            return os.system, ("true",)

    with zipfile.ZipFile(runs / "bad.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bad(), 2))
    (tmp_path / "finetune.py").write_text(CONFIG)
    if not (runs / "tokenless").exists():
        write_tokenless(runs / "tokenless", runs / "pretrained")
    options = [option.replace("RUNS", str(runs)) for option in options]
    assert status(tmp_path, "never", *options) == 2
    error = capsys.readouterr().err
    assert message.replace("RUNS", str(runs)) in error
    assert not (tmp_path / "never").exists()


@pytest.fixture
def mislabelled(monkeypatch):
    """Lets the sixth example of a split have a label of no class."""

    def mislabel(wrong_split):
        def make(*arguments, split, **options):
            source = make_source(*arguments, split=split, **options)
            if split == wrong_split:
                source.labels()[5] = 12
            return source

        monkeypatch.setattr(builders_data, "make_source", make)

    return mislabel


@pytest.mark.slow
def test_images_have_the_size_that_the_encoder_was_trained_on(runs, tmp_path, capsys):
    text = CONFIG.replace("    config.model.image_size = (16, 16)\n", "")
    (tmp_path / "finetune.py").write_text(text)
    source = f"--config.init_from={runs / 'pretrained'}"
    for epochs in (0.2, 0.3):  # the second one is continued
        options = ("--allow_config_changes", f"--config.epochs={epochs}")
        assert run(tmp_path, "run", source, *options) == 0
        told = capsys.readouterr().err
        assert "to 10 classes, at 16 x 16 pixels (4 x 4 patches), from " in told
        stored = json.loads((tmp_path / "run" / "config.json").read_text())
        assert stored["model"]["image_size"] == [16, 16]
    assert status(tmp_path, "no_encoder") == 2
    told = capsys.readouterr().err
    assert "model.image_size=(0, 0) is that of the encoder in init_from, which is empty" in told
    assert status(tmp_path, "half", source, "--config.model.image_size=0,16") == 2
    assert "model.image_size=(0, 16); both sides are at least 1" in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path):
    """Three classes of one colour each, in two splits, and a config that learns them."""
    for split, (index, name) in itertools.product(("train", "test"), enumerate("abc")):
        folder = tmp_path / "photos" / split / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = np.full((16, 16), 80 * index + number, np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    place = f"config.data.data_dir = {str(tmp_path / 'photos')!r}"
    of_folder = f'config.data.source = "folder"\n    {place}'
    text = CONFIG.replace('config.data.source = "digits"', of_folder)
    text = text.replace("batch_size = 64", "batch_size = 8")
    (tmp_path / "finetune.py").write_text(text.replace("epochs = 2.0", "epochs = 12.0"))
    return tmp_path / "photos"


def evaluate_again(workdir, capsys):
    try:
        status = evaluate.main([f"--workdir={workdir}", "--task=classification"])
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr()
    return status, json.loads(told.out.splitlines()[-1]) if status == 0 else told.err


@pytest.mark.slow
def test_classes_are_matched_by_their_names(photos, tmp_path, capsys, caplog):
    options = ("--config.augment.mixup=0", "--config.augment.cutmix=0", "--config.from_scratch")
    assert run(tmp_path, "run", *options) == 0
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == {"names": ["a", "b", "c"]}
    status, before = evaluate_again(tmp_path / "run", capsys)
    assert (status, before["top1"]) == (0, 1.0)

    # A class that the test images lack is counted, and the others keep their numbers.
    (photos / "test" / "a").rename(photos / "elsewhere")
    status, found = evaluate_again(tmp_path / "run", capsys)
    assert (status, found["top1"], found["per_class"]["a"]) == (0, 1.0, None)
    # One that the network does not know is refused by name.
    (photos / "elsewhere").rename(photos / "test" / "ant")
    status, told = evaluate_again(tmp_path / "run", capsys)
    assert status == 2
    assert "the 'test' split has classes that the network does not have: ant" in told


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_of_no_class_is_named_before_anything_is_written(
    split, mislabelled, runs, tmp_path, capsys
):
    (tmp_path / "finetune.py").write_text(CONFIG)
    mislabelled(split)
    assert status(tmp_path, "never") == 2
    assert f"digits/{split}[5] has label 12; the 10 classes" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(("name", "task"), [("finetuned", "classification"), ("pretrained", "knn")])
def test_a_label_of_no_class_is_named_by_evaluation(name, task, mislabelled, runs, capsys):
    mislabelled("test")
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={runs / name}", f"--task={task}"])
    assert "digits/test[5] has label 12" in capsys.readouterr().err


def test_the_config_of_another_job_is_refused(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        finetune.main([f"--config={runs / 'tiny.py'}", f"--workdir={tmp_path / 'w'}"])
    assert (
        "is a config of `python -m ddae_jax.pretrain`, not of finetune" in capsys.readouterr().err
    )


def test_the_workdir_of_another_job_is_refused(runs, capsys):
    assert status(runs, "pretrained") == 2
    assert "holds a run of ddae_jax.pretrain" in capsys.readouterr().err
