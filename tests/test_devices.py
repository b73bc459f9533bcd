"""The devices of a command: what is settled before JAX starts them."""

import platform
import subprocess
import sys

import pytest

from ddae_jax.devices import computes_on_cpu

# Prints how many pages of 4 KiB each of sixty runs takes anew, with intermediate values of 64 MiB.
PAGES_OF_RUNS = """
import resource
import jax, jax.numpy as jnp
from ddae_jax import devices
devices.start_devices(is_distributed=False)
run = jax.jit(lambda x: (jnp.outer(x, x) @ jnp.outer(x, x)[:, :2]).sum())
x = jnp.ones(4096)
run(x).block_until_ready()
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_step_on_a_cpu_takes_no_memory_anew_from_the_system():
    run = subprocess.run(
        [sys.executable, "-c", PAGES_OF_RUNS],
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    pages = list(map(int, run.stdout.split()))
    assert len(pages) == 60
    # The first runs still make room; a later one seldom, where threads come in a new order.
    assert sorted(pages[20:])[30] < 2**26 / 2**12 / 10


@pytest.mark.parametrize(
    ("platforms", "files", "expected"),
    [
        ("cpu", True, True),
        ("cpu,cuda", True, True),
        ("cuda", False, False),
        ("tpu,cpu", False, False),
        (None, True, False),
        (None, False, True),
        ("", False, True),
    ],
)
def test_a_cpu_computes_where_it_is_told_or_alone(platforms, files, expected, tmp_path):
    if files:
        (tmp_path / "nvidia0").touch()
    assert computes_on_cpu(platforms, [str(tmp_path / "nvidia[0-9]*")]) == expected
