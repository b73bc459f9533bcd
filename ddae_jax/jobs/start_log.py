"""The first log lines of a run: what is trained, from which step, and its memory layout."""

import logging
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.config.checks import ignored_keys
from ddae_jax.training.program import TrainState
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.sharding import AXES, layout_table, state_bytes

_log = logging.getLogger(__name__)


def log_continuation(
    epochs: float,
    now: Schedule,
    step: int,
    before: Mapping[str, int] | None,
    learning_rate: float,
) -> None:
    """Logs where a run continues, and warns if its length has changed since the checkpoint.

    Args:
        epochs, now, step, before: see :func:`ddae_jax.jobs.start_checks.check_not_over`.
        learning_rate: at that step.
    """
    _log.info(
        "continuing from the checkpoint of step %d: epoch %.4g of %g, learning rate %.3g",
        step,
        step / now.steps_per_epoch,
        epochs,
        learning_rate,
    )
    if before and before != now.length:
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


def log_start(
    config: ConfigDict,
    description: str,
    num_images: int,
    schedule: Schedule,
    start_step: int,
    num_devices: int,
) -> None:
    """Logs what is trained, on what, and for how long."""
    _log.info(
        "%s, %s images, %g epochs = %d steps of %d, from step %d, on %d %s device(s)",
        description,
        f"{num_images:,}",
        config.epochs,
        schedule.total_steps,
        config.batch_size,
        start_step,
        num_devices,
        jax.devices()[0].platform,
    )


def log_warnings(config: ConfigDict, notes: Sequence[str]) -> None:
    """Warns of keys without effect and of a long warm-up, and logs the job's own warnings."""
    for line in [*ignored_keys(config), *notes]:
        _log.warning(line)
    if config.optimizer.warmup_epochs >= config.epochs:
        _log.warning(
            "optimizer.warmup_epochs=%g: the learning rate rises until the end of %g epochs",
            config.optimizer.warmup_epochs,
            config.epochs,
        )


def log_layout(mesh: Mesh, state: TrainState) -> None:
    """Logs the size of the state on each device; with several devices, the layout of each array."""
    shares = [f"{kind} {size / 2**20:,.1f}" for kind, size in state_bytes(state).items()]
    _log.info(
        "MiB on each device: %s; mesh data=%d x fsdp=%d; optimizer and teacher are split as the "
        "parameters are",
        ", ".join(shares),
        *(mesh.shape[axis] for axis in AXES),
    )
    if mesh.size > 1:
        for line in layout_table(state.params):
            _log.info(line)
