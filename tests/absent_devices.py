"""compile_check as people run it, with a compiler that launch/test.sh installed."""

import json
import subprocess
import sys

import pytest

import tiny


def needs_compiler(name):
    """Mark a test as slow, and skip it where the compiler of ``tpu`` or ``gpu`` programs is not."""
    is_there = (_folder(name) / "installed").exists()
    skip = pytest.mark.skipif(not is_there, reason=f"launch/test.sh --all installs the {name}'s")
    return lambda test: pytest.mark.slow(skip(test))


def compile_check(name, tmp_path, topology, *changes, before=""):
    """What is found for a small run, and what was said; ``before`` runs in the same process."""
    out = tmp_path / "found.json"
    arguments = [
        *(f"--config={tiny.write_config(tmp_path)}", f"--topology={topology}", f"--out={out}"),
        *(f"--config.{change}" for change in changes),
    ]
    program = f"{before}\nfrom ddae_jax import compile_check\nfrom ddae_jax.jobs import exits\n"
    environment = tiny.environment(as_for_users=True)
    del environment["JAX_PLATFORMS"], environment["XLA_FLAGS"]
    ran = subprocess.run(
        [sys.executable, "-c", program + "exits.run(compile_check.main)", *arguments],
        env=environment | {"PYTHONPATH": f"{tiny.ROOT}:{_folder(name)}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(out.read_text()), ran.stdout, ran.stderr


def _folder(name):
    return tiny.ROOT / ".cache" / f"{name}_compiler"
