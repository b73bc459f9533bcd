"""The loop: steps, metrics, checkpoints and whatever else is to happen now and then."""

import collections
import dataclasses
import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import PyTree

from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.interruption import StopRequest
from ddae_jax.training.state import TrainState
from ddae_jax.training.step import TrainStep

_log = logging.getLogger(__name__)

# Steps handed to the device before the loop waits for one: enough to hide the host's work.
_MAX_STEPS_IN_FLIGHT = 2


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is no longer a number; the run stopped before saving it."""


class Batches(Protocol):
    """What the loop needs of a data loader (see :class:`ddae_jax.data.pipeline.TrainLoader`)."""

    corrupt_count: int

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Every:
    """An action on the state, every so many steps; what it returns joins the metrics.

    Its time is not counted in the rate. At the last step it happens if ``at_end``, and only then.
    """

    steps: int
    action: Callable[[TrainState, int], Mapping[str, float]]
    at_end: bool = True


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
    """

    total_steps: int
    batch_size: int
    steps_per_epoch: int
    log_every_steps: int
    save_every_steps: int
    actions: Sequence[Every] = ()
    on_record: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None


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
        state: to start from.
        train_step: compiled for the mesh; donates the state.
        batches: positioned at the state's step.
        put: moves this process's images onto the devices.
        checkpoints: of the run.
        plan: see :class:`Plan`.
        stop: becomes true when the run is to end early.

    Returns:
        The last state; its step tells whether the plan was fulfilled.

    Raises:
        NonFiniteLoss: naming the step, the metrics and the last good checkpoint.
        CheckpointError: if a checkpoint cannot be written.
    """
    step = int(state.step)
    saved_step = checkpoints.latest_step()
    meter = _Meter(plan.batch_size)
    watch = _HealthWatch(checkpoints)
    in_flight = collections.deque()

    while step < plan.total_steps and not stop:
        with meter.waiting():
            images = next(batches)["image"]
        images = put(images)
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, images)
        step += 1
        meter.count_step()
        watch.note(step, metrics)
        in_flight.append(metrics["loss"])
        if len(in_flight) > _MAX_STEPS_IN_FLIGHT:
            in_flight.popleft().block_until_ready()

        is_last = step == plan.total_steps
        due = [a for a in plan.actions if (a.at_end if is_last else step % a.steps == 0)]
        if due or step % plan.log_every_steps == 0 or is_last or stop:
            values = watch.check() | meter.read()
            values |= {
                "epoch": step / plan.steps_per_epoch,
                "progress": step / plan.total_steps,
                "corrupt_images": float(batches.corrupt_count),
                **peak_memory(),
            }
            with meter.paused():
                for action in due:
                    values |= action.action(state, step)
            plan.on_record(step, values)
        if step % plan.save_every_steps == 0 and not is_last:
            watch.check()
            with meter.paused():
                checkpoints.save(state, step, batches.get_state())
            saved_step = step

    if saved_step != step:
        watch.check()
        checkpoints.save(state, step, batches.get_state())
    checkpoints.wait()
    return state


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
    """Keeps each step's loss and gradient norm on the device until they are looked at together."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._unchecked: list[tuple[int, Any]] = []
        self._latest: tuple[int, Mapping[str, Any]] = (0, {})

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._unchecked.append((step, (metrics["loss"], metrics["gradient_norm"])))
        self._latest = (step, metrics)

    def check(self) -> dict[str, float]:
        """The latest metrics. Raises :class:`NonFiniteLoss` at the first step that went wrong."""
        fetched, (last_step, latest) = jax.device_get((self._unchecked, self._latest))
        self._unchecked = []
        for step, (loss, gradient_norm) in fetched:
            if not np.isfinite(loss) or not np.isfinite(gradient_norm):
                self._checkpoints.wait()
                good = self._checkpoints.latest_step()
                where = "there is no checkpoint yet"
                if good is not None:
                    where = f"the last good checkpoint is that of step {good}"
                shown = ", ".join(f"{name}={value:.4g}" for name, value in latest.items())
                raise NonFiniteLoss(
                    f"step {step}: loss={loss:.4g}, gradient_norm={gradient_norm:.4g}. Nothing of "
                    f"it was saved; {where}; the same command continues from there. A lower "
                    "optimizer.learning_rate, a longer optimizer.warmup_epochs or "
                    "optimizer.clip_norm usually helps (with --allow_config_changes). Metrics of "
                    f"step {last_step}: {shown}"
                )
        return {name: float(value) for name, value in latest.items()}
