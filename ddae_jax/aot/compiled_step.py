"""A training step, compiled for devices that need not be there, as the compiler sees it."""

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
        needed, available: bytes, where the compiler tells them.
    """

    def __init__(self, message: str, needed: float | None, available: float | None):
        super().__init__(message)
        self.needed = needed
        self.available = available


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What is known of a compiled step; of one device, unless it says otherwise.

    Attributes:
        compile_s: seconds that compiling took.
        held: bytes of ``parameters``, ``optimizer``, ``teacher`` and ``batch``.
        activations: bytes that the step needs beside them.
        flops: operations of a step, by the compiler's count; for GPUs, by :func:`gpu_work`.
        memory_traffic: bytes that a step reads and writes, likewise.
        optimal_s: seconds that the compiler deems least; None if it does not say.
        collectives: what a step sends, by kind.
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
        """All that the device holds during a step."""
        return sum(self.held.values()) + self.activations


def compile_step(
    program: TrainProgram, mesh: Mesh, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> CompiledStep:
    """Compiles a step for a mesh of devices.

    Args:
        program: what is trained.
        mesh: of devices at hand, or of :func:`ddae_jax.aot.topology.topology_devices`.
        batch: the arrays of a batch, of all devices together.

    Raises:
        DoesNotFit: if the compiler finds that it needs more memory than a device has.
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
        # The compiler counts the body of the loop over micro-batches once.
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
    """A step for a mesh, before the compiler sees it.

    Args:
        program, mesh, batch: see :func:`compile_step`.
        options: see :func:`ddae_jax.training.program.TrainProgram.jit`.
    """
    state = program.state_shapes(mesh)
    with compiled_for(mesh.devices.flat[0].platform):
        return program.jit(mesh, options).lower(state, _laid_out(batch, mesh))


def aot_options(mesh: Mesh) -> dict[str, str | bool]:
    """Those of a job's step; for GPUs that are not there, without what is tuned by trying it."""
    options = compiler_options(mesh)
    if mesh.devices.flat[0].platform == "gpu" and jax.default_backend() != "gpu":
        options["xla_gpu_enable_triton_gemm"] = False  # cuBLAS takes all products
    return options


def _laid_out(batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)),
        dict(batch),
    )


def known_seconds(optimal_s: float) -> float:
    """What the compiler deems least, without its custom calls: each of them counts as -1 s.

    Right for programs of less than a second.
    """
    return optimal_s + max(0, math.ceil(-optimal_s))


def _explained(error: Exception) -> Exception:
    """The compiler's error, as :class:`DoesNotFit` if it is about memory."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return error
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", text)
    if not found:
        return DoesNotFit(text.splitlines()[0], None, None)
    needed, available = (
        float(number) * _UNITS[unit] for number, unit in (found.groups()[:2], found.groups()[2:])
    )
    return DoesNotFit(shortage(needed, available), needed, available)


def shortage(needed: float, available: float) -> str:
    """How many bytes are needed, and how many are there, for people."""
    return f"{needed / 2**30:.1f} GiB are needed, {available / 2**30:.1f} GiB are there"
