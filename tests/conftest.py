"""Every test runs on the CPU, as eight devices, and draws the same examples each time."""

import os

# Both are read when jax is first imported, which no test module has done yet.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"
if DEVICE_COUNT_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICE_COUNT_FLAG}=8".strip()

from hypothesis import settings

settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("suite")
