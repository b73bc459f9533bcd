"""The devices of a command: what is settled before JAX starts them."""

import platform
import subprocess
import sys
import time

import pytest

import tiny
from ddae_jax.jobs import devices
from ddae_jax.jobs.devices import computes_on_cpu

# Prints how many pages of 4 KiB each of sixty runs takes anew, with intermediate values of 64 MiB.
PAGES_OF_RUNS = """
import resource
import jax, jax.numpy as jnp
from ddae_jax.jobs import devices
devices.start_devices(is_distributed=False)
run = jax.jit(lambda x: (jnp.outer(x, x) @ jnp.outer(x, x)[:, :2]).sum())
x = jnp.ones(4096)
run(x).block_until_ready()
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_process_whose_others_do_not_come_says_so_and_ends():
    program = (
        "from ddae_jax.jobs import devices; "
        "devices.join(devices.Cluster('127.0.0.1:29517', 2, 1), patience_s=1.5)"
    )
    done = tiny.run_program(program)
    assert done.returncode == 1
    assert "waiting for the other processes of this run at 127.0.0.1:29517, for up to 1.5 s" in (
        done.stderr
    )
    assert done.stderr.endswith(
        "error: not all processes of this run have come together at 127.0.0.1:29517 within 1.5 s. "
        "Start the same command on all of them, with the same coordinator, and let the network "
        "pass its port\n"
    )


def test_where_the_others_come_nothing_is_said(capsys):
    with devices.telling_of_a_long_wait("", patience_s=0.1):
        pass
    time.sleep(0.2)
    assert capsys.readouterr().err == ""
