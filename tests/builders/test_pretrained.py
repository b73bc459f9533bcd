"""From an encoder to a tokenizer to BEiT v2, as people run them, and what they are told."""

import contextlib
import io
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import tiny
from ddae_jax import evaluate, pretrain
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.networks import untrained_encoder_params
from ddae_jax.builders.pretrained import load_pretrained
from ddae_jax.builders.tokenizers import load_teacher, load_tokenizer
from ddae_jax.config import from_plain
from ddae_jax.jobs.cli import CommandEnded
from ddae_jax.models import vit
from undrawn import pictures_left_out

pytestmark = [  # three runs, each of which needs the one before, are made once
    pytest.mark.slow,
    pytest.mark.xdist_group("tokenizer and what predicts it"),
]

OPTIONS = ("--config.epochs=0.36", "--config.evaluation.knn_every_epochs=0")  # 8 steps
BEIT2 = ("--config.method=beit2", "--config.mask.kind=block", "--config.mask.ratio=0.4")
BEIT2 += ("--config.model.encoder_input=full",)
VQKD = ("--config.method=vqkd", "--config.tokenizer.num_codes=12", "--config.log.every_steps=1")
VQKD += ("--config.model.encoder_input=full",)
VQKD += ("--config.tokenizer.min_perplexity_share=1",)  # whatever it is, it is told


@pytest.fixture(autouse=True)
def size(monkeypatch):
    """What the tiny config calls micro, also where a stored config is read."""
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write_config(tmp_path_factory.mktemp("config"), depth=2)


def run(config, workdir, *arguments):
    flags = [f"--config={config}", f"--workdir={workdir}", *OPTIONS, *arguments]
    with pictures_left_out():
        assert pretrain.main(flags) == 0
    return workdir


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """A teacher, a tokenizer that learned from it, and a run that predicts its tokens."""
    folder = tmp_path_factory.mktemp("runs")
    run(config, folder / "teacher", *tiny.SIMPLEST)
    teacher = f"--config.tokenizer.teacher={folder / 'teacher'}"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        run(config, folder / "tokenizer", *VQKD, teacher)
    (folder / "tokenizer.log").write_text(said.getvalue())
    tokenizer = f"--config.targets.tokenizer={folder / 'tokenizer'}"
    run(config, folder / "beit2", *BEIT2, tokenizer)
    return folder


def stored_state(workdir):
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    with ocp.PyTreeCheckpointer() as checkpointer:
        return step, checkpointer.restore((workdir / "checkpoints" / str(step) / "state").resolve())


def without_last_checkpoint(workdir, copy):
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "8")
    return copy


def assert_same_arrays(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_whose_codebook_collapses_is_told_so(runs):
    lines = (runs / "tokenizer.log").read_text().splitlines()
    told = [line for line in lines if "COLLAPSED" in line]
    assert len(told) == 1
    assert "below 12 (its size times tokenizer.min_perplexity_share), for 5 records" in told[0]


def test_a_tokenizer_is_trained_and_watched(runs):
    records = tiny.records(runs / "tokenizer")
    assert records[-1]["step"] == 8
    assert records[-1]["loss/features"] < records[0]["loss/features"]
    assert all(1 <= r["codebook/perplexity"] <= 12 for r in records)
    assert all(0 < r["codebook/used"] <= 1 for r in records)
    figures = {p.stem for p in (runs / "tokenizer" / "figures").glob("*.png")}
    assert {"tokens", "codebook", "loss"} <= figures
    _, state = stored_state(runs / "tokenizer")
    _, teacher = stored_state(runs / "teacher")
    assert_same_arrays(state["teacher"]["encoder"], teacher["params"]["encoder"])
    lengths = np.linalg.norm(state["teacher"]["codebook"]["codes"], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_its_tokens_are_what_another_run_predicts(runs):
    _, tokenizer = stored_state(runs / "tokenizer")
    step, state = stored_state(runs / "beit2")
    assert step == 8
    assert_same_arrays(state["teacher"]["codes"], tokenizer["teacher"]["codebook"]["codes"])
    for name, part in state["teacher"]["params"].items():
        assert_same_arrays(part, tokenizer["params"][name])
    records = [record for record in tiny.records(runs / "beit2") if "loss" in record]
    assert records[-1]["loss"] < records[0]["loss"]
    assert {"loss/tokens/depth_1", "beta/tokens/depth_2", "loss/tokens/depth_4"} <= records[
        0
    ].keys()
    report = (runs / "beit2" / "report.html").read_text()
    assert "painted by their tokens" in report


@pytest.mark.parametrize("name", ["tokenizer", "beit2"])
def test_continued_from_a_checkpoint_it_ends_bit_identical(name, config, runs, tmp_path):
    workdir = without_last_checkpoint(runs / name, tmp_path / name)
    options = {
        "tokenizer": (*VQKD, f"--config.tokenizer.teacher={runs / 'teacher'}"),
        "beit2": (*BEIT2, f"--config.targets.tokenizer={runs / 'tokenizer'}"),
    }
    run(config, workdir, *options[name])
    (_, continued), (_, undisturbed) = stored_state(workdir), stored_state(runs / name)
    assert_same_arrays(continued, undisturbed)


def test_continued_with_another_tokenizer_it_stops(config, runs, tmp_path, capsys):
    other = without_last_checkpoint(runs / "tokenizer", tmp_path / "other")
    workdir = without_last_checkpoint(runs / "beit2", tmp_path / "beit2")
    with pytest.raises(CommandEnded):
        run(config, workdir, *BEIT2, f"--config.targets.tokenizer={other}")
    assert (
        f"targets.tokenizer='{other}' is not what this run started with" in capsys.readouterr().err
    )
    assert stored_state(workdir)[0] == 4


def test_features_are_evaluated_although_the_tokenizer_is_gone(runs, tmp_path, capsys):
    stored = json.loads((runs / "beit2" / "config.json").read_text())
    workdir = shutil.copytree(runs / "beit2", tmp_path / "beit2")
    stored["targets"]["tokenizer"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(stored))
    assert evaluate.main([f"--workdir={workdir}", "--task=knn"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.1 < result["accuracy"] <= 1


@pytest.mark.parametrize("name", ["teacher", "tokenizer", "beit2"])
def test_the_untrained_encoder_is_the_one_that_the_run_started_with(name, runs):
    config = from_plain(json.loads((runs / name / "config.json").read_text()))
    method = build_method(config)
    params = jax.jit(lambda key: method.init(key, 1))(jax.random.key(config.seed))
    assert_same_arrays(untrained_encoder_params(config), params["encoder"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((*BEIT2,), "method='beit2' predicts the tokens of a trained tokenizer"),
        ((*BEIT2, "--config.targets.tokenizer=nowhere"), "is no folder"),
        ((*BEIT2, "--config.targets.tokenizer=RUNS"), "holds neither a run nor weights"),
        ((*BEIT2, "--config.targets.tokenizer=RUNS/teacher"), "is a run of method='ddae'"),
        (
            (*BEIT2, "--config.targets.tokenizer=RUNS/tokenizer", "--config.model.patch_size=2"),
            "the tokenizer has patch_size=4 and so a grid of (4, 4) patches",
        ),
        ((*VQKD,), "method='vqkd' learns from a teacher"),
        (
            (*VQKD, "--config.tokenizer.teacher=RUNS/teacher", "--config.model.patch_size=2"),
            "each patch needs one feature",
        ),
        (
            (
                *VQKD,
                "--config.tokenizer.teacher=RUNS/teacher",
                "--config.model.encoder_input=visible",
            ),
            "method='vqkd' encodes all patches",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    changes, message, config, runs, tmp_path, capsys
):
    changes = [change.replace("RUNS", str(runs)) for change in changes]
    with pytest.raises(CommandEnded) as ended:
        run(config, tmp_path / "run", *changes)
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_images_are_given_to_the_tokenizer_as_it_knows_them(runs):
    config = from_plain(json.loads((runs / "beit2" / "config.json").read_text()))
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 16, 16, 1)).astype(np.float32)
    tokens = []
    for mean, std in (((0.5,), (0.5,)), ((0.1,), (0.25,))):
        config.data.mean, config.data.std = mean, std
        tokenizer = load_tokenizer(str(runs / "tokenizer"), config)
        images = (pixels - np.float32(mean)) / np.float32(std)
        tokens.append(tokenizer.tokens(tokenizer.frozen, images))
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize(
    ("frozen", "dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("as_trained", "float32")],
)
def test_tokenizers_and_teachers_have_a_dtype_of_their_own(frozen, dtype, runs):
    config = from_plain(json.loads((runs / "beit2" / "config.json").read_text()))
    config.model.dtype, config.model.frozen_dtype = "bfloat16", frozen
    assert load_tokenizer(str(runs / "tokenizer"), config).module.encoder.dtype == dtype
    assert load_teacher(str(runs / "teacher"), config).module.dtype == dtype


def test_an_encoder_of_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="encoder='teachr'; it is 'student' or 'teacher'"):
        load_pretrained(str(tmp_path), "teachr")
