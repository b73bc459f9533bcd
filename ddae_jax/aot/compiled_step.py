"""A training step, compiled for devices that need not be attached, and the compiler's numbers."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from ddae_jax.aot.collectives import Traffic, collectives
from ddae_jax.aot.gpu_cost import gpu_work
from ddae_jax.models.backend import compiled_for
from ddae_jax.training.compiler_options import compiler_options
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.sharding import batch_sharding, bytes_per_device, state_bytes

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(MemoryError):
    """A program needs more memory than a device has.

    Attributes:
        needed, available: bytes; None if the compiler does not report them.
    """

    def __init__(self, message: str, needed: float | None, available: float | None):
        super().__init__(message)
        self.needed = needed
        self.available = available


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Numbers of a compiled step, for one device.

    Attributes:
        compile_s: seconds that compilation took.
        held: bytes of ``parameters``, ``optimizer``, ``teacher`` and ``batch``.
        activations: bytes that the step needs in addition.
        flops: operations of a step, by the compiler's count; for GPUs, by
            :func:`ddae_jax.aot.gpu_cost.gpu_work`.
        memory_traffic: bytes that a step reads and writes, counted in the same way.
        optimal_s: the compiler's estimate of the shortest time of a step, seconds; None if it gives
            none.
        collectives: traffic between devices, by kind of operation.
    """

    compile_s: float
    held: Mapping[str, int]
    activations: int
    flops: float
    memory_traffic: float
    optimal_s: float | None
    collectives: Mapping[str, Traffic]

    @property
    def total_bytes(self) -> int:
        """Bytes that the device holds during a step."""
        return sum(self.held.values()) + self.activations


def compile_step(
    program: TrainProgram, mesh: Mesh, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> CompiledStep:
    """Compiles a training step for a mesh of devices.

    Args:
        program: training program.
        mesh: mesh of attached devices, or of :func:`ddae_jax.aot.topology.topology_devices`.
        batch: shapes and dtypes of a batch for all devices together.

    Raises:
        DoesNotFit: if the compiler reports that the step needs more memory than a device has.
    """
    lowered = lower_step(program, mesh, batch, aot_options(mesh))
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise _explained(error) from error
    compile_s = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if mesh.devices.flat[0].platform == "gpu":
        (flops, memory_traffic), optimal_s = gpu_work(text), 0.0
    else:
        costs = compiled.cost_analysis()
        # The compiler counts the body of the loop over micro-batches only once.
        flops, memory_traffic, optimal_s = (
            count * program.micro_batches
            for count in (
                costs.get("flops", math.nan),
                costs.get("bytes accessed", math.nan),
                known_seconds(costs.get("optimal_seconds", 0)),
            )
        )
    return CompiledStep(
        compile_s=compile_s,
        held={
            **state_bytes(program.state_shapes(mesh)),
            "batch": bytes_per_device(_laid_out(batch, mesh)),
        },
        activations=memory.temp_size_in_bytes,
        flops=flops,
        memory_traffic=memory_traffic,
        optimal_s=optimal_s if optimal_s > 0 else None,
        collectives=collectives(text, mesh.size),
    )


def lower_step(
    program: TrainProgram,
    mesh: Mesh,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    options: Mapping[str, str | bool] | None = None,
) -> jax.stages.Lowered:
    """Traces and lowers a training step for a mesh of devices, without compiling it.

    Args:
        program, mesh, batch: as in :func:`compile_step`.
        options: compiler options; see :meth:`ddae_jax.training.program.TrainProgram.jit`.
    """
    state = program.state_shapes(mesh)
    with compiled_for(mesh.devices.flat[0].platform):
        return program.jit(mesh, options).lower(state, _laid_out(batch, mesh))


def aot_options(mesh: Mesh) -> dict[str, str | bool]:
    """Returns the compiler options of a training step.

    They are those of a job; for GPUs that are not attached, Triton's matrix products are disabled,
    as XLA tunes them by running them. cuBLAS then computes all products.
    """
    options = compiler_options(mesh)
    if mesh.devices.flat[0].platform == "gpu" and jax.default_backend() != "gpu":
        options["xla_gpu_enable_triton_gemm"] = False
    return options


def _laid_out(batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)),
        dict(batch),
    )


def known_seconds(optimal_s: float) -> float:
    """Corrects the compiler's estimate for custom calls, each of which it counts as -1 s.

    The result leaves custom calls out. It is correct for programs of less than a second.
    """
    return optimal_s + max(0, math.ceil(-optimal_s))


def _explained(error: Exception) -> Exception:
    """Returns the compiler's error, as :class:`DoesNotFit` if it is about memory."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return error
    sizes = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", text)
    if not sizes:
        return DoesNotFit(text.splitlines()[0], None, None)
    needed, available = (
        float(number) * _UNITS[unit] for number, unit in (sizes.groups()[:2], sizes.groups()[2:])
    )
    return DoesNotFit(shortage(needed, available), needed, available)


def shortage(needed: float, available: float) -> str:
    """Formats the bytes that are needed and those that are available."""
    return f"{needed / 2**30:.1f} GiB are needed, {available / 2**30:.1f} GiB are there"
