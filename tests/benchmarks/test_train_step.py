"""The benchmark of the training step: what it measures is stored, and peers are asked for."""

import json
import math
import stat
import sys

import jax
import pytest

import tiny
from benchmarks import peer_mae, train_step
from ddae_jax.jobs import cli
from ddae_jax.jobs.cli import CommandEnded
from ddae_jax.models import vit

QUICK = ("--rounds=2", "--round_s=0")

# Answers as the peer's process does: twice the time of one run for each further one.
STAND_IN = """#!{python}
import json, sys
spec = json.loads(sys.argv[2])
described = {{"compile_s": 1.0, "parameters": spec["width"], "note": "a stand-in"}}
print(json.dumps(described), flush=True)
for line in sys.stdin:
    count = json.loads(line)["count"]
    told = {{"seconds": 0.5 * count, "processor_seconds": 2.0 * count, "peak_bytes": 2**30}}
    print(json.dumps(told), flush=True)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    monkeypatch.setattr(train_step, "matmul_size", lambda: 64)


OPTIONS = {
    "model.size": "micro",
    "model.dtype": "float32",
    "decoder.width": 16,
    "decoder.depth": 1,
    "decoder.num_heads": 2,
    "batch_size": 8,
    "data.augment_in": "workers",
}
CELL = f"{tiny.ROOT}/configs/cifar10.py:mae,last"


def mae(*arguments):
    """Arguments for a MAE that compiles fast."""
    given = [f"--config.{key}={value}" for key, value in OPTIONS.items()]
    return [f"--config={CELL}", *given, *QUICK, *arguments]


def config_of_mae():
    config = cli.load_config(CELL)
    config.update_from_flattened_dict(OPTIONS)
    return config


@pytest.mark.slow
def test_what_is_measured_is_told_and_stored(tmp_path, capsys):
    out = tmp_path / "found.json"
    config = tiny.write_config(tmp_path)
    assert train_step.main([f"--config={config}", *QUICK, f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["machine"]["jax"]
    ours = found["sides"]["ddae_jax"]
    rate, seconds = ours["images_per_s"], ours["step_s"]
    assert rate["min"] <= rate["median"] <= rate["max"]
    assert rate["max"] == pytest.approx(64 / seconds["min"])
    share = ours["share_of_matmul_rate"]
    assert 0 < share["min"] <= share["max"]
    assert found["model_operations_per_image"] > 0
    assert ours["compile_s"] > 0
    state = 4 * ours["parameters"]
    assert ours["compiled_bytes"] * 8 > 3 * state  # parameters and the optimizer's two of each
    assert "ddae_jax" in capsys.readouterr().out


@pytest.mark.slow
def test_a_peer_takes_turns_and_is_compared(tmp_path, capsys):
    python, out = tmp_path / "python", tmp_path / "found.json"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    assert train_step.main(mae("--peer=timm:eager", f"--peer_python={python}", f"--out={out}")) == 0
    found = json.loads(out.read_text())
    theirs = found["sides"]["timm:eager"]
    assert theirs["images_per_s"] == {"median": 16, "min": 16, "max": 16}
    assert theirs["step_processor_s"]["median"] == 2
    assert theirs["matmul_rate"]["median"] == 2 * 64**3 / 0.5
    assert theirs["peak_bytes"] == 2**30
    ours = found["sides"]["ddae_jax"]
    ratio = found["ratios"]["timm:eager"]["images_per_s"]
    assert ratio["max"] == pytest.approx(0.5 / ours["step_s"]["min"])
    assert "against timm:eager" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peer=keras",), "known: timm, transformers"),
        (("--peer=timm", "--config.supervision.mode=deep"), "supervision.mode='last'"),
        (("--peer=timm", "--config.data.augment_in=device"), "data.augment_in='workers'"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, words, capsys):
    with pytest.raises(CommandEnded):
        train_step.main(mae(*arguments))
    assert words in capsys.readouterr().err


def test_what_a_peer_lacks_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(peer_mae, "_is_installed", lambda name: False)
    answer = peer_mae.missing(peer_mae.Spec(**train_step.peer_spec(config_of_mae(), "timm")))
    assert "pip install torch timm" in answer


def test_peers_have_as_many_parameters_as_ours():
    pytest.importorskip("timm")
    config = config_of_mae()
    program = train_step.request_of(config).program()
    shapes = program.state_shapes().params
    ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    network = peer_mae.make_timm_mae(peer_mae.Spec(**train_step.peer_spec(config, "timm")))
    assert ours == sum(p.numel() for p in network.parameters() if p.requires_grad)
