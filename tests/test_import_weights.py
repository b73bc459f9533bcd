"""Published weights as a workdir: evaluated, compared, exported and gone on with."""

import json

import jax
import numpy as np
import pytest

import golden_arrays
import tiny
from ddae_jax import evaluate, export, import_weights, pretrain
from ddae_jax.command import CommandEnded
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.interop.described import Told
from ddae_jax.models import vit
from ddae_jax.pretrained import load_pretrained
from undrawn import pictures_left_out

WEIGHTS = golden_arrays.FOLDER / "backbones" / "timm_vit"


@pytest.fixture(autouse=True)
def size(monkeypatch):
    backbone = read_backbone(WEIGHTS)
    options = backbone.options
    size = vit.Size(options["width"], options["depth"], options["num_heads"])
    monkeypatch.setitem(vit.SIZES, "micro", size)
    return backbone


def options_of(folder, size):
    """What the tiny config lacks: images as the weights know them."""
    height, width = size.options["image_size"]
    config = folder / "config.py"
    config.write_text(tiny.CONFIG.replace("Size(16, 3, 2)", "Size(24, 2, 3)"))
    return (
        f"--config={config}",
        f"--config.init_from={WEIGHTS}",
        f"--config.model.image_size={height},{width}",
        "--config.data.channels=3",
        "--config.data.mean=0.5,0.5,0.5",
        "--config.data.std=0.5,0.5,0.5",
        "--config.log.tensorboard=False",
    )


@pytest.fixture
def imported(size, tmp_path):
    workdir = tmp_path / "imported"
    assert import_weights.main([*options_of(tmp_path, size), f"--workdir={workdir}"]) == 0
    return workdir


def status(main, *arguments):
    try:
        return main([*map(str, arguments)])
    except CommandEnded as ended:
        return ended.code


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


def test_it_is_evaluated_and_compared(imported, capsys):
    common = (f"--workdir={imported}", "--limit=64")
    assert evaluate.main([*common, "--task=knn"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < found["accuracy"] <= 1
    assert evaluate.main([*common, "--task=attention_distance"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found


def test_pretraining_goes_on_from_it(size, tmp_path):
    workdir = tmp_path / "run"
    options = (*options_of(tmp_path, size), f"--workdir={workdir}", "--config.epochs=0.05")
    slow = ("--config.optimizer.learning_rate=0", "--config.optimizer.weight_decay=0")
    slow += ("--config.model.encoder_input=full",)  # so that there is a mask token, which is fresh
    with pictures_left_out():
        assert pretrain.main([*options, *slow]) == 0
    for encoder in ("student", "teacher"):  # the momentum encoder begins there too
        found = load_pretrained.__wrapped__(str(workdir), encoder).params
        assert "mask_token" in found
        wanted = load_pretrained.__wrapped__(str(WEIGHTS)).params
        for name in wanted:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[name], wanted[name]
            )


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
    wanted = read_backbone(file, Told(2, "gelu", "encoder")).params
    found = load_pretrained.__wrapped__(str(workdir)).params
    for name in wanted:
        jax.tree.map(np.testing.assert_array_equal, found[name], wanted[name])
    decoder = (*given, heads, "--config.init_decoder=True", f"--workdir={tmp_path / 'new'}")
    assert status(import_weights.main, *decoder) == 2


def test_what_cannot_be_imported_is_explained(imported, size, tmp_path, capsys):
    options = options_of(tmp_path, size)
    assert status(import_weights.main, *options, f"--workdir={imported}") == 2
    assert "holds a run already" in capsys.readouterr().err
    missing = [o for o in options if "init_from" not in o]
    assert status(import_weights.main, *missing, f"--workdir={tmp_path / 'new'}") == 2
    assert "--config.init_from=WEIGHTS is missing" in capsys.readouterr().err
    elsewhere = [*missing, "--config.init_from=/no/such"]
    assert status(import_weights.main, *elsewhere, f"--workdir={tmp_path / 'new'}") == 2
    assert "/no/such" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
