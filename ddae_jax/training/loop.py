"""The training loop: takes steps, records metrics, saves checkpoints and calls hooks."""

import collections
import logging
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.health import Health
from ddae_jax.training.hooks import Hook
from ddae_jax.training.multihost import AnyProcess, OtherProcessFailed, all_true
from ddae_jax.training.program import TrainState, TrainStep
from ddae_jax.training.reading import Batches, ReadAhead
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.signals import Interrupted, StopRequest

_log = logging.getLogger(__name__)

# Steps queued on the device before the loop waits for the oldest: enough to hide the host's work.
_MAX_STEPS_IN_FLIGHT = 2


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Batches,
    put: Callable[[PyTree], PyTree],
    checkpoints: Checkpoints,
    schedule: Schedule,
    hooks: Sequence[Hook],
    stop: StopRequest,
    health: Health | None = None,
) -> TrainState:
    """Takes steps until the schedule ends or a stop is requested, and saves the last state.

    Args:
        state: to start from.
        train_step: compiled for the mesh; donates the state.
        batches: positioned at the state's step.
        put: moves this process's share of a batch onto the devices.
        checkpoints: of the run.
        schedule: of the run.
        hooks: called beside training, in this order.
        stop: becomes true when the run is to end early.
        health: checks losses and gradients; by default all must be finite.

    Returns:
        The last state; its step is below the schedule's end if the run was stopped.

    Raises:
        NonFiniteLoss: if a loss or gradient is not finite; the message names the step, the metrics
            and the last good checkpoint.
        CheckpointError: if a checkpoint cannot be written.
        Exception: what reading a batch raises, after saving the last finished step. The other
            processes of the run then raise ``OtherProcessFailed``.
    """
    run = _Progress(batches, checkpoints, schedule, hooks, health or Health(checkpoints), state)
    any_process = AnyProcess(put, delay=_MAX_STEPS_IN_FLIGHT)
    num_ready = 0 if jax.process_count() == 1 else any_process.delay + 1
    reader = ReadAhead(batches, stop, schedule.total_steps - run.step, num_ready)
    in_flight = collections.deque()
    is_stopping = any_process(bool(stop))

    while run.step < schedule.total_steps and not is_stopping:
        with run.meter.waiting():
            batch = reader.next()
        if batch is None:
            break
        batch = put(batch)
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch)
        run.count_step(metrics)
        in_flight.append(metrics["loss"])
        if len(in_flight) > _MAX_STEPS_IN_FLIGHT:
            in_flight.popleft().block_until_ready()
        is_stopping = any_process(bool(stop) or reader.failure is not None)
        is_stopping = run.record_and_save(state, is_stopping, stop)

    run.save_what_is_left(state, can_read=reader.failure is None)
    if all_true(reader.failure is None):
        return state
    if run.step:
        _log.error("no batch can be read after step %d, which is saved", run.step)
    raise reader.failure or OtherProcessFailed("another process of this run cannot read on")


def catch_up(
    state: TrainState,
    schedule: Schedule,
    hooks: Sequence[Hook],
    stored: Mapping[str, float],
    recorded: Collection[str],
    stop: StopRequest,
) -> None:
    """Records metrics that are missing because a run ended right after a checkpoint.

    Args:
        state: restored from the checkpoint.
        schedule: of the run.
        hooks: of the run.
        stored: the record in the checkpoint; empty if none was due at its step.
        recorded: names of the metrics that are already recorded for this step.
        stop: interrupts the hooks.
    """
    step = int(state.step)
    missing = [
        hook
        for hook in hooks
        if hook.is_due(step, schedule.total_steps) and hook.metric and hook.metric not in recorded
    ]
    values = {} if "loss" in recorded else dict(stored)
    if missing:
        values |= _call(missing, state, step, stop)[0]
    if values:
        for hook in hooks:
            hook.on_record(step, schedule.progress(step) | values)


class _Progress:
    """The progress of a run: counts steps, and records and saves what is due.

    All processes call the same methods at the same steps.
    """

    def __init__(
        self,
        batches: Batches,
        checkpoints: Checkpoints,
        schedule: Schedule,
        hooks: Sequence[Hook],
        health: Health,
        state: TrainState,
    ):
        self._batches = batches
        self._checkpoints = checkpoints
        self._schedule = schedule
        self._hooks = hooks
        self._health = health
        self.meter = _Meter(schedule.batch_size)
        self.step = self._saved_step = self._recorded_step = int(state.step)

    def count_step(self, metrics: Mapping[str, Any]) -> None:
        """Counts a step, and notes its metrics, which stay on the device."""
        self.step += 1
        self.meter.count_step()
        self._health.note(self.step, metrics)
        for hook in self._hooks:
            hook.after_step(self.step)

    def record_and_save(self, state: TrainState, is_stopping: bool, stop: StopRequest) -> bool:
        """Records, saves and calls hooks if they are due; returns whether the run is to stop."""
        step, schedule = self.step, self._schedule
        is_last = step == schedule.total_steps
        due = [hook for hook in self._hooks if hook.is_due(step, schedule.total_steps)]
        is_recorded = due or step % schedule.log_every_steps == 0 or is_last or is_stopping
        values = self._measure() if is_recorded else None
        with self.meter.paused():
            # Saving comes first, so that nothing is lost if the process is killed during a hook.
            if step % schedule.save_every_steps == 0 or is_last or is_stopping:
                self._save(state, values)
            if due and not is_stopping:
                returned, is_stopping = _call(due, state, step, stop)
                values |= returned
        if is_recorded:
            self._record(values)
        return is_stopping

    def save_what_is_left(self, state: TrainState, can_read: bool) -> None:
        """Saves the last state if it is not saved yet, and waits until everything is written.

        Args:
            state: the last one.
            can_read: whether batches can still be read; if not, no last record is written.
        """
        if self._saved_step != self.step:
            is_recorded = self._recorded_step != self.step and can_read
            values = self._measure() if is_recorded else None
            self._save(state, values)
            if is_recorded:
                self._record(values)
        self._checkpoints.wait()

    def _measure(self) -> dict[str, float]:
        """Returns the metrics of the step.

        Raises :class:`NonFiniteLoss`, and what ``batches.synchronize()`` raises.
        """
        self._batches.synchronize()
        values = self._health.check() | self.meter.read()
        values |= self._schedule.progress(self.step) | peak_memory()
        values["corrupt_images"] = float(self._batches.corrupt_count)
        for cause, count in self._batches.corrupt_causes.items():
            values[f"corrupt_images/{cause}"] = float(count)
        return values

    def _save(self, state: TrainState, record: Mapping[str, float] | None) -> None:
        """Saves the state, and beside it data position, schedule and record, as JSON.

        The record of the step, if there is one, is appended to the run's records only after the
        checkpoint. A run killed in between restores it from the checkpoint (see :func:`catch_up`).
        """
        self._health.check()
        beside = self._batches.get_state(self.step) | {"schedule": self._schedule.length}
        if record is not None:
            beside["record"] = dict(record)
        self._checkpoints.save(state, self.step, beside | self._health.to_resume())
        self._saved_step = self.step

    def _record(self, values: Mapping[str, float]) -> None:
        """Passes the metrics of the step to all hooks."""
        for hook in self._hooks:
            hook.on_record(self.step, values)
        self._recorded_step = self.step


def _call(
    hooks: Sequence[Hook], state: TrainState, step: int, stop: StopRequest
) -> tuple[dict[str, float], bool]:
    """Calls hooks; returns their metrics, and whether a stop interrupted them."""
    values = {}
    for hook in hooks:
        if jax.process_count() > 1:  # one that left alone would block the others
            with stop.together():
                values |= hook.on_steps(state, step)
            continue
        try:
            with stop.at_once():
                values |= hook.on_steps(state, step)
        except Interrupted:
            return values, True
        except Exception:
            _log.exception("step %d: something beside training failed, and is left out", step)
    return values, False


def peak_memory() -> dict[str, float]:
    """Returns the peak memory so far, GiB: of this process, and of a device if it reports one."""
    peak = {"peak_host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    on_device = max((s.get("peak_bytes_in_use", 0) for s in statistics), default=0)
    return peak | ({"peak_device_gib": on_device / 2**30} if on_device else {})


class _Meter:
    """A meter of images per second, and of the share of time spent waiting for data.

    Both are measured since the last call of :meth:`read`.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._reset()

    def count_step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def waiting(self) -> "_Stopwatch":
        """Counts the time of the body as waiting for data."""
        return _Stopwatch(self._add_waiting)

    def paused(self) -> "_Stopwatch":
        """Leaves the time of the body out of all measurements."""
        return _Stopwatch(self._add_pause)

    def read(self) -> dict[str, float]:
        """Returns the measurements since the last reading, and begins new ones."""
        elapsed = max(time.perf_counter() - self._began - self._pause_s, 1e-9)
        reading = {
            "images_per_s": self._steps * self._batch_size / elapsed,
            "data_wait_share": self._waiting_s / elapsed,
        }
        self._reset()
        return reading

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._steps, self._waiting_s, self._pause_s = 0, 0.0, 0.0

    def _add_waiting(self, seconds: float) -> None:
        self._waiting_s += seconds

    def _add_pause(self, seconds: float) -> None:
        self._pause_s += seconds


class _Stopwatch:
    """A context manager that passes the duration of its body, in seconds, to ``add``."""

    def __init__(self, add: Callable[[float], None]):
        self._add = add

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._add(time.perf_counter() - self._began)
