"""Pretrains an encoder without labels.

    python -m ddae_jax.pretrain --config=configs/digits.py --workdir=runs/digits

The same command continues a run that was stopped or killed. ``--config.KEY=VALUE`` changes a key of
the config. docs/method.md says what is learned; the README, what lies in the workdir afterwards.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import secrets
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from absl import flags as absl_flags
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from ddae_jax import build, command
from ddae_jax.config import contradictions, to_plain
from ddae_jax.config_checks import ignored_keys
from ddae_jax.data.pipeline import TrainLoader
from ddae_jax.data.sources import Source
from ddae_jax.evaluation import curves
from ddae_jax.methods.trainable import Trainable
from ddae_jax.monitor import CollapseWatch, KnnMonitor, ReportWriter
from ddae_jax.training.agreement import all_or_none, from_first
from ddae_jax.training.checkpoint import CheckpointError, Checkpoints, abstract
from ddae_jax.training.interruption import Stopped, StopRequest
from ddae_jax.training.logging import Recorder, read_metrics
from ddae_jax.training.loop import Every, Plan, train
from ddae_jax.training.sharding import check_divisible, make_mesh, put_batch, state_sharding
from ddae_jax.training.state import TrainState, init_state
from ddae_jax.training.step import jit_train_step, make_train_step
from ddae_jax.training.workdir import Workdir

FOLDERS = (("data", "data_dir"), ("targets", "tokenizer"), ("tokenizer", "teacher"))
"""Keys that name folders; they are stored so that these can be found from elsewhere."""

_log = logging.getLogger("ddae_jax.pretrain")  # also where __name__ is "__main__"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config and a workdir make, before anything is compiled or written."""

    config: ConfigDict
    workdir: Workdir
    mesh: Mesh
    method: Trainable
    source: Source
    loader: TrainLoader
    knn: KnnMonitor | None
    schedule: build.Schedule
    allows_changes: bool = False

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.loader.close()
        self.workdir.release()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with StopRequest() as stop:
        try:
            with command.bad_input_is_explained():
                run = prepare(argv, stop)
            with command.run_ends_are_explained(), run:
                command.use_compilation_cache(run.workdir.compilation_cache)
                pretrain(run, stop)
        except Stopped:
            _log.info("stopped before the first step; there was nothing to save")
    return 0


def prepare(argv: Sequence[str] | None, stop: StopRequest) -> Run:
    """Builds what the command line asks for, and claims its workdir.

    Raises ``ValueError``, ``OSError`` or ``WorkdirInUse`` for bad input, and
    ``OtherProcessFailed`` if another process of the run does.
    """
    with stop.at_once():
        flags = command.parse_config_flags(argv, "ddae_jax.pretrain " + __doc__, _define_flags)
        config = flags.config
        for section, key in FOLDERS:
            config[section][key] = absolute(config[section][key])
        command.start_devices(flags.distributed)
    with may_stop_at_once(stop), all_or_none():
        mesh = make_mesh(**config.mesh)
        check_divisible(config.batch_size, mesh)
        workdir = check_workdir(flags.workdir, config, flags.allow_config_changes)
        method = build.build_trainable(config)
        source = build.build_source(config, config.data.train_split)  # may take long
        run = Run(
            config=config,
            mesh=mesh,
            method=method,
            source=source,
            loader=build.build_loader(config, source),
            knn=KnnMonitor.from_config(config, method, mesh),
            schedule=build.build_schedule(config, source),
            workdir=workdir,
            allows_changes=flags.allow_config_changes,
        )
    with may_stop_at_once(stop):
        claim(workdir, config, flags.allow_config_changes)
    return run


def claim(workdir: Workdir, config: ConfigDict, allow_config_changes: bool) -> None:
    """Lets this run, and no other, write to the workdir; all its processes see the same one.

    Raises ``WorkdirInUse``, or ``ValueError`` as :func:`check_workdir` does: another run may have
    come and gone since that was asked, and ``ValueError`` if the folder is not shared.
    """
    token = from_first(secrets.randbelow(2**31))
    with all_or_none():
        if jax.process_index() == 0:
            workdir.claim(token)
            check_workdir(workdir.path, config, allow_config_changes)
    with all_or_none():
        workdir.check_is_shared(token)


def pretrain(run: Run, stop: StopRequest) -> TrainState:
    """Trains from the latest checkpoint, or from the start, to the end of the schedule."""
    config, schedule = run.config, run.schedule
    optimizer, learning_rate, momentum = build.build_optimizer(config, schedule)
    step = make_train_step(
        run.method,
        optimizer,
        build.build_prepare_images(config),
        learning_rate=learning_rate,
        momentum=momentum,
        seed=config.seed,
    )
    report = ReportWriter(
        config, run.workdir, run.method, run.source, schedule.total_steps, run.mesh
    )
    with open_checkpoints(run) as checkpoints, command.one_ends_all():
        with may_stop_at_once(stop):
            state = start_or_continue(run, optimizer, checkpoints)
            start_step = int(state.step)
            say_start(run, start_step)
            baselines = run.knn.baselines(run.workdir.baselines) if run.knn else {}
        with Recorder(
            run.workdir,
            start_step=start_step,
            total_steps=schedule.total_steps,
            use_tensorboard=config.log.tensorboard,
            is_primary=jax.process_index() == 0,
        ) as record:
            plan = make_plan(run, report, record)
            if not is_recorded(baselines, run.workdir.metrics):
                record.write(start_step, plan.progress(start_step) | baselines)
            state = train(
                state,
                jit_train_step(step, run.mesh, state),
                run.loader,
                lambda images: put_batch(images, run.mesh),
                checkpoints,
                plan,
                stop,
            )
        report.finish(state, int(state.step))
    return state


def may_stop_at_once(stop: StopRequest) -> contextlib.AbstractContextManager:
    """Leaves the body at a stop, if there is one process; several stop together, at a step."""
    return stop.at_once() if jax.process_count() == 1 else contextlib.nullcontext()


def is_recorded(metrics: Mapping[str, float], path: pathlib.Path) -> bool:
    """Whether a metrics file has these metrics, or later ones of their names, with these values."""
    records = read_metrics(path) if metrics else []
    return metrics == {name: curves.latest(records, name) for name in metrics}


def make_plan(run: Run, report: ReportWriter, record: Recorder) -> Plan:
    """How far the run goes, and what happens on the way."""
    config, schedule = run.config, run.schedule
    actions = []
    if run.knn:
        actions.append(Every(schedule.steps(config.evaluation.knn_every_epochs), run.knn.measure))
    if config.log.figures_every_epochs:
        figure_steps = schedule.steps(config.log.figures_every_epochs)
        actions.append(Every(figure_steps, report.write, at_end=False))
    watch = CollapseWatch(config.tokenizer.min_perplexity)

    def on_record(step: int, metrics: Mapping[str, float]) -> None:
        record(step, metrics)
        watch(step, metrics)

    return Plan(
        total_steps=schedule.total_steps,
        batch_size=config.batch_size,
        steps_per_epoch=schedule.steps_per_epoch,
        log_every_steps=config.log.every_steps,
        save_every_steps=schedule.steps(config.checkpoint.every_epochs),
        actions=actions,
        on_record=on_record,
        on_step=record.advance,
    )


def open_checkpoints(run: Run) -> Checkpoints:
    """The run's checkpoints, for restoring and saving."""
    options = run.config.checkpoint
    save_every_steps = run.schedule.steps(options.every_epochs)
    return Checkpoints(
        run.workdir.checkpoints,
        keep_last=options.keep_last,
        keep_every_steps=options.keep_every * save_every_steps or None,
    )


def start_or_continue(
    run: Run, optimizer: optax.GradientTransformation, checkpoints: Checkpoints
) -> TrainState:
    """A fresh state, or that of the latest checkpoint, with the loader put where it was then.

    Only then is the config stored: a checkpoint that does not fit it leaves the workdir as it was.
    """
    initialize = functools.partial(
        init_state,
        method=run.method,
        optimizer=optimizer,
        channels=run.config.data.channels,
    )
    inputs = {"key": jax.random.key(run.config.seed), "frozen": run.method.frozen}
    shapes = jax.eval_shape(initialize, **inputs)
    sharding = state_sharding(run.mesh, shapes)
    if checkpoints.latest_step() is None:
        state = jax.jit(lambda inputs: initialize(**inputs), out_shardings=sharding)(inputs)
    else:
        state, data_state = checkpoints.restore(abstract(shapes, sharding))
        with all_or_none():
            run.loader.set_state(data_state, allow_changes=run.allows_changes)
            check_same_frozen(run, state)
        _log.info("continuing from the checkpoint of step %d", int(state.step))
    with all_or_none():
        if jax.process_index() == 0:
            run.workdir.write_config(to_plain(run.config))
    return state


def check_same_frozen(run: Run, state: TrainState) -> None:
    """Raises ``CheckpointError`` if a tokenizer or teacher is not what the run started with."""

    @jax.jit
    def is_same(ours: PyTree, given: PyTree) -> Array:
        equal = jax.tree.map(lambda a, b: (a == b).all(), ours, given)
        return jnp.all(jnp.asarray(jax.tree.leaves(equal)))

    ours = run.method.frozen_of(state.teacher)
    if jax.tree.leaves(ours) and not is_same(ours, run.method.frozen):
        key = "tokenizer.teacher" if run.config.method == "vqkd" else "targets.tokenizer"
        section, name = key.split(".")
        raise CheckpointError(
            f"{key}={run.config[section][name]!r} is not what this run started with; give that, or "
            "another --workdir"
        )


def say_start(run: Run, start_step: int) -> None:
    """One line in the log on what is trained, on what, and for how long."""
    config = run.config
    _log.info(
        "%s, %s images, %g epochs = %d steps of %d, from step %d, on %d %s device(s)",
        run.method.description,
        f"{len(run.source):,}",
        config.epochs,
        run.schedule.total_steps,
        config.batch_size,
        start_step,
        run.mesh.size,
        jax.devices()[0].platform,
    )
    for line in ignored_keys(config):
        _log.warning(line)
    if config.optimizer.warmup_epochs >= config.epochs:
        _log.warning(
            "optimizer.warmup_epochs=%g: the learning rate rises until the end of %g epochs",
            config.optimizer.warmup_epochs,
            config.epochs,
        )


def check_workdir(
    path: str | os.PathLike, config: ConfigDict, allow_config_changes: bool
) -> Workdir:
    """The folder of this run, after checking the config against the one stored there.

    A run that has no checkpoint yet has nothing to be continued: it may start over with any config.

    Raises ``ValueError`` if the folder holds a run with another config (its differing keys are
    named), or files that are no run's.
    """
    workdir = Workdir(path)
    workdir.check_is_a_run_or_empty()
    stored = workdir.read_config() if workdir.has_checkpoint() else None
    differences = (
        contradictions(stored, to_plain(config), workdir.config) if stored is not None else []
    )
    if differences and not allow_config_changes:
        shown = "\n  ".join(differences)
        raise ValueError(
            f"{workdir.path} holds a run with another config:\n  {shown}\n"
            "Give the config it was started with or another --workdir, or --allow_config_changes "
            "to continue it with these"
        )
    return workdir


def absolute(folder: str) -> str:
    """A folder as it can be found from elsewhere later; addresses and nothing stay as they are."""
    is_path = folder and "://" not in folder
    return os.path.abspath(os.path.expanduser(folder)) if is_path else folder


def _define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "workdir", None, "Folder of the run; it is made, or continued.", flag_values=flags
    )
    command.require("workdir", "FOLDER", flags)
    absl_flags.DEFINE_bool(
        "allow_config_changes",
        False,
        "Continue a run although its config, or its data, differs.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "distributed",
        False,
        "One of several processes, as on a TPU pod or under SLURM: join the others first.",
        flag_values=flags,
    )


if __name__ == "__main__":
    command.run(main)
