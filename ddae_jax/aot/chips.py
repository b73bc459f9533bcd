"""What accelerators can do, from their makers' documentation."""

import dataclasses
import math
import os
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        name: as people say it.
        peak_flops: bfloat16 matrix products with float32 sums, operations a second.
        memory_bytes: of its high-bandwidth memory; of GPUs, what CUDA tells of it.
        memory_bandwidth: bytes a second.
        interconnect_bandwidth: bytes a second that it sends to its neighbours, all links together;
            the same again arrives.
        source: where this is said.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    source: str


_MEMORY_SHARE = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # or its old name
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
"""By the kind that JAX tells of a device (``device.device_kind``)."""


def usable_bytes(kind: str) -> float:
    """What a program may hold of a chip's memory; infinity for a chip that is not known.

    JAX takes three quarters of a GPU's, or what ``XLA_CLIENT_MEM_FRACTION`` says.

    Raises ``ValueError`` if that is no number.
    """
    if kind not in CHIPS:
        return math.inf
    share = 1.0
    if kind.startswith("NVIDIA"):
        told = [os.environ.get(name) for name in _MEMORY_SHARE]
        share = float(next(filter(None, told), 0.75))
    return share * CHIPS[kind].memory_bytes
