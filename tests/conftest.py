"""Every test runs on the CPU, as eight devices, and draws the same examples each time."""

import os
import pathlib
import tempfile

# All are read when jax is first imported, which no test module has done yet.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's optimisations are most of the suite's time, and hardly what a test hangs on.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
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

import pytest
from hypothesis import settings

from ddae_jax.models import vit

settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("suite")

_SIZES = dict(vit.SIZES)


@pytest.fixture(autouse=True)
def _same_sizes():
    """Configs of tests may give a size another meaning; not to the tests after them."""
    yield
    vit.SIZES.update(_SIZES)
