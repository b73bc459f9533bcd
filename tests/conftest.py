"""Every test runs on the CPU, as eight devices, and draws the same examples each time."""

import os
import pathlib
import tempfile

# Both are read when jax is first imported, which no test module has done yet.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"
if DEVICE_COUNT_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICE_COUNT_FLAG}=8".strip()

# What tiny.py's subprocesses compile, for this one run of the suite; its workers inherit the name.
if "TEST_PROGRAMS" not in os.environ:
    cache = pathlib.Path(__file__).parent.parent / ".cache"
    cache.mkdir(exist_ok=True)
    programs = tempfile.TemporaryDirectory(
        prefix="programs-", dir=cache, ignore_cleanup_errors=True
    )
    os.environ["TEST_PROGRAMS"] = programs.name

import jax
import pytest
from hypothesis import settings

from ddae_jax.models import vit

settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("suite")

_SIZES = dict(vit.SIZES)


@pytest.fixture(scope="module")
def quick_compilation():
    """For tests of what does not hang on XLA's optimisations, which take most of their time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _same_sizes():
    """Configs of tests may give a size another meaning; not to the tests after them."""
    yield
    vit.SIZES.update(_SIZES)
