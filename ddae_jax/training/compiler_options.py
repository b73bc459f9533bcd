"""What the compiler is told beyond the program, by the devices that it compiles for."""

import os

from jax.sharding import Mesh

# How much of the on-chip memory (VMEM) one operation may hold; the rest takes what is fetched
# ahead. More than the compiler's own limit, where it then counts fewer bytes and no more cycles
# (benchmarks/results/scoped_vmem.json: not on a v5e). A chip may be called by either name.
_LARGE_VMEM_KIB = 48 * 2**10
LARGE_VMEM_KINDS = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")


def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
    """The options of a training step on a mesh, for ``jax.jit``.

    On some TPUs, larger parts of a matrix product stay on the chip. What ``LIBTPU_INIT_ARGS`` or
    ``XLA_FLAGS`` sets is left as it sets it. GPUs have none: with XLA's latency-hiding scheduler
    the program is the same as without (benchmarks/results/gpu_overlap.json).
    """
    name = "xla_tpu_scoped_vmem_limit_kib"
    is_large = mesh.devices.flat[0].device_kind in LARGE_VMEM_KINDS
    given = os.environ.get("LIBTPU_INIT_ARGS", "") + os.environ.get("XLA_FLAGS", "")
    return {name: str(_LARGE_VMEM_KIB)} if is_large and name not in given else {}
