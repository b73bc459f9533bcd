"""The loop: steps, metrics, checkpoints and whatever else is to happen now and then."""

import collections
import dataclasses
import functools
import logging
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ddae_jax.training.checkpoint import CheckpointError, Checkpoints
from ddae_jax.training.multihost import AnyProcess, OtherProcessFailed, all_true
from ddae_jax.training.reading import Batches, ReadAhead
from ddae_jax.training.signals import Interrupted, StopRequest
from ddae_jax.training.state import TrainState
from ddae_jax.training.step import TrainStep

_log = logging.getLogger(__name__)

# Steps handed to the device before the loop waits for one: enough to hide the host's work.
_MAX_STEPS_IN_FLIGHT = 2


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is no longer a number; the run stopped before saving it.

    ``step`` is the first one that went wrong; ``exit_status`` that of the command.
    """

    exit_status = 1

    def __init__(self, message: str, step: int = 0):
        super().__init__(message)
        self.step = step


class RecurringNonFiniteLoss(NonFiniteLoss):
    """It went wrong at the same step as the time before, and nothing has changed since."""

    exit_status = 70  # what the scripts in launch/ do not start again


@dataclasses.dataclass(frozen=True)
class Every:
    """An action on the state, every so many steps; what it returns joins the metrics.

    Its time is not counted in the rate. At the last step it happens if ``at_end``, and only then.
    An error in it is logged, and training goes on. ``metric`` is one that it always returns, by
    which a record shows that it was done; None for an action that measures nothing.
    """

    steps: int
    action: Callable[[TrainState, int], Mapping[str, float]]
    at_end: bool = True
    metric: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How far a run goes, and what happens on the way.

    Attributes:
        total_steps: of the run.
        batch_size: images a step, over all devices.
        steps_per_epoch: for the metric ``epoch``.
        log_every_steps: steps between records.
        save_every_steps: steps between checkpoints.
        actions: further things to do.
        on_record: takes ``(step, metrics)`` of each record.
        on_step: takes each step that was taken.
        most_skipped: steps in a row that may be left out because they went wrong, as their metric
            ``skipped`` says.
        skipped: how many were left out before, in all and last in a row.
    """

    total_steps: int
    batch_size: int
    steps_per_epoch: int
    log_every_steps: int
    save_every_steps: int
    actions: Sequence[Every] = ()
    on_record: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    on_step: Callable[[int], None] = lambda step: None
    most_skipped: int = 0
    skipped: tuple[int, int] = (0, 0)

    def progress(self, step: int) -> dict[str, float]:
        """How far a step is: ``epoch``, and ``progress`` from 0 to 1."""
        return {"epoch": step / self.steps_per_epoch, "progress": step / self.total_steps}

    def due(self, step: int) -> list[Every]:
        """The actions that happen after a step."""
        is_last = step == self.total_steps
        return [a for a in self.actions if (a.at_end if is_last else step % a.steps == 0)]

    def to_resume(
        self, step: int, batches: Batches, record: Mapping[str, float] | None
    ) -> dict[str, Any]:
        """What a checkpoint keeps beside the state, as JSON: data position, schedule and record.

        The record is that of the checkpoint's step, if it has one: it is written after the
        checkpoint, so that a run that is killed in between would lose it (see :func:`make_up`).
        """
        schedule = {"steps_per_epoch": self.steps_per_epoch, "total_steps": self.total_steps}
        kept = batches.get_state(step) | {"schedule": schedule}
        return kept if record is None else kept | {"record": dict(record)}


def train(
    state: TrainState,
    train_step: TrainStep,
    batches: Batches,
    put: Callable[[PyTree], PyTree],
    checkpoints: Checkpoints,
    plan: Plan,
    stop: StopRequest,
) -> TrainState:
    """Takes steps until the plan is fulfilled or a stop is asked for; the last state is saved.

    Args:
        state: to start from; the last one is returned, whose step tells how far it is.
        train_step: compiled for the mesh; donates the state.
        batches: positioned at the state's step.
        put: moves this process's share of a batch onto the devices.
        checkpoints: of the run.
        plan: see :class:`Plan`.
        stop: becomes true when the run is to end early.

    Raises:
        NonFiniteLoss: naming the step, the metrics and the last good checkpoint.
        CheckpointError: if a checkpoint cannot be written.
        Exception: what reading a batch raises, after the last finished step was saved. Of several
            processes the others raise ``OtherProcessFailed``.
    """
    step = saved_step = recorded_step = int(state.step)
    meter = _Meter(plan.batch_size)
    watch = _HealthWatch(checkpoints, plan.most_skipped, plan.skipped)
    measure = functools.partial(_measured, plan=plan, batches=batches, watch=watch, meter=meter)
    any_process = AnyProcess(put, delay=_MAX_STEPS_IN_FLIGHT)
    num_ready = 0 if jax.process_count() == 1 else any_process.delay + 1
    reader = ReadAhead(batches, stop, plan.total_steps - step, num_ready)
    in_flight = collections.deque()
    is_stopping = any_process(bool(stop))

    while step < plan.total_steps and not is_stopping:
        with meter.waiting():
            batch = reader.next()
        if batch is None:
            break
        batch = put(batch)
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch)
        step += 1
        meter.count_step()
        watch.note(step, metrics)
        in_flight.append(metrics["loss"])
        if len(in_flight) > _MAX_STEPS_IN_FLIGHT:
            in_flight.popleft().block_until_ready()
        plan.on_step(step)

        is_last = step == plan.total_steps
        is_stopping = any_process(bool(stop) or reader.failure is not None)
        due = plan.due(step)
        is_recorded = due or step % plan.log_every_steps == 0 or is_last or is_stopping
        values = measure(step) if is_recorded else None
        with meter.paused():
            # Saving comes first: what is saved is not lost while something else takes its time.
            if step % plan.save_every_steps == 0 or is_last or is_stopping:
                watch.check()
                kept = plan.to_resume(step, batches, values) | watch.to_resume()
                checkpoints.save(state, step, kept)
                saved_step = step
            if due and not is_stopping:
                found, is_stopping = _act(due, state, step, stop)
                values |= found
        if is_recorded:
            plan.on_record(step, values)
            recorded_step = step

    if saved_step != step:
        values = measure(step) if recorded_step != step and reader.failure is None else None
        watch.check()
        checkpoints.save(state, step, plan.to_resume(step, batches, values) | watch.to_resume())
        if values is not None:
            plan.on_record(step, values)
    checkpoints.wait()
    if all_true(reader.failure is None):
        return state
    if step:
        _log.error("no batch can be read after step %d, which is saved", step)
    raise reader.failure or OtherProcessFailed("another process of this run cannot read on")


def make_up(
    state: TrainState,
    plan: Plan,
    stored: Mapping[str, float],
    known: Collection[str],
    stop: StopRequest,
) -> None:
    """Records what a run that ended just after a checkpoint has not recorded of its step.

    Args:
        state: that the checkpoint has.
        plan: of the run.
        stored: the record that the checkpoint keeps; empty if its step was due for none.
        known: names of the metrics that are recorded of this step.
        stop: cuts the actions short.
    """
    step = int(state.step)
    missing = [a for a in plan.due(step) if a.metric and a.metric not in known]
    values = {} if "loss" in known else dict(stored)
    if missing:
        values |= _act(missing, state, step, stop)[0]
    if values:
        plan.on_record(step, plan.progress(step) | values)


def _measured(
    step: int, plan: Plan, batches: Batches, watch: "_HealthWatch", meter: "_Meter"
) -> dict[str, float]:
    """What is recorded of a step. All processes have to ask.

    Raises what ``batches.synchronize()`` raises, and :class:`NonFiniteLoss`.
    """
    batches.synchronize()
    values = watch.check() | meter.read() | plan.progress(step) | peak_memory()
    values["corrupt_images"] = float(batches.corrupt_count)
    for cause, count in batches.corrupt_causes.items():
        values[f"corrupt_images/{cause}"] = float(count)
    return values


def _act(
    actions: Sequence[Every], state: TrainState, step: int, stop: StopRequest
) -> tuple[dict[str, float], bool]:
    """What the actions return, and whether a stop cut them short."""
    values = {}
    for due in actions:
        if jax.process_count() > 1:  # one that leaves it alone would let the others wait
            with stop.together():
                values |= due.action(state, step)
            continue
        try:
            with stop.at_once():
                values |= due.action(state, step)
        except Interrupted:
            return values, True
        except Exception:
            _log.exception("step %d: something beside training failed, and is left out", step)
    return values, False


def peak_memory() -> dict[str, float]:
    """The most memory held so far, GiB: by this process, and on a device where it tells."""
    peak = {"peak_host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    on_device = max((s.get("peak_bytes_in_use", 0) for s in statistics), default=0)
    return peak | ({"peak_device_gib": on_device / 2**30} if on_device else {})


class _Meter:
    """Rate of images, and the share of time spent waiting for data, since the last reading."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._reset()

    def count_step(self) -> None:
        self._steps += 1

    def waiting(self) -> "_Stopwatch":
        return _Stopwatch(self._add_waiting)

    def paused(self) -> "_Stopwatch":
        return _Stopwatch(self._add_pause)

    def read(self) -> dict[str, float]:
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
    def __init__(self, add: Callable[[float], None]):
        self._add = add

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._add(time.perf_counter() - self._began)


class _HealthWatch:
    """Keeps each step's norms on the device until they are looked at together."""

    _WATCHED = ("loss", "gradient_norm", "parameter_norm")

    def __init__(self, checkpoints: Checkpoints, most_skipped: int, skipped: tuple[int, int]):
        self._checkpoints = checkpoints
        self._most_skipped = most_skipped
        self._num_skipped, self._num_in_a_row = skipped
        self._unchecked: list[tuple[int, tuple[Any, ...]]] = []
        self._latest: tuple[int, Mapping[str, Any]] = (0, {})

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._unchecked.append((step, tuple(metrics[name] for name in self._WATCHED)))
        self._latest = (step, metrics)

    def to_resume(self) -> dict[str, tuple[int, int]]:
        """What a checkpoint keeps: how many steps were left out, in all and last in a row."""
        counts = (self._num_skipped, self._num_in_a_row)
        return {"skipped": counts} if self._most_skipped else {}

    def check(self) -> dict[str, float]:
        """The latest metrics. Raises :class:`NonFiniteLoss` at the first step that went wrong.

        Steps that were left out may go wrong, so many in a row; they are counted.
        """
        fetched, (last_step, latest) = jax.device_get((self._unchecked, self._latest))
        self._unchecked = []
        for step, values in fetched:
            if np.all(np.isfinite(values)):
                self._num_in_a_row = 0
                continue
            shown = _shown(dict(zip(self._WATCHED, values, strict=True)))
            self._num_in_a_row += 1
            if self._num_in_a_row <= self._most_skipped and np.isfinite(values[-1]):
                self._num_skipped += 1
                _log.warning(
                    "step %d: %s. It is left out, as number %d in a row, of at most %d "
                    "(optimizer.skip_nonfinite)",
                    step,
                    shown,
                    self._num_in_a_row,
                    self._most_skipped,
                )
                continue
            raise NonFiniteLoss(
                f"step {step}: {shown}. {self._why_not_skipped(values[-1])}Nothing of it was "
                f"saved; {self._last_good()}; the same command continues from there. A lower "
                "optimizer.learning_rate, a longer optimizer.warmup_epochs or "
                f"optimizer.clip_norm usually helps{self._other_help(values[-1])} (with "
                f"--allow_config_changes). Metrics of step {last_step}: {_shown(latest)}",
                step,
            )
        values = {name: float(value) for name, value in latest.items() if name != "skipped"}
        return values | ({"skipped_steps": float(self._num_skipped)} if self._most_skipped else {})

    def _why_not_skipped(self, parameter_norm: float) -> str:
        if self._num_in_a_row > self._most_skipped > 0:
            return (
                f"It is number {self._num_in_a_row} in a row, and optimizer.skip_nonfinite leaves "
                f"out {self._most_skipped}. "
            )
        if not np.isfinite(parameter_norm):
            return "The parameters themselves are no numbers any more. "
        return ""

    def _other_help(self, parameter_norm: float) -> str:
        if self._most_skipped or not np.isfinite(parameter_norm):
            return ""
        return ", and optimizer.skip_nonfinite=5 leaves out up to five such steps in a row"

    def _last_good(self) -> str:
        try:
            self._checkpoints.wait()
        except CheckpointError as error:
            return str(error)
        good = self._checkpoints.latest_step()
        if good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {good}"


def _shown(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in metrics.items())
