"""What all jobs that train share: from the command line to the last checkpoint.

A job says what it builds from its config (:class:`Job`, :class:`Parts`); everything else, such as
claiming a workdir, continuing, stopping and saving, is the same for all of them and stands here.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import secrets
import signal
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from absl import flags as absl_flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.build import Schedule
from ddae_jax.config import from_plain, to_plain
from ddae_jax.config.checks import check_config, ignored_keys
from ddae_jax.config.downstream import TOLD_BY_INIT_FROM
from ddae_jax.config.schema import FOLDERS, flatten
from ddae_jax.config.values import contradictions, is_free, job_of, take_stored
from ddae_jax.data.source_base import Source
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.jobs import cli, devices
from ddae_jax.training.checkpoint import CheckpointError, Checkpoints
from ddae_jax.training.loop import (
    Every,
    NonFiniteLoss,
    Plan,
    RecurringNonFiniteLoss,
    make_up,
    train,
)
from ddae_jax.training.metrics import Recorder, latest, read_metrics
from ddae_jax.training.multihost import all_or_none, check_same_everywhere, from_first, of_each
from ddae_jax.training.program import Program
from ddae_jax.training.sharding import (
    AXES,
    check_divisible,
    layout_table,
    make_mesh,
    put_batch,
    state_bytes,
)
from ddae_jax.training.signals import Stopped, StopRequest
from ddae_jax.training.state import TrainState
from ddae_jax.training.step import jit_train_step
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)


class Watch(Protocol):
    """Who looks at a run on its way."""

    def baselines(self) -> Mapping[str, float]:
        """Metrics of what comes before the first step, recorded once."""

    def measure_fresh(self, state: TrainState) -> Mapping[str, float]:
        """Measures the state that a run begins with, for what comes to be compared with it."""

    def actions(self) -> Sequence[Every]:
        """What is measured and drawn now and then."""

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes each record."""

    def finish(self, state: TrainState, step: int) -> None:
        """Tells how the run stands when it ends, by ``step``."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a job builds from its config, before anything is compiled or written.

    Attributes:
        program: the step, and what is trained.
        source: of the images.
        loader: this process's share of the batches.
        schedule: how long the run is.
        watch: who looks at it.
        begin: from a fresh state to the one that training starts with.
        description: one line on what is trained.
        class_names: of the classes that are learned, in the order of their numbers; None if they
            have none.
        notes: a line each on what may not be meant, to be warned of.
        check_continues: raises if the state of a checkpoint cannot be continued with these parts.
    """

    program: Program
    source: Source
    loader: TrainLoader
    schedule: Schedule
    watch: Watch
    description: str
    notes: Sequence[str] = ()
    class_names: tuple[str, ...] | None = None
    begin: Callable[[TrainState], TrainState] = lambda state: state
    check_continues: Callable[[TrainState], None] = lambda state: None


@dataclasses.dataclass(frozen=True)
class Data:
    """What a program needs to know of the data, which need not be there.

    Attributes:
        num_classes: of the labels.
        image_size: ``(height, width)`` of the images as they are stored, where they are augmented
            on the device.
    """

    num_classes: int | None = None
    image_size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that trains.

    Attributes:
        name: ``python -m ddae_jax.NAME``, and the ``job`` of its configs.
        usage: what it does, for ``--help``.
        build: ``(config, workdir, mesh) -> parts``. Raises ``ValueError`` or ``OSError`` for bad
            input.
        program: ``(config, schedule, data) -> program``, the step alone, without any data.
        batch_shapes: ``(config, data) -> the arrays of a batch``, of all processes together.
        complete: fills in what a config leaves to what it names; ``(config, stored config, keys
            that the command line sets)``, the second of a run that is continued, else None.
    """

    name: str
    usage: str
    build: Callable[[ConfigDict, Workdir, Mesh], Parts]
    program: Callable[[ConfigDict, Schedule, Data], Program]
    batch_shapes: Callable[[ConfigDict, Data], Mapping[str, jax.ShapeDtypeStruct]]
    complete: Callable[[ConfigDict, Mapping[str, Any] | None, Container[str]], None] = (
        lambda config, stored, given: None
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A job's parts, and where they work."""

    config: ConfigDict
    workdir: Workdir
    mesh: Mesh
    parts: Parts
    allows_changes: bool = False

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.parts.loader.close()
        self.workdir.release()


STOPPED_STATUS = "DDAE_JAX_STOPPED_STATUS"
"""Names the environment variable of the exit status of a run that was stopped before its end."""


def main(job: Job, argv: Sequence[str] | None = None) -> int:
    """Runs a job's command; returns its exit status."""
    with StopRequest(stopped_status) as stop:
        try:
            with cli.bad_input_is_explained():
                check_stopped_status()
                run = prepare(job, argv, stop)
            with cli.run_ends_are_explained(), run:
                devices.use_compilation_cache(run.workdir.compilation_cache)
                state = train_to_the_end(run, stop)
                is_complete = int(state.step) >= run.parts.schedule.total_steps
                return 0 if is_complete else stopped_status(stop)
        except Stopped:
            _log.info("stopped before the first step; there was nothing to save")
    return stopped_status(stop)


def check_stopped_status() -> None:
    """Raises ``ValueError`` if the environment's :data:`STOPPED_STATUS` is no exit status."""
    text = os.environ.get(STOPPED_STATUS, "0")
    if not (text.isascii() and text.isdigit() and int(text) < 256):
        raise ValueError(f"{STOPPED_STATUS}={text}; an exit status is a whole number in [0, 255]")


def stopped_status(stop: StopRequest) -> int:
    """The exit status of a run that a signal stops before its end.

    That is what the environment says: a scheduler that starts stopped runs again must tell them
    from complete ones, and all processes of a run end with it, whichever of them got the signal.
    By default it is 130 for Ctrl-C, as of any command, and else 0.
    """
    if STOPPED_STATUS in os.environ:
        return int(os.environ[STOPPED_STATUS])
    return 128 + signal.SIGINT if stop.received == signal.SIGINT else 0


def prepare(job: Job, argv: Sequence[str] | None, stop: StopRequest) -> Run:
    """Builds what the command line asks for, and claims its workdir.

    Raises ``ValueError``, ``OSError`` or ``WorkdirInUse`` for bad input, and
    ``OtherProcessFailed`` if another process of the run does.
    """
    with stop.at_once():
        usage = f"ddae_jax.{job.name} {job.usage}"
        flags, given = cli.read_config_flags(argv, usage, _define_flags, job.name)
        config, workdir = flags.config, Workdir(flags.workdir)
        kept = keep_as_stored(config, workdir, given, flags.allow_config_changes)
        check_config(config)
        for key in FOLDERS & flatten(config).keys():
            config.update_from_flattened_dict({key: absolute(flatten(config)[key])})
        devices.start_devices(flags.distributed, devices.cluster_of(flags))
    if kept:
        _log.warning(kept)
    with may_stop_at_once(stop), all_or_none():
        check_started_alike(config)
        mesh = make_mesh(**config.mesh)
        check_divisible(config.batch_size, mesh, config.optimizer.micro_batches)
        check_is_of(workdir, job.name)
        job.complete(config, _continued(workdir), given)
        check_workdir(workdir, config, flags.allow_config_changes)
        run = Run(
            config, workdir, mesh, job.build(config, workdir, mesh), flags.allow_config_changes
        )
    with may_stop_at_once(stop):
        claim(workdir, config, flags.allow_config_changes)
    return run


def keep_as_stored(
    config: ConfigDict, workdir: Workdir, given: Container[str], allow_config_changes: bool = False
) -> str | None:
    """Lets a run that began with earlier defaults go on with what it has stored.

    Args:
        config: of the command; is changed in place.
        workdir: of the run.
        given: keys that the command line sets.
        allow_config_changes: whether keys whose defaults are what they were are as the command has
            them.

    Returns:
        A line that names the keys which the command has otherwise; None if there are none.

    Raises ``ValueError`` for a stored config that cannot be read.
    """
    stored = _continued(workdir)
    if stored is None:
        return None
    replaced = take_stored(
        config, stored, given, workdir.config, only_defaults=allow_config_changes
    )
    # What init_from tells is never as the command has it.
    told = {k: v for k, v in replaced.items() if not (config.init_from and k in TOLD_BY_INIT_FROM)}
    if not told:
        return None
    kept = flatten(config)
    return (
        "continuing with the stored config, as defaults have changed since (--config.KEY=VALUE "
        "--allow_config_changes changes a key): "
        + ", ".join(f"{key}={kept[key]!r} (now {value!r})" for key, value in told.items())
    )


def claim(workdir: Workdir, config: ConfigDict, allow_config_changes: bool) -> None:
    """Lets this run, and no other, write to the workdir; all its processes see the same one.

    Raises ``WorkdirInUse``, or ``ValueError`` as :func:`check_workdir` does: another run may have
    come and gone since that was asked, and ``ValueError`` if the folder is not shared.
    """
    token = from_first(secrets.randbelow(2**31))
    with all_or_none():
        if jax.process_index() == 0:
            workdir.claim(token)
            check_workdir(workdir, config, allow_config_changes)
    with all_or_none():
        workdir.check_is_shared(token)


def train_to_the_end(run: Run, stop: StopRequest) -> TrainState:
    """Trains from the latest checkpoint, or from the start, to the end of the schedule."""
    config, parts = run.config, run.parts
    with open_checkpoints(run) as checkpoints, cli.one_ends_all(), noticing_repetition(run):
        with may_stop_at_once(stop):
            state, kept = start_or_continue(run, checkpoints)
            start_step = int(state.step)
            say_start(run, start_step)
            say_layout(run, state)
            baselines = parts.watch.baselines()
            fresh = parts.watch.measure_fresh(state) if start_step == 0 else {}
        with Recorder(
            run.workdir,
            start_step=start_step,
            total_steps=parts.schedule.total_steps,
            use_tensorboard=config.log.tensorboard,
            is_primary=jax.process_index() == 0,
        ) as record:
            plan = make_plan(run, record, kept)
            if fresh or not is_recorded(baselines, run.workdir.metrics):
                record.write(start_step, plan.progress(start_step) | baselines | fresh)
            if start_step:
                known = recorded_at(start_step, run.workdir.metrics)
                make_up(state, plan, kept.get("record", {}), known, stop)
            state = train(
                state,
                jit_train_step(parts.program.step(), run.mesh, state),
                parts.loader,
                lambda batch: put_batch(batch, run.mesh),
                checkpoints,
                plan,
                stop,
            )
        parts.watch.finish(state, int(state.step))
    return state


@contextlib.contextmanager
def noticing_repetition(run: Run) -> Iterator[None]:
    """Raises ``RecurringNonFiniteLoss`` if a loss is no number at the same step as the last time.

    That is, with the same config, data and code: then it will be so again.
    """
    before = run.workdir.read_failure()
    try:
        yield
    except NonFiniteLoss as error:
        plain = flatten(to_plain(run.config))
        told = {key: value for key, value in plain.items() if not is_free(key)}
        told |= code_version() | {"source": run.parts.source.fingerprint}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        failure = {"step": error.step, "of": digest}
        if before == failure:
            raise RecurringNonFiniteLoss(
                f"{error}\nIt went wrong at this step the last time too, with the same config, "
                "data and code: started again, it will once more. Change something first",
                error.step,
            ) from error
        if jax.process_index() == 0:
            run.workdir.write_failure(failure)
        raise


def may_stop_at_once(stop: StopRequest) -> contextlib.AbstractContextManager:
    """Leaves the body at a stop, if there is one process; several stop together, at a step."""
    return stop.at_once() if jax.process_count() == 1 else stop.together()


def is_recorded(metrics: Mapping[str, float], path: pathlib.Path) -> bool:
    """Whether a metrics file has these metrics, or later ones of their names, with these values."""
    records = read_metrics(path) if metrics else []
    return metrics == {name: latest(records, name) for name in metrics}


def recorded_at(step: int, path: pathlib.Path) -> list[str]:
    """Names of the metrics that a metrics file has of a step, as the first process sees it."""
    names = {name for record in read_metrics(path) if record["step"] == step for name in record}
    return of_each({"names": sorted(names)})[0]["names"]


def make_plan(run: Run, record: Recorder, kept: Mapping[str, Any]) -> Plan:
    """How far the run goes, and what happens on the way.

    Args:
        run: that is made or continued.
        record: where its metrics go.
        kept: what the checkpoint that it goes on from keeps beside the state.
    """
    config, schedule, watch = run.config, run.parts.schedule, run.parts.watch

    def on_record(step: int, metrics: Mapping[str, float]) -> None:
        record(step, metrics)
        watch.on_record(step, metrics)

    return Plan(
        total_steps=schedule.total_steps,
        batch_size=config.batch_size,
        steps_per_epoch=schedule.steps_per_epoch,
        log_every_steps=config.log.every_steps,
        save_every_steps=schedule.steps(config.checkpoint.every_epochs),
        actions=watch.actions(),
        on_record=on_record,
        on_step=record.advance,
        most_skipped=config.optimizer.skip_nonfinite,
        skipped=tuple(kept.get("skipped", (0, 0))),
    )


def open_checkpoints(run: Run) -> Checkpoints:
    """The run's checkpoints, for restoring and saving."""
    options = run.config.checkpoint
    save_every_steps = run.parts.schedule.steps(options.every_epochs)
    return Checkpoints(
        run.workdir.checkpoints,
        keep_last=options.keep_last,
        keep_every_steps=options.keep_every * save_every_steps or None,
    )


def start_or_continue(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, Mapping[str, Any]]:
    """A fresh state, or that of the latest checkpoint, with the loader put where it was then.

    Only then is the config stored: a checkpoint that does not fit it leaves the workdir as it was.

    Returns:
        The state; and what :meth:`Plan.to_resume` had the checkpoint keep beside it, empty if
        there is none.
    """
    parts, kept = run.parts, {}
    if not checkpoints.exist():
        state = parts.begin(parts.program.fresh_state(run.mesh))
    else:
        state, kept = checkpoints.restore(parts.program.state_shapes(run.mesh))
        with all_or_none():
            parts.loader.set_state(kept, allow_changes=run.allows_changes)
            parts.check_continues(state)
            check_not_over(run, int(state.step), kept.get("schedule"))
        say_continuation(run, int(state.step), kept.get("schedule"))
    with all_or_none():
        if jax.process_index() == 0:
            run.workdir.write_config(to_plain(run.config))
            if parts.class_names:
                run.workdir.write_classes(parts.class_names)
    return state, kept


def check_not_over(run: Run, step: int, before: Mapping[str, int] | None) -> None:
    """Raises ``CheckpointError`` if a run that was to go on is over by today's epochs or images.

    Args:
        run: that is continued.
        step: of the checkpoint.
        before: its ``total_steps`` and ``steps_per_epoch``; None if an earlier version saved it.
    """
    now = run.parts.schedule
    if before and now.total_steps < before["total_steps"] and now.total_steps <= step:
        raise CheckpointError(
            f"this run has {step / before['steps_per_epoch']:.4g} epochs behind it (step {step}), "
            f"and epochs={run.config.epochs:g}, of {now.steps_per_epoch} steps each, are over at "
            f"step {now.total_steps}. Give more epochs, or another --workdir"
        )


def say_continuation(run: Run, step: int, before: Mapping[str, int] | None) -> None:
    """Tells in the log from where a run goes on, and whether that is no longer what it was.

    Args are those of :func:`check_not_over`.
    """
    now, rate = run.parts.schedule, float(run.parts.program.learning_rate(step))
    _log.info(
        "continuing from the checkpoint of step %d: epoch %.4g of %g, learning rate %.3g",
        step,
        step / now.steps_per_epoch,
        run.config.epochs,
        rate,
    )
    if before and before != dataclasses.asdict(now):
        _log.warning(
            "its %d steps were %.4g epochs of %d steps each, of %d steps in all; they are %.4g "
            "epochs of %d steps now, of %d in all. All that goes by the run's progress, such as "
            "the learning rate, goes on by the new length",
            step,
            step / before["steps_per_epoch"],
            before["steps_per_epoch"],
            before["total_steps"],
            step / now.steps_per_epoch,
            now.steps_per_epoch,
            now.total_steps,
        )


def say_start(run: Run, start_step: int) -> None:
    """One line in the log on what is trained, on what, and for how long."""
    config, parts = run.config, run.parts
    _log.info(
        "%s, %s images, %g epochs = %d steps of %d, from step %d, on %d %s device(s)",
        parts.description,
        f"{len(parts.source):,}",
        config.epochs,
        parts.schedule.total_steps,
        config.batch_size,
        start_step,
        run.mesh.size,
        jax.devices()[0].platform,
    )
    for line in [*ignored_keys(config), *parts.notes]:
        _log.warning(line)
    if config.optimizer.warmup_epochs >= config.epochs:
        _log.warning(
            "optimizer.warmup_epochs=%g: the learning rate rises until the end of %g epochs",
            config.optimizer.warmup_epochs,
            config.epochs,
        )


def say_layout(run: Run, state: TrainState) -> None:
    """What of the state lies on each device, in the log; with several devices, array by array."""
    shares = [f"{kind} {size / 2**20:,.1f}" for kind, size in state_bytes(state).items()]
    _log.info(
        "MiB on each device: %s; mesh data=%d x fsdp=%d; optimizer and teacher are split as the "
        "parameters are",
        ", ".join(shares),
        *(run.mesh.shape[axis] for axis in AXES),
    )
    if run.mesh.size > 1:
        for line in layout_table(state.params):
            _log.info(line)


def check_is_of(workdir: Workdir, job: str) -> None:
    """Raises ``ValueError`` if the folder holds another job's run, or files that are no run's."""
    workdir.check_is_a_run_or_empty()
    stored = workdir.read_config()
    if stored is not None and job_of(stored) != job:
        raise ValueError(
            f"--workdir={workdir.path} holds a run of ddae_jax.{job_of(stored)}; give another"
        )


def check_workdir(workdir: Workdir, config: ConfigDict, allow_config_changes: bool) -> None:
    """Checks the config against the one stored in the run's folder.

    A run that has no checkpoint yet has nothing to be continued: it may start over with any config.

    Raises ``ValueError`` if the folder holds a run with another config (its differing keys are
    named), or files that are no run's.
    """
    workdir.check_is_a_run_or_empty()
    stored = _continued(workdir)
    if stored is None:
        return
    differences = contradictions(stored, to_plain(config), workdir.config)
    keeps_batch_size = not any(line.startswith("batch_size:") for line in differences)
    if differences and not (allow_config_changes and keeps_batch_size):
        shown = "\n  ".join(differences)
        advice = "Give the config it was started with or another --workdir"
        if not keeps_batch_size:
            advice += (
                ". A run keeps its batch_size: its steps are counted by it. "
                "optimizer.micro_batches=2, with --allow_config_changes, takes the same batch in "
                "two parts, in less memory"
            )
        elif not any(line.startswith(("method:", "model.size:")) for line in differences):
            advice += ", or --allow_config_changes to continue it with these"
        raise ValueError(f"{workdir.path} holds a run with another config:\n  {shown}\n{advice}")


def _continued(workdir: Workdir) -> dict[str, Any] | None:
    """The config of the run that is there to be continued, by today's keys; None without one."""
    stored = workdir.read_config() if workdir.has_checkpoint() else None
    return None if stored is None else to_plain(from_plain(stored, workdir.config))


def image_batch(config: ConfigDict, size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch of labelled images of a size, pixels."""
    shape = (config.batch_size, *size, config.data.channels)
    return {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }


def check_started_alike(config: ConfigDict) -> None:
    """Raises ``ValueError`` unless all processes have this config, but for folders, and code."""
    if jax.process_count() > 1:
        told = {k: v for k, v in flatten(to_plain(config)).items() if k not in FOLDERS}
        check_same_everywhere(told | code_version())


def code_version() -> dict[str, str]:
    """What must be the same in all processes of a run beside its config."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return {**versions, "code of ddae_jax": digest.hexdigest()[:12]}


def absolute(folder: str) -> str:
    """A folder as it can be found from elsewhere later; addresses and nothing stay as they are."""
    is_path = folder and "://" not in folder
    return os.path.abspath(os.path.expanduser(folder)) if is_path else folder


def _define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "workdir", None, "Folder of the run; it is made, or continued.", flag_values=flags
    )
    cli.require("workdir", "FOLDER", flags)
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
    for name, kind, text in (
        ("coordinator", "string", "HOST:PORT of the first process, where no scheduler tells it."),
        ("num_processes", "integer", "Processes of the run, with --coordinator."),
        ("process_id", "integer", "Which of them this is, from 0, with --coordinator."),
    ):
        getattr(absl_flags, f"DEFINE_{kind}")(name, None, text, flag_values=flags)
