"""A training step, compiled by the TPU compiler for a slice that is not there."""

import json
import subprocess
import sys

import pytest

import tiny

COMPILER = tiny.ROOT / ".cache" / "tpu_compiler"


@pytest.mark.skipif(
    not (COMPILER / "installed").exists(), reason="launch/test.sh installs the TPU compiler"
)
def test_a_step_is_compiled_for_a_slice(tmp_path):
    out = tmp_path / "found.json"
    config = tiny.write_config(tmp_path)
    changes = ("model.dtype=bfloat16", "mesh.fsdp=2")
    environment = tiny.environment(as_for_users=True)
    del environment["JAX_PLATFORMS"], environment["XLA_FLAGS"]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "ddae_jax.compile_check", f"--config={config}"),
            *("--topology=v5p:2x2x1", f"--out={out}"),
            *(f"--config.{change}" for change in changes),
        ],
        env=environment | {"PYTHONPATH": f"{tiny.ROOT}:{COMPILER}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.read_text())
    assert (found["topology"], found["chip"]["name"]) == ("v5p:2x2x1", "v5p")
    assert found["mesh"] == {"data": 2, "fsdp": 2}
    assert found["fits"]
    held = found["bytes_per_device"]
    assert held["parameters"] > 0
    assert held["activations"] > 0
    # Parameters are gathered from the two of fsdp, gradients reduced over all.
    assert found["collectives"]["all-gather"]["bytes"] > held["parameters"] / 2
    assert found["collectives"]["all-reduce"]["count"] > 0
    assert found["bound"]["memory_s"] > 0
    assert 0 < found["peak_share_by_compiler"] < 1
    assert "TPU_WORKER_HOSTNAMES" not in ran.stderr  # of this machine, which has no TPU
