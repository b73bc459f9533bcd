"""Pretrains an encoder without labels.

    python -m ddae_jax.pretrain --config=configs/digits.py --workdir=runs/digits

The same command continues a run that was stopped or killed. ``--config.KEY=VALUE`` changes a key of
the config; with ``--config.init_from`` the encoder goes on from another run, or from published
weights. docs/method.md says what is learned; the README, what lies in the workdir afterwards.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from ddae_jax.builders import build
from ddae_jax.builders.initialization import begin, start_decoder, start_params, take_over
from ddae_jax.config.pretraining import check_images_of_statistics
from ddae_jax.config.recipes import departures
from ddae_jax.hooks.pretraining import PretrainingWatch
from ddae_jax.jobs import cli, runner
from ddae_jax.methods.task import Trainable
from ddae_jax.training.checkpoint import CheckpointError
from ddae_jax.training.program import Program
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return runner.main(JOB, argv)


def build_parts(config: ConfigDict, workdir: Workdir, mesh: Mesh) -> runner.Parts:
    """What a pretraining run is made of."""
    method = build.build_trainable(config)
    source = build.build_source(config, config.data.train_split)  # may take long
    schedule = build.build_schedule(config, len(source))
    check_images_of_statistics(config, len(source))
    build.settle_crop_share(config, source)
    is_fresh = not workdir.has_checkpoint()
    return runner.Parts(
        program=program_of(config, method, schedule),
        begin=functools.partial(
            begin,
            method=method,
            params=start_params(config) if is_fresh else None,
            beside=start_decoder(config, method) if is_fresh else None,
        ),
        source=source,
        loader=build.build_loader(config, source),
        schedule=schedule,
        watch=PretrainingWatch(config, workdir, method, source, schedule, mesh),
        description=describe(config, method),
        notes=notes(config, method),
        check_continues=functools.partial(check_same_frozen, config=config, method=method),
    )


def build_program(config: ConfigDict, schedule: build.Schedule, data: runner.Data) -> Program:
    """The step of a pretraining run."""
    return program_of(config, build.build_trainable(config), schedule)


def program_of(config: ConfigDict, method: Trainable, schedule: build.Schedule) -> Program:
    """The step that trains a method."""
    optimizer, learning_rate, momentum = build.build_optimizer(config, schedule)
    return Program(
        method=method,
        prepare=build.build_prepare(config),
        optimizer=optimizer,
        learning_rate=learning_rate,
        momentum=momentum,
        channels=config.data.channels,
        seed=config.seed,
        micro_batches=config.optimizer.micro_batches,
        skips_nonfinite=config.optimizer.skip_nonfinite > 0,
        total_steps=schedule.total_steps,
    )


def batch_shapes(config: ConfigDict, data: runner.Data) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch."""
    size = data.image_size if config.data.augment_in == "device" else config.model.image_size
    return runner.image_batch(config, tuple(size))


def describe(config: ConfigDict, method: Trainable) -> str:
    """One line on what is trained."""
    of_teacher = f" of {config.tokenizer.teacher}" if config.method == "vqkd" else ""
    return f"{config.method}: {method.description}{of_teacher}"


def notes(config: ConfigDict, method: Trainable) -> list[str]:
    """What may not be meant: a method that is not the published one, more codes than patches."""
    found = []
    differing = departures(config)
    if differing:
        found.append(
            f"this is not {config.method} as published: {'; '.join(differing)}. "
            f"--config=configs/folder.py:{config.method}, or another of configs/ with such an "
            "ending, sets them"
        )
    h, w = method.encoder.grid
    num_patches = config.batch_size * h * w
    if config.method == "vqkd" and config.tokenizer.num_codes > num_patches:
        found.append(
            f"tokenizer.num_codes={config.tokenizer.num_codes} are more than the {num_patches:,} "
            "patches of a batch: most codes will have none; lower it, or raise batch_size"
        )
    return found


def check_same_frozen(state: TrainState, config: ConfigDict, method: Trainable) -> None:
    """Raises ``CheckpointError`` if a tokenizer or teacher is not what the run started with."""

    @jax.jit
    def is_same(ours: PyTree, given: PyTree) -> Array:
        equal = jax.tree.map(lambda a, b: (a == b).all(), ours, given)
        return jnp.all(jnp.asarray(jax.tree.leaves(equal)))

    ours = method.frozen_of(state.teacher)
    if jax.tree.leaves(ours) and not is_same(ours, method.frozen):
        key = "tokenizer.teacher" if config.method == "vqkd" else "targets.tokenizer"
        section, name = key.split(".")
        raise CheckpointError(
            f"{key}={config[section][name]!r} is not what this run started with; give that, or "
            "another --workdir"
        )


JOB = runner.Job("pretrain", __doc__, build_parts, build_program, batch_shapes, take_over)


if __name__ == "__main__":
    cli.run(main)
