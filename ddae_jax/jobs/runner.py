"""The runner: runs any job from its command line to the last checkpoint."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.config import to_plain
from ddae_jax.config.checks import check_config
from ddae_jax.config.keys import FOLDERS
from ddae_jax.config.schema import flatten
from ddae_jax.config.values import is_free
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.jobs import cli, devices, exits
from ddae_jax.jobs.commands import define_job, usage
from ddae_jax.jobs.job import DataSpec, Job, Sources
from ddae_jax.jobs.start_checks import (
    absolute,
    check_belongs_to,
    check_not_over,
    check_started_alike,
    check_workdir,
    claim,
    code_version,
    keep_as_stored,
    stored_config,
)
from ddae_jax.jobs.start_log import log_continuation, log_layout, log_start, log_warnings
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.health import Health, NonFiniteLoss, RecurringNonFiniteLoss
from ddae_jax.training.hooks import Hook
from ddae_jax.training.loop import catch_up, fit
from ddae_jax.training.metrics import MetricsHook, latest, read_metrics
from ddae_jax.training.multihost import all_or_none, gather_json
from ddae_jax.training.program import TrainProgram, TrainState
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import check_divisible, make_mesh, put_batch
from ddae_jax.training.signals import Interrupted, StopRequest
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its config, workdir and devices, and the request that may stop it.

    Attributes:
        config: of the run.
        workdir: of the run.
        mesh: of devices.
        stop: becomes true when the run is to end early.
        allows_changes: whether a run may be continued with another config or other data.
    """

    config: ConfigDict
    workdir: Workdir
    mesh: Mesh
    stop: StopRequest
    allows_changes: bool = False

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Releases the workdir after the body, so that another run can claim it."""
        try:
            yield
        finally:
            self.workdir.release()

    def may_stop_at_once(self) -> contextlib.AbstractContextManager:
        """Lets a stop interrupt the body; see :func:`may_stop_at_once`."""
        return may_stop_at_once(self.stop)


def main(job_class: type[Job], argv: Sequence[str] | None = None) -> int:
    """Runs a job's command; returns its exit status."""
    with StopRequest(exits.stopped_status) as stop:
        try:
            with exits.explain_bad_input():
                exits.check_stopped_status()
                job, run = open_run(job_class, argv, stop)
            is_complete = train(job, run)
            return 0 if is_complete else exits.stopped_status(stop)
        except Interrupted:
            _log.info("stopped before the first step; there was nothing to save")
    return exits.stopped_status(stop)


def open_run(
    job_class: type[Job], argv: Sequence[str] | None, stop: StopRequest
) -> tuple[Job, Run]:
    """Reads the command line, starts the devices, and makes all checks that need no data.

    Raises:
        ValueError, OSError: for bad input.
        OtherProcessFailed: if another process of the run has raised one of these.
    """
    with stop.at_once():
        text = usage(job_class.name, job_class.usage)
        flags, given = cli.read_config_flags(argv, text, define_job, job_class.name)
        config, workdir = flags.config, Workdir(flags.workdir)
        message = keep_as_stored(config, workdir, given, flags.allow_config_changes)
        check_config(config)
        for key in FOLDERS & flatten(config).keys():
            config.update_from_flattened_dict({key: absolute(flatten(config)[key])})
        devices.start_devices(flags.distributed, devices.cluster_of(flags))
    if message:
        _log.warning(message)
    with may_stop_at_once(stop), all_or_none():
        check_started_alike(config)
        mesh = make_mesh(**config.mesh)
        check_divisible(config.batch_size, mesh, config.optimizer.micro_batches)
        check_belongs_to(workdir, job_class.name)
        initial = job_class.resolve_config(config, stored_config(workdir), given)
        check_workdir(workdir, config, flags.allow_config_changes)
        job = job_class(config, workdir, initial)
    return job, Run(config, workdir, mesh, stop, flags.allow_config_changes)


def train(job: Job, run: Run) -> bool:
    """Trains from the latest checkpoint, or from the start; returns whether the run is complete."""
    config = run.config
    with exits.explain_bad_input():
        with run.may_stop_at_once(), all_or_none():
            sources = job.sources()
            schedule = job.schedule(len(sources.train))
            data = DataSpec.of(sources)
            program = job.program(schedule, data)
            hooks = job.hooks(program, sources, schedule, run.mesh)
            initial = job.take_initial_params(program)
            loader = job.loader(sources)
        with run.may_stop_at_once():
            claim(run.workdir, config, run.allows_changes)
    with (
        exits.explain_run_ends(),
        run.released(),
        loader,
        open_checkpoints(run, schedule) as checkpoints,
        exits.fail_fast_multihost(),
        noticing_repetition(run, sources),
    ):
        devices.use_compilation_cache(run.workdir.compilation_cache)
        with run.may_stop_at_once():
            if checkpoints.exist():
                state, beside = resume(job, run, program, schedule, loader, checkpoints)
            else:
                state, beside = program.init_state(run.mesh, initial), {}
            initial = None  # frees memory: the state has a copy
            store_config(run, job.class_names(sources))
            start_step = int(state.step)
            description = job.description(program, data)
            log_start(config, description, len(sources.train), schedule, start_step, run.mesh.size)
            log_warnings(config, job.warnings(program))
            log_layout(run.mesh, state)
            baselines, fresh = measure_beginning(hooks, state)
        with open_records(run, schedule, start_step) as records:
            record_beginning(records, run, schedule, start_step, baselines, fresh)
            hooks = [records, *hooks]
            if start_step:
                recorded = recorded_at(start_step, run.workdir)
                catch_up(state, schedule, hooks, beside.get("record", {}), recorded, run.stop)
            state = fit(
                state,
                program.jit(run.mesh),
                loader,
                lambda batch: put_batch(batch, run.mesh),
                checkpoints,
                schedule,
                hooks,
                run.stop,
                Health(checkpoints, program.max_skipped, tuple(beside.get("skipped", (0, 0)))),
            )
        for hook in hooks:
            hook.on_end(state, int(state.step))
    return int(state.step) >= schedule.total_steps


def open_checkpoints(run: Run, schedule: Schedule) -> Checkpoints:
    """Opens the run's checkpoints, for restoring and saving."""
    options = run.config.checkpoint
    return Checkpoints(
        run.workdir.checkpoints,
        keep_last=options.keep_last,
        keep_every_steps=options.keep_every * schedule.save_every_steps or None,
    )


def open_records(run: Run, schedule: Schedule, start_step: int) -> MetricsHook:
    """Opens the run's records, and the progress bar."""
    return MetricsHook(
        run.workdir,
        start_step=start_step,
        total_steps=schedule.total_steps,
        use_tensorboard=run.config.log.tensorboard,
        is_primary=jax.process_index() == 0,
    )


def resume(
    job: Job,
    run: Run,
    program: TrainProgram,
    schedule: Schedule,
    loader: TrainLoader,
    checkpoints: Checkpoints,
) -> tuple[TrainState, Mapping[str, Any]]:
    """Restores the latest checkpoint, and sets the loader to its position in the data.

    Returns:
        The state; and the JSON that the checkpoint stores beside it.

    Raises:
        CheckpointError: if the run cannot be continued from this checkpoint.
    """
    state, beside = checkpoints.restore(program.state_shapes(run.mesh))
    step, before = int(state.step), beside.get("schedule")
    with all_or_none():
        loader.set_state(beside, allow_changes=run.allows_changes)
        job.check_continues(program, state)
        check_not_over(run.config.epochs, schedule, step, before)
    learning_rate = float(program.learning_rate(step))
    log_continuation(run.config.epochs, schedule, step, before, learning_rate)
    return state, beside


def store_config(run: Run, class_names: Sequence[str] | None) -> None:
    """Stores the config and the names of classes; call it once the run is sure to go on."""
    with all_or_none():
        if jax.process_index() == 0:
            run.workdir.write_config(to_plain(run.config))
            if class_names:
                run.workdir.write_classes(class_names)


def measure_beginning(hooks: Sequence[Hook], state: TrainState) -> tuple[dict, dict]:
    """Returns the hooks' baselines, and for a new run their metrics of the first state."""
    baselines, fresh = {}, {}
    for hook in hooks:
        baselines |= hook.baselines()
        if int(state.step) == 0:
            fresh |= hook.on_start(state)
    return baselines, fresh


def record_beginning(
    records: MetricsHook,
    run: Run,
    schedule: Schedule,
    step: int,
    baselines: Mapping[str, float],
    fresh: Mapping[str, float],
) -> None:
    """Records baselines and metrics from before the first step, unless already recorded."""
    recorded = read_metrics(run.workdir.metrics) if baselines else []
    if fresh or baselines != {name: latest(recorded, name) for name in baselines}:
        records.write(step, schedule.progress(step) | baselines | fresh)


def recorded_at(step: int, workdir: Workdir) -> list[str]:
    """Returns the names of the metrics recorded at a step, as read by the first process."""
    records = read_metrics(workdir.metrics)
    names = {name for record in records if record["step"] == step for name in record}
    return gather_json({"names": sorted(names)})[0]["names"]


@contextlib.contextmanager
def noticing_repetition(run: Run, sources: Sources) -> Iterator[None]:
    """Raises ``RecurringNonFiniteLoss`` if the body fails at the same step as the last time.

    The failure is a non-finite loss with the same config, data and code, which will recur.
    """
    before = run.workdir.read_failure()
    try:
        yield
    except NonFiniteLoss as error:
        config = flatten(to_plain(run.config))
        facts = {key: value for key, value in config.items() if not is_free(key)}
        facts |= code_version() | {"source": sources.train.fingerprint}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
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
    """Lets a stop interrupt the body if there is one process; several stop together at a step."""
    return stop.at_once() if jax.process_count() == 1 else stop.together()
