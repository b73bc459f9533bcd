"""Compiles the training step of any config, for TPUs or GPUs that need not be attached.

    python -m ddae_jax.compile_check --config=configs/imagenet_ddae_vit_b16.py \\
        --topology=v5e:8x8 --out=v5e.json

Reports whether the step fits in memory, the contents of a chip's memory, operations, memory
traffic, collective operations, and the highest possible speed. Nothing is trained, and no data is
needed. docs/scaling.md explains the report. ``--search`` finds the largest batch that fits; without
``--topology`` the step is compiled for the devices of this machine.
"""

from ddae_jax.jobs.commands import answer_help, define_compile_check, usage

if __name__ == "__main__":
    answer_help("compile_check", __doc__)  # before the imports below, which take seconds

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags as absl_flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax import finetune, pretrain, segment
from ddae_jax.aot.chips import CHIPS, usable_bytes
from ddae_jax.aot.compiled_step import CompiledStep, DoesNotFit, compile_step, shortage
from ddae_jax.aot.flops import model_flops
from ddae_jax.aot.report import report
from ddae_jax.aot.roofline import bound_of, pace
from ddae_jax.aot.topology import topology_devices
from ddae_jax.config import to_plain
from ddae_jax.config.checks import check_config
from ddae_jax.jobs import cli, devices, exits
from ddae_jax.jobs.job import DataSpec, Job
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import check_divisible, make_mesh, state_bytes

_log = logging.getLogger(__name__)

JOBS: Mapping[str, type[Job]] = {
    job.name: job for job in (pretrain.PretrainJob, finetune.FinetuneJob, segment.SegmentJob)
}
"""All jobs that train, by their names in configs."""


@dataclasses.dataclass(frozen=True)
class CompileRequest:
    """Training step to compile, and the devices to compile it for.

    Attributes:
        job_class: job that trains.
        config: config of the run.
        mesh: device mesh.
        data: number of classes and size of the images.
        num_images: number of images of an epoch.
        share: share of the highest possible speed that a run is expected to reach.
        topology: name of the TPU slice or the GPUs; empty for the devices of this machine.
    """

    job_class: type[Job]
    config: ConfigDict
    mesh: Mesh
    data: DataSpec
    num_images: int
    share: float
    topology: str

    @property
    def job(self) -> Job:
        """Job of the config."""
        return self.job_class(self.config)

    @property
    def schedule(self) -> Schedule:
        """Schedule of the run."""
        return self.job.schedule(self.num_images)

    def with_batch_per_device(self, count: int) -> "CompileRequest":
        """Returns the same request with another number of images per device."""
        config = self.config.copy_and_resolve_references()
        config.batch_size = count * self.mesh.size
        return dataclasses.replace(self, config=config)

    def program(self) -> TrainProgram:
        """Builds the training program; tokenizers and teachers that are missing get shapes only."""
        return self.job.program(self.schedule, self.data, stand_in_missing=True)

    def batch(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of the arrays of a batch."""
        return self.job.batch_spec(self.data)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 if the step fits, 3 if it does not."""
    with exits.explain_bad_input():
        request, flags = parse_request(argv)
        program = request.program()
    results = analyze(request, program)
    if flags.search:
        results["largest_batch_per_device"] = search(request)
    print(report(results))
    if flags.out:
        pathlib.Path(flags.out).write_text(json.dumps(results, indent=2) + "\n")
    return 0 if results["fits"] else 3


def parse_request(argv: Sequence[str] | None) -> tuple[CompileRequest, absl_flags.FlagValues]:
    """Parses a command line.

    Args:
        argv: arguments of the command line, without the program's name; None for those of this
            process.

    Returns:
        The request, and the flags.

    Raises:
        ValueError, OSError: for bad input.
    """
    flags, given = cli.read_config_flags(
        argv, usage("compile_check", __doc__), define_compile_check, None
    )
    config = flags.config
    check_config(config)
    if flags.topology:
        jax.config.update("jax_platforms", "cpu")  # do not claim accelerators of this machine
    devices.start_devices(is_distributed=False)
    chips = topology_devices(flags.topology) if flags.topology else jax.devices()
    mesh = make_mesh(**config.mesh, devices=chips)
    check_divisible(config.batch_size, mesh, config.optimizer.micro_batches)
    job_class = JOBS[config.job]
    job_class.resolve_config(config, None, given)
    image_size = tuple(map(int, flags.stored_image_size)) or tuple(config.model.image_size)
    data = DataSpec(num_classes=flags.num_classes, image_size=image_size)
    request = CompileRequest(
        job_class, config, mesh, data, flags.num_images, flags.share, flags.topology
    )
    return request, flags


def analyze(request: CompileRequest, program: TrainProgram) -> dict[str, Any]:
    """Compiles the training step and collects its numbers.

    Args:
        request: what to compile.
        program: the program of ``request``.

    Returns:
        Plain values by name. ``fits`` tells whether the step fits in memory, and ``why`` the reason
        if it does not. Some of the other keys are left out if the step does not fit, or if the
        chip is unknown.
    """
    config, mesh = request.config, request.mesh
    kind = mesh.devices.flat[0].device_kind
    chip = CHIPS.get(kind)
    results = {
        "config": to_plain(config),
        "topology": request.topology or f"{mesh.size} x {kind}",
        "num_devices": mesh.size,
        "mesh": dict(mesh.shape),
        "chip": dataclasses.asdict(chip) if chip else {"name": kind},
        "batch_size": config.batch_size,
        "batch_per_device": config.batch_size // mesh.size,
        "versions": {"jax": jax.__version__},
    }
    available = usable_bytes(kind)
    try:
        step = compile_step(program, mesh, request.batch())
    except DoesNotFit as error:
        held = state_bytes(program.state_shapes(mesh))
        needs = {"needed_bytes": error.needed, "available_bytes": error.available}
        return results | {"fits": False, "why": str(error), "bytes_per_device": held, **needs}
    images = config.batch_size // mesh.size
    results |= _step_results(step, images, flops_per_image(program, request))
    results["fits"] = step.total_bytes <= available
    if chip is None:
        return results
    results["usable_bytes"] = available
    if not results["fits"]:
        results["why"] = shortage(step.total_bytes, available)
    return results | _speed_results(step, request)


def flops_per_image(program: TrainProgram, request: CompileRequest) -> float:
    """Returns the operations that the model itself needs per image, forward and backward."""
    small = dataclasses.replace(request, mesh=make_mesh(devices=jax.devices()[:1]))
    small = small.with_batch_per_device(2)
    state, task = program.state_shapes(), program.task

    def loss(params, teacher, batch, key, progress):
        return task.loss(params, teacher, program.preprocess(key, batch), key, progress=progress)

    key, progress = jax.eval_shape(lambda: (jax.random.key(0), jnp.float32(0)))
    return model_flops(loss, state.params, state.teacher, dict(small.batch()), key, progress) / 2


def search(request: CompileRequest) -> int:
    """Finds the largest number of images per device that fits, to an eighth of itself.

    Each attempt compiles the step, the first one with the config's own batch; see :func:`largest`.

    Returns:
        The number of images per device; 0 if not even ``optimizer.micro_batches`` images fit.
    """

    def fits(count: int) -> bool:
        attempt = request.with_batch_per_device(count)
        results = analyze(attempt, attempt.program())
        outcome = "fit" if results["fits"] else results["why"]
        _log.info("%d images on each device: %s", count, outcome)
        return results["fits"]

    unit = request.config.optimizer.micro_batches
    return unit * largest(
        lambda n: fits(n * unit), request.config.batch_size // request.mesh.size // unit
    )


def largest(fits: Callable[[int], bool], start: int) -> int:
    """Finds the largest number that fits, to an eighth of itself; 0 if not even 1 fits.

    Args:
        fits: returns whether a number fits; if one does not, no larger one may.
        start: number that is tried first; it is doubled or halved, and then the number is bisected.
    """
    low, high = 0, None
    count = max(start, 1)
    while high is None or (low == 0 and high > 1) or high - low > max(1, low // 8):
        if fits(count):
            low = count
        else:
            high = count
        count = low * 2 if high is None else (low + high) // 2
    return low


def _step_results(step: CompiledStep, images: int, model_flops: float) -> dict[str, Any]:
    """Returns memory and work of a compiled step as plain values.

    Args:
        step: the compiled step.
        images: number of images per device.
        model_flops: operations per image that the model itself needs.
    """
    return {
        "bytes_per_device": {**step.held, "activations": step.activations},
        "total_bytes_per_device": step.total_bytes,
        "compile_s": step.compile_s,
        "flops_per_image": {
            "compiled": step.flops / images,
            "model": model_flops,
            "ratio": step.flops / images / model_flops,
        },
        "memory_traffic_per_image": step.memory_traffic / images,
        "collectives": {
            kind: dataclasses.asdict(traffic) for kind, traffic in step.collectives.items()
        },
    }


def _speed_results(step: CompiledStep, request: CompileRequest) -> dict[str, Any]:
    """Returns the highest possible speed of a step, and the pace of the run at it and below."""
    config, num_devices = request.config, request.mesh.size
    chip = CHIPS[request.mesh.devices.flat[0].device_kind]
    bound, total_steps = bound_of(step, chip), request.schedule.total_steps
    estimate = step.flops / step.optimal_s / chip.peak_flops if step.optimal_s else None
    return {
        "bound": {**dataclasses.asdict(bound), "step_s": bound.step_s, "limit": bound.limit},
        "peak_share_at_bound": bound.compute_s / bound.step_s,
        "peak_share_by_compiler": estimate,
        "total_steps": total_steps,
        "pace": {
            f"{share:g}": dataclasses.asdict(
                pace(bound.step_s / share, config.batch_size, num_devices, total_steps)
            )
            for share in sorted({1.0, request.share}, reverse=True)
        },
    }


if __name__ == "__main__":
    exits.run(main)
