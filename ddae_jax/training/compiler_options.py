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

    On some TPUs, larger parts of a matrix product stay on the chip. On several GPUs, gradients are
    reduced while others are still computed. What ``LIBTPU_INIT_ARGS`` or ``XLA_FLAGS`` set is left
    as they set it.
    """
    device, options = mesh.devices.flat[0], {}
    if device.platform == "gpu" and mesh.size > 1:
        options["xla_gpu_enable_latency_hiding_scheduler"] = True
    if device.device_kind in LARGE_VMEM_KINDS:
        options["xla_tpu_scoped_vmem_limit_kib"] = str(_LARGE_VMEM_KIB)
    given = os.environ.get("LIBTPU_INIT_ARGS", "") + os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in given}
