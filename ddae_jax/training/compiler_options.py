"""Compiler options of the training step, by the kind of device."""

import os

from jax.sharding import Mesh

# How much of the on-chip memory (VMEM) one operation may hold; the rest is for data fetched ahead.
# More than the compiler's default, for the chips on which the compiler then counts fewer bytes and
# no more cycles (benchmarks/results/scoped_vmem.json; a v5e is not among them). Some chips go by
# two names.
_LARGE_VMEM_KIB = 48 * 2**10
LARGE_VMEM_KINDS = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")


def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
    """Returns the ``compiler_options`` of ``jax.jit`` for a training step on a mesh.

    On some TPUs, they let larger parts of a matrix product stay on the chip. An option that
    ``LIBTPU_INIT_ARGS`` or ``XLA_FLAGS`` sets is left out. GPUs get no options: XLA's
    latency-hiding scheduler does not change the program (benchmarks/results/gpu_overlap.json).
    """
    name = "xla_tpu_scoped_vmem_limit_kib"
    is_large = mesh.devices.flat[0].device_kind in LARGE_VMEM_KINDS
    given = os.environ.get("LIBTPU_INIT_ARGS", "") + os.environ.get("XLA_FLAGS", "")
    return {name: str(_LARGE_VMEM_KIB)} if is_large and name not in given else {}
