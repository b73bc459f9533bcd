"""Every test runs on the CPU, as eight devices, and draws the same examples each time."""

import gc
import os
import pathlib
import tempfile

# All are read when NumPy or jax is first imported, which no test module has done yet.
# On a product as small as in tests, threads of OpenBLAS only wait for each other: a hundredfold.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's optimisations are most of the suite's time, and hardly what a test hangs on. Without the
# fusion emitters a training step compiles in half the time of the rest.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
XLA_FLAGS = {
    "xla_force_host_platform_device_count": "8",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}
given = os.environ.get("XLA_FLAGS", "")
ours = [f"--{name}={value}" for name, value in XLA_FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([*given.split(), *ours])

# What was compiled, for this one run of the suite: its workers and tiny.py's subprocesses share it.
if "TEST_PROGRAMS" not in os.environ:
    cache = pathlib.Path(__file__).parent.parent / ".cache"
    cache.mkdir(exist_ok=True)
    programs = tempfile.TemporaryDirectory(
        prefix="programs-", dir=cache, ignore_cleanup_errors=True
    )
    os.environ["TEST_PROGRAMS"] = programs.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["TEST_PROGRAMS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest
from hypothesis import settings

import shape_checks

shape_checks.install()  # before anything imports what is checked

from ddae_jax.models import vit

# Tracing leaves much that the garbage collector walks through again and again, and hardly a cycle.
gc.set_threshold(50_000, 20, 50)

_SIZES = dict(vit.SIZES)


def pytest_configure(config):
    """Draw fewer examples of each property where slow tests are left out."""
    examples = 20 if "not slow" in config.option.markexpr else 50
    settings.register_profile("suite", deadline=None, max_examples=examples, derandomize=True)
    settings.load_profile("suite")


def pytest_collection_finish():
    """Tell the garbage collector that what was imported is there to stay."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_sizes():
    """Configs of tests may give a size another meaning; not to the tests after them."""
    yield
    vit.SIZES.update(_SIZES)
