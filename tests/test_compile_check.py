"""The step of any config, compiled for the devices of this machine, as people ask for it."""

import importlib.metadata
import json
import math
import sys

import jax
import pytest

import tiny
from ddae_jax import compile_check
from ddae_jax.aot import topology
from ddae_jax.aot.chips import CHIPS, usable_bytes
from ddae_jax.compile_check import largest
from ddae_jax.jobs.cli import CommandEnded
from ddae_jax.models import vit
from ddae_jax.models.backend import compiled_for, platform


@pytest.fixture(autouse=True)
def size(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 3, 2))


def status(*arguments):
    try:
        return compile_check.main([*map(str, arguments)])
    except CommandEnded as ended:
        return ended.code


@pytest.mark.slow
def test_what_is_found_is_told_and_stored(tmp_path, capsys):
    out = tmp_path / "found.json"
    arguments = (f"--config={tiny.write_config(tmp_path)}", "--config.mesh.fsdp=4", f"--out={out}")
    without_decoder = "--config.model.encoder_input=full"
    assert status(*arguments, without_decoder, "--num_images=1442") == 0
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    assert found["fits"]
    assert found["mesh"] == {"data": 2, "fsdp": 4}
    assert (found["batch_size"], found["batch_per_device"]) == (64, 8)
    held = found["bytes_per_device"]
    # The teacher has what the student has, but for head and beta; the optimizer two of each.
    assert 0.8 * held["parameters"] < held["teacher"] < held["parameters"]
    assert held["optimizer"] == pytest.approx(2 * held["parameters"], rel=0.05)
    assert held["batch"] == 8 * (16 * 16 + 4)
    assert 1 < found["flops_per_image"]["ratio"] < 2  # so narrow, what is element-wise counts
    assert found["collectives"].keys() <= {
        "all-reduce",
        "all-gather",
        "reduce-scatter",
        "all-to-all",
    }
    assert found["collectives"]["all-reduce"]["bytes"] > 0
    for words in ("it fits", "data=2 x fsdp=4", "activations", "GFLOP compiled", "all-reduce"):
        assert words in text


@pytest.mark.slow
def test_fine_tuning_is_compiled_too(tmp_path, capsys):
    out = tmp_path / "found.json"
    config = tiny.ROOT / "configs" / "cifar10_finetune.py"
    small = ("--config.model.size=micro", "--config.batch_size=8", "--config.augment.mixup=0")
    small += ("--config.model.image_size=32,32",)
    assert status(f"--config={config}", *small, "--num_classes=10", f"--out={out}") == 0
    assert json.loads(out.read_text())["config"]["job"] == "finetune"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ("cifar10.py:beit,last", "targets.tokenizer"),
        ("cifar10_tokenizer.py", "tokenizer.teacher"),
    ],
)
def test_a_tokenizer_or_teacher_that_is_not_there_is_compiled_untrained(
    config, missing, tmp_path, capsys
):
    out = tmp_path / "found.json"
    small = ("--config.model.size=micro", "--config.batch_size=8", "--config.decoder.width=16")
    nowhere = f"--config.{missing}={tmp_path / 'nowhere'}"
    assert (
        status(f"--config={tiny.ROOT / 'configs' / config}", *small, nowhere, f"--out={out}") == 0
    )
    found = json.loads(out.read_text())
    assert found["bytes_per_device"]["teacher"] > 0.5 * found["bytes_per_device"]["parameters"]
    assert f"{missing}='{tmp_path / 'nowhere'}' is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=v5e",), "a generation and the chips along each side, such as v5e:16x16"),
        (("--topology=h100",), "or GPUs, such as h100:8 or h100:4x8"),
        (("--topology=v5f:4x4",), "known: v4, v5e, v5p, v6e, a100, h100, h200; did you mean 'v5p'"),
        (
            ("--topology=h100:2x2x2",),
            "a number of GPUs, such as h100:8, or machines times the GPUs",
        ),
        (("--topology=v5p:4x4",), "a slice of v5p has 3 sides of at least 1, such as v5p:4x4x4"),
        (("--config.batch_size=60",), "batch_size=60 is not divisible by the 8 devices"),
        (("--config.mesh.fsdp=3",), "mesh.fsdp=3; they must multiply to the number of devices, 8"),
        (("--config.optimizer.micro_batches=16",), "in 16 parts (optimizer.micro_batches)"),
    ],
)
def test_bad_input_is_explained(arguments, message, tmp_path, capsys):
    assert status(f"--config={tiny.write_config(tmp_path)}", *arguments) == 2
    assert message in capsys.readouterr().err


def test_without_the_tpu_compiler_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert status(f"--config={tiny.write_config(tmp_path)}", "--topology=v5e:4x4") == 2
    bring = f'`pip install "jax[tpu]=={jax.__version__}"` brings it, and no TPU is needed'
    assert bring in capsys.readouterr().err


def test_a_tpu_compiler_of_another_version_is_refused_before_it_compiles(monkeypatch, capsys):
    version = importlib.metadata.version
    monkeypatch.setattr(topology, "_is_installed", lambda name: True)
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "0.0.1" if name == "libtpu" else version(name),
    )
    assert status("--config=configs/digits.py", "--topology=v5e:2x2") == 2
    told = capsys.readouterr().err
    assert f"libtpu 0.0.1 does not fit jax {jax.__version__}, which asks for ==" in told
    assert f'`pip install "jax[tpu]=={jax.__version__}"` brings the one that fits' in told


@pytest.mark.parametrize(
    ("installed", "missing"),
    [
        ((), "the GPU compiler"),
        (("nvidia.cudnn",), "the GPU compiler"),
        (("jax_plugins.xla_cuda12",), "cuDNN"),
    ],
)
def test_without_the_gpu_compiler_it_says_what_to_install(
    installed, missing, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(topology, "_is_installed", lambda module: module in installed)
    monkeypatch.setattr(topology.ctypes.util, "find_library", lambda name: None)
    assert status(f"--config={tiny.write_config(tmp_path)}", "--topology=h100:8") == 2
    told = capsys.readouterr().err
    assert f"{missing} is not installed" in told
    assert '`pip install "jax[cuda12]"`' in told


def test_a_compiler_of_another_version_is_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(topology, "_is_installed", lambda module: True)  # but JAX knows of none
    assert status(f"--config={tiny.write_config(tmp_path)}", "--topology=h100:8") == 2
    assert f"is not that of jax {jax.__version__}" in capsys.readouterr().err


def test_of_a_gpu_a_program_has_what_jax_takes(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    whole = CHIPS["NVIDIA H100 80GB HBM3"].memory_bytes
    assert usable_bytes("NVIDIA H100 80GB HBM3") == 0.75 * whole
    assert usable_bytes("TPU v5 lite") == 16 * 2**30
    assert usable_bytes("cpu") == math.inf
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert usable_bytes("NVIDIA H100 80GB HBM3") == 0.9 * whole
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.8")
    assert usable_bytes("NVIDIA H100 80GB HBM3") == 0.8 * whole
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "")
    assert usable_bytes("NVIDIA H100 80GB HBM3") == 0.9 * whole


@pytest.mark.parametrize("start", [1, 8, 100, 300])
@pytest.mark.parametrize("limit", [0, 1, 7, 100, 257])
def test_the_largest_batch_is_found_to_an_eighth(start, limit):
    asked = []

    def fits(count):
        asked.append(count)
        return count <= limit

    found = largest(fits, start)
    assert found <= limit
    assert limit - found <= max(1, found // 8) - 1
    assert len(asked) < 20
    assert asked[0] == start


def test_layers_know_what_they_are_compiled_for():
    assert platform() == jax.default_backend() == "cpu"
    with compiled_for("tpu"):
        assert platform() == "tpu"
    assert platform() == "cpu"
