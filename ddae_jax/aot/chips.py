"""Peak numbers of accelerators, from their makers' documentation."""

import dataclasses
import math
import os
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak numbers of one device.

    Attributes:
        name: common name.
        peak_flops: operations per second of bfloat16 matrix products with float32 sums.
        memory_bytes: size of its high-bandwidth memory; for GPUs, as CUDA reports it.
        memory_bandwidth: bytes per second of that memory.
        interconnect_bandwidth: bytes per second that the device sends over all links together; it
            receives as many at the same time.
        source: documentation that states these numbers.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    source: str


_MEMORY_SHARE = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # new and old name
_CUDA = "memory as openxla/xla has it, xla/backends/gpu/target_config/specs"

CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "TPU v4": Chip(
            "v4", 275e12, 32 * 2**30, 1228e9, 300e9,
            "Jouppi et al. 2023, TPU v4, table 4; docs.cloud.google.com/tpu/docs/v4",
        ),
        "TPU v5 lite": Chip(
            "v5e", 197e12, 16 * 2**30, 819e9, 200e9, "docs.cloud.google.com/tpu/docs/v5e"
        ),
        "TPU v5": Chip(
            "v5p", 459e12, 95 * 2**30, 2765e9, 600e9, "docs.cloud.google.com/tpu/docs/v5p"
        ),
        "TPU v6 lite": Chip(
            "v6e", 918e12, 32 * 2**30, 1640e9, 400e9, "docs.cloud.google.com/tpu/docs/v6e"
        ),
        "NVIDIA A100-SXM4-80GB": Chip(
            "A100", 312e12, 85.1e9, 2039e9, 300e9, f"NVIDIA A100 80GB data sheet (SXM); {_CUDA}"
        ),
        "NVIDIA H100 80GB HBM3": Chip(
            "H100", 989.5e12, 84.9e9, 3350e9, 450e9,
            f"NVIDIA H100 data sheet (SXM, without sparsity); {_CUDA}",
        ),
        "NVIDIA H200": Chip(
            "H200", 989.5e12, 151.4e9, 4800e9, 450e9,
            f"NVIDIA H200 data sheet (SXM, without sparsity); {_CUDA}",
        ),
    }
)  # fmt: skip
"""Chips by JAX's name of the device kind (``device.device_kind``)."""


def usable_bytes(kind: str) -> float:
    """Returns the bytes of a chip's memory that a program may use; infinity for an unknown chip.

    JAX uses three quarters of a GPU's memory, or the share that ``XLA_CLIENT_MEM_FRACTION`` sets.

    Args:
        kind: kind of the device, a key of :data:`CHIPS`.

    Raises:
        ValueError: if the environment variable is not a number.
    """
    if kind not in CHIPS:
        return math.inf
    share = 1.0
    if kind.startswith("NVIDIA"):
        settings = [os.environ.get(name) for name in _MEMORY_SHARE]
        share = float(next(filter(None, settings), 0.75))
    return share * CHIPS[kind].memory_bytes
