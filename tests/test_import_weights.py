"""Published weights as a workdir: evaluated, compared, exported and gone on with."""

import json
import shutil

import jax
import numpy as np
import pytest

import golden_arrays
import tiny
from ddae_jax import evaluate, export, import_weights, pretrain
from ddae_jax.builders import initialization
from ddae_jax.builders.pretrained import load_pretrained
from ddae_jax.config import finetune_defaults, from_plain
from ddae_jax.interop.architecture import WeightHints
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.jobs.cli import CommandEnded
from ddae_jax.models import vit
from undrawn import pictures_left_out

WEIGHTS = golden_arrays.FOLDER / "backbones" / "timm_vit"


@pytest.fixture(autouse=True)
def size(monkeypatch):
    backbone = read_backbone(WEIGHTS)
    options = backbone.options
    size = vit.Size(options["width"], options["depth"], options["num_heads"])
    monkeypatch.setitem(vit.SIZES, "micro", size)
    return backbone


def options_of(folder, weights=WEIGHTS):
    """The tiny config, of other images than the weights know."""
    config, text = folder / "config.py", tiny.CONFIG
    for old, new in (
        ("Size(16, 3, 2)", "Size(24, 2, 3)"),
        ("(16, 16)", "(24, 24)"),
        ("channels = 1", "channels = 3"),
        ("(0.5,)", "(0.5,) * 3"),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    return (
        f"--config={config}",
        f"--config.init_from={weights}",
        "--config.log.tensorboard=False",
    )


@pytest.fixture
def imported(size, tmp_path):
    workdir = tmp_path / "imported"
    assert import_weights.main([*options_of(tmp_path), f"--workdir={workdir}"]) == 0
    return workdir


def status(main, *arguments):
    try:
        return main([*map(str, arguments)])
    except CommandEnded as ended:
        return ended.code


@pytest.mark.slow
def test_it_is_exported_as_it_was(imported, tmp_path):
    out = tmp_path / "out"
    assert export.main([f"--workdir={imported}", "--format=timm", f"--out={out}"]) == 0
    theirs, ours = read_backbone(WEIGHTS), read_backbone(out)
    assert ours.options == theirs.options
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
    for name, part in ours.params.items():
        jax.tree.map(np.testing.assert_array_equal, part, theirs.params[name])
    card = (out / "README.md").read_text()
    assert "imported from `timm_vit` and not trained further" in card
    for claim in ("pretrained without labels", "masked-image-modeling", "DDAE", "epochs"):
        assert claim not in card


@pytest.mark.slow
def test_it_is_evaluated_and_compared(imported, capsys):
    common = (f"--workdir={imported}", "--limit=64")
    assert evaluate.main([*common, "--task=knn"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < found["accuracy"] <= 1
    assert evaluate.main([*common, "--task=attention_distance"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found


@pytest.mark.slow
def test_pretraining_goes_on_from_it(size, tmp_path):
    workdir = tmp_path / "run"
    height, width = size.options["image_size"]
    options = (*options_of(tmp_path), f"--workdir={workdir}", "--config.epochs=0.05")
    options += (f"--config.model.image_size={height},{width}",)
    slow = ("--config.optimizer.learning_rate=0", "--config.optimizer.weight_decay=0")
    slow += ("--config.model.encoder_input=full",)  # so that there is a mask token, which is fresh
    with pictures_left_out():
        assert pretrain.main([*options, *slow]) == 0
    for encoder in ("student", "teacher"):  # the momentum encoder begins there too
        found = load_pretrained(str(workdir), encoder).params
        assert "mask_token" in found
        wanted = load_pretrained(str(WEIGHTS)).params
        for name in wanted:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[name], wanted[name]
            )


@pytest.mark.slow
def test_a_file_is_imported_with_what_is_told_of_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    config = tiny.write_config(tmp_path, depth=2)
    file = golden_arrays.FOLDER / "published" / "ijepa.tar"
    given = (
        f"--config={config}",
        f"--config.init_from={file}",
        "--config.init_part=encoder",
        "--config.model.image_size=8,8",
        "--config.mask.ratio=0.5",
        "--config.data.channels=3",
        "--config.data.mean=0.5,0.5,0.5",
        "--config.data.std=0.5,0.5,0.5",
    )
    workdir = tmp_path / "imported"
    assert status(import_weights.main, *given, f"--workdir={workdir}") == 2
    assert not workdir.exists()
    heads = "--config.init_heads=2"
    assert status(import_weights.main, *given, heads, f"--workdir={workdir}") == 0
    assert f"{workdir}: an encoder of" in capsys.readouterr().err
    wanted = read_backbone(file, WeightHints(2, "gelu", "encoder")).params
    found = load_pretrained(str(workdir)).params
    for name in wanted:
        jax.tree.map(np.testing.assert_array_equal, found[name], wanted[name])
    decoder = (*given, heads, "--config.init_decoder=True", f"--workdir={tmp_path / 'new'}")
    assert status(import_weights.main, *decoder) == 2


def stored(workdir):
    return from_plain(json.loads((workdir / "config.json").read_text()))


def with_settings(folder, **changes):
    """The weights with other settings of timm."""
    copy = folder / "weights"
    shutil.copytree(WEIGHTS, copy)
    told = json.loads((copy / "config.json").read_text())
    told["pretrained_cfg"] |= changes
    (copy / "config.json").write_text(json.dumps(told))
    return copy


@pytest.mark.slow
def test_what_the_weights_tell_is_taken_over_and_said(size, tmp_path, capsys):
    settings = {"crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "squash"}
    weights = with_settings(tmp_path, **settings)
    workdir = tmp_path / "run"
    assert import_weights.main([*options_of(tmp_path, weights), f"--workdir={workdir}"]) == 0
    said = capsys.readouterr().err
    config, shown = stored(workdir), size.options["image_size"]
    assert config.model.image_size == shown != (24, 24)
    assert (config.evaluation.pool, config.evaluation.crop_share) == ("class_token", 1.0)
    assert (config.evaluation.interpolation, config.evaluation.crop_mode) == ("bilinear", "squash")
    assert f"taken over from {weights}: model.image_size={shown} (the config: (24, 24))" in said
    assert "evaluation.pool='class_token' (the config: 'mean')" in said
    out = tmp_path / "out"
    assert export.main([f"--workdir={workdir}", "--format=timm", f"--out={out}"]) == 0
    told = json.loads((out / "config.json").read_text())
    assert told["pretrained_cfg"].items() >= settings.items()
    assert told["global_pool"] == "token"
    assert "positions were resized" not in (out / "README.md").read_text()


@pytest.mark.slow
def test_what_is_given_counts_more_than_the_weights_and_the_card_says_it(size, tmp_path, capsys):
    workdir, patch = tmp_path / "run", size.options["patch_size"]
    height, width = size.options["image_size"]
    given = (f"--config.model.image_size={2 * height},{width}", "--config.evaluation.pool=mean")
    assert import_weights.main([*options_of(tmp_path), *given, f"--workdir={workdir}"]) == 0
    config, said = stored(workdir), capsys.readouterr().err
    assert (config.model.image_size, config.evaluation.pool) == ((2 * height, width), "mean")
    assert "evaluation.pool='mean' is given; " in said
    assert f"model.image_size={(2 * height, width)} is given; " in said
    assert len(load_pretrained(str(workdir)).params["positions"]) == (
        2 * height * width // patch**2
    )
    out = tmp_path / "out"
    assert export.main([f"--workdir={workdir}", "--format=timm", f"--out={out}"]) == 0
    assert (
        f"They were trained on images of {height} x {width} pixels; their positions were resized "
        f"for {2 * height} x {width} pixels, without any training."
        in (out / "README.md").read_text()
    )


def test_other_jobs_say_what_they_have_otherwise_than_the_encoder(caplog):
    config = finetune_defaults()
    config.init_from, config.model.image_size = str(WEIGHTS), (24, 16)
    with caplog.at_level("INFO"):
        initialization.inherit_architecture(config, None)
    assert config.model.image_size == (24, 16)
    assert "model.image_size=(24, 16), and the encoder in" in caplog.text
    assert "was trained on images of (16, 16): its positions are resized" in caplog.text
    assert "model.pool='mean' is what is fine-tuned; the encoder in" in caplog.text
    caplog.clear()
    config.model.image_size, config.model.pool = (0, 0), "class_token"
    with caplog.at_level("INFO"):
        initialization.inherit_architecture(config, None)
    assert config.model.image_size == (16, 16)
    assert not caplog.text


@pytest.mark.slow
def test_of_weights_that_do_not_tell_how_images_are_cut_the_usual_is_taken(tmp_path, monkeypatch):
    found = load_pretrained(str(WEIGHTS))._replace(evaluation={})
    monkeypatch.setattr(initialization, "load_pretrained", lambda *_: found)
    workdir = tmp_path / "run"
    assert import_weights.main([*options_of(tmp_path), f"--workdir={workdir}"]) == 0
    shown = stored(workdir).evaluation
    assert (shown.crop_share, shown.interpolation, shown.pool) == (0.875, "bicubic", "mean")


def test_what_cannot_be_imported_is_explained(imported, tmp_path, capsys):
    options = options_of(tmp_path)
    assert status(import_weights.main, *options, f"--workdir={imported}") == 2
    assert "holds a run already" in capsys.readouterr().err
    missing = [o for o in options if "init_from" not in o]
    assert status(import_weights.main, *missing, f"--workdir={tmp_path / 'new'}") == 2
    assert "--config.init_from=WEIGHTS is missing" in capsys.readouterr().err
    elsewhere = [*missing, "--config.init_from=/no/such"]
    assert status(import_weights.main, *elsewhere, f"--workdir={tmp_path / 'new'}") == 2
    assert "/no/such" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
