"""The example of docs/adding_a_method.md is a method like those that come along."""

import functools
import json
import re

import jax
import numpy as np
import pytest

import tiny
from ddae_jax import export, methods, pretrain
from ddae_jax.config import pretrain_defaults
from ddae_jax.config.checks import check_config
from ddae_jax.config.recipes import recipe_differences, use_recipe
from ddae_jax.jobs import exits
from ddae_jax.methods import METHODS, register_method
from ddae_jax.models.vit import ViT
from undrawn import pictures_left_out


@pytest.fixture(scope="module")
def example():
    """The specification in the documentation, registered while the tests of this file run."""
    text = (tiny.ROOT / "docs" / "adding_a_method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace = {}
    exec(code, namespace)
    register_method(namespace["SPEC"])
    yield namespace["SPEC"]
    del methods._registered[namespace["SPEC"].name]


def test_its_loss_is_the_one_by_hand(example):
    encoder = ViT((8, 8), 4, width=8, depth=2, num_heads=2)
    mask = np.array([[True, False, True, False]] * 3)
    method = example.build(
        encoder,
        None,
        sample_mask=lambda key, batch: mask,
        num_masked=2,
        depths=(2,),
        mode="last",
    )
    params = jax.jit(lambda key: method.init(key, 3))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    loss, output = jax.jit(method.loss)(params, {}, images, jax.random.key(2))
    predict = jax.jit(functools.partial(method.student.apply, method="predict"), static_argnums=3)
    predictions = predict({"params": params}, images, mask, 2)
    by_hand = []
    for row, column in ((0, 0), (1, 0)):  # patches 0 and 2 of the 2x2 grid are hidden
        true = images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(3, -1)
        by_hand.append(np.abs(predictions["pixels"][0][:, 2 * row + column] - true).mean())
    np.testing.assert_allclose(loss, np.mean(by_hand), rtol=1e-6)
    assert output.beta.tolist() == [[0.0]]


def test_it_pretrains_from_a_config_and_is_exported_with_its_citation(example, tmp_path):
    config = tiny.write_config(tmp_path, depth=2)
    workdir, out = tmp_path / "run", tmp_path / "exported"
    options = ["--config.method=absolute_pixels", "--config.epochs=0.36", *tiny.SIMPLEST[:1]]
    with pictures_left_out():
        assert pretrain.main([f"--config={config}", f"--workdir={workdir}", *options]) == 0
    records = [record for record in tiny.records(workdir) if "loss" in record]
    assert records[-1]["loss"] < records[0]["loss"]
    assert "ABSOLUTE_PIXELS" in (workdir / "report.html").read_text()
    assert json.loads((workdir / "config.json").read_text())["method"] == "absolute_pixels"
    assert export.main([f"--workdir={workdir}", "--format=timm", f"--out={out}"]) == 0
    card = (out / "README.md").read_text()
    assert "- Nobody 2026. *Pixels Are Absolute*." in card
    assert "| method | absolute_pixels |" in card


def test_its_recipe_and_its_needs_are_heeded(example):
    config = pretrain_defaults()
    use_recipe(config, "absolute_pixels,last")
    assert (config.method, config.mask.ratio) == ("absolute_pixels", 0.6)
    assert recipe_differences(config) == []
    check_config(config)
    config.mask.ratio = 0.95
    assert recipe_differences(config) == ["mask.ratio=0.95, not 0.6"]
    with pytest.raises(ValueError, match="absolute pixels need 10 % of the image"):
        check_config(config)


def test_help_describes_it(example, capsys):
    with pytest.raises(exits.CommandEnded) as ended:
        pretrain.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(r"absolute_pixels\s+raw pixels of hidden patches, by absolute error", shown)
    for spec in METHODS.values():
        assert spec.summary in " ".join(shown.split())


def test_a_slip_of_its_name_is_told(example):
    config = pretrain_defaults()
    config.method = "absolute_pixel"
    with pytest.raises(ValueError, match="did you mean 'absolute_pixels'"):
        check_config(config)


def test_another_method_of_a_name_that_is_taken_is_refused(example):
    with pytest.raises(ValueError, match="there is a method 'absolute_pixels' already"):
        register_method(METHODS["mae"].__class__(**{**vars(METHODS["mae"]), "name": example.name}))


def test_a_package_adds_a_method_by_an_entry_point(tmp_path):
    (tmp_path / "their_method.py").write_text(
        "import dataclasses\n"
        "from ddae_jax.methods.mae import SPEC as MAE\n"
        "SPEC = dataclasses.replace(MAE, name='theirs')\n"
    )
    installed = tmp_path / "theirs-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[ddae_jax.methods]\ntheirs = their_method:SPEC\n")
    program = (
        f"import sys; sys.path.append({str(tmp_path)!r}); from ddae_jax.methods import METHODS; "
        "print(METHODS['theirs'].papers == METHODS['mae'].papers)"
    )
    assert tiny.run_program(program).stdout == "True\n"
