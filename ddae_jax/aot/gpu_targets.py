"""Descriptions of GPUs that XLA needs to compile for them without having one."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from ddae_jax.aot.chips import CHIPS


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Properties of a GPU that a compiler needs beside its :class:`~ddae_jax.aot.chips.Chip`.

    Attributes:
        kind: its name in :data:`~ddae_jax.aot.chips.CHIPS`.
        compute_capability: (major, minor).
        cores: number of streaming multiprocessors.
        fpus_per_core: number of float32 units of each of them.
        clock_ghz: boost clock.
        l2_bytes: size of the cache that all of them share.
        shared_bytes: size of the shared memory of each of them; a block may use 1 KiB less.

    Source: the data sheets of :data:`~ddae_jax.aot.chips.CHIPS`; NVIDIA, CUDA C++ Programming
    Guide, "Technical specifications per compute capability".
    """

    kind: str
    compute_capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    l2_bytes: int
    shared_bytes: int


_HOPPER = {
    "compute_capability": (9, 0),
    "cores": 132,
    "fpus_per_core": 128,
    "clock_ghz": 1.98,
    "l2_bytes": 50 * 2**20,
    "shared_bytes": 228 * 2**10,
}

GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10),
        "h100": Gpu("NVIDIA H100 80GB HBM3", **_HOPPER),
        "h200": Gpu("NVIDIA H200", **_HOPPER),
    }
)
"""GPUs by their name in a topology."""

# Properties of every GPU that the compiler still supports, from the same guide.
_COMMON = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 2**10,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
}
# Versions of cuDNN and CUDA that XLA may rely on.
_CUDNN = (9, 10)
_CUDA = (12, 9)


def target_config(gpu: Gpu) -> str:
    """Returns XLA's ``GpuTargetConfigProto`` of a GPU, as text."""
    chip = CHIPS[gpu.kind]
    device = _COMMON | {
        "core_count": gpu.cores,
        "fpus_per_core": gpu.fpus_per_core,
        "clock_rate_ghz": gpu.clock_ghz,
        "memory_bandwidth": int(chip.memory_bandwidth),
        "device_memory_size": int(chip.memory_bytes),
        "l2_cache_size": gpu.l2_bytes,
        "shared_memory_per_core": gpu.shared_bytes,
        "shared_memory_per_block_optin": gpu.shared_bytes - 2**10,
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items())
    capability = _version("cuda_compute_capability", gpu.compute_capability)
    return "\n".join(
        [
            f"gpu_device_info {{ {fields} {capability} }}",
            'platform_name: "CUDA"',
            _version("dnn_version_info", _CUDNN),
            _version("runtime_version", _CUDA),
            f'device_description_str: "{gpu.kind}"',
        ]
    )


def _version(field: str, version: tuple[int, int]) -> str:
    return f"{field} {{ major: {version[0]} minor: {version[1]} }}"
