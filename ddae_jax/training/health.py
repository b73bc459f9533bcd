"""The health of a run: steps whose loss or gradient is not finite are skipped, or end the run."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddae_jax.training.checkpoint import CheckpointError, Checkpoints

_log = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """Exception for a loss or gradient that is not finite; the step is not saved.

    ``step`` is the first such step; ``exit_status`` is that of the command.
    """

    exit_status = 1

    def __init__(self, message: str, step: int = 0):
        super().__init__(message)
        self.step = step


class RecurringNonFiniteLoss(NonFiniteLoss):
    """Exception for the same failure at the same step as last time, with nothing changed."""

    exit_status = 70  # the scripts in launch/ do not restart this one


class Health:
    """Checks of losses and norms, which stay on the device until they are checked.

    Args:
        checkpoints: of the run; messages name the last good one.
        max_skipped: how many steps in a row may be skipped because they are not finite (see
            :class:`ddae_jax.training.program.TrainProgram`).
        skipped: how many steps were skipped before: in all, and in a row at the end.
    """

    _WATCHED = ("loss", "gradient_norm", "parameter_norm")

    def __init__(
        self, checkpoints: Checkpoints, max_skipped: int = 0, skipped: tuple[int, int] = (0, 0)
    ):
        self._checkpoints = checkpoints
        self._max_skipped = max_skipped
        self._num_skipped, self._num_in_a_row = skipped
        self._unchecked: list[tuple[int, tuple[Any, ...]]] = []
        self._latest: tuple[int, Mapping[str, Any]] = (0, {})

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Stores the metrics of a step, on the device, for the next check."""
        self._unchecked.append((step, tuple(metrics[name] for name in self._WATCHED)))
        self._latest = (step, metrics)

    def to_resume(self) -> dict[str, tuple[int, int]]:
        """Returns counts for the checkpoint: steps skipped, in all and in a row at the end."""
        counts = (self._num_skipped, self._num_in_a_row)
        return {"skipped": counts} if self._max_skipped else {}

    def check(self) -> dict[str, float]:
        """Checks all steps since the last check, and returns the latest metrics.

        Skipped steps are counted and logged. Raises :class:`NonFiniteLoss` for the first step that
        is not finite and was not skipped, or that exceeds ``max_skipped`` in a row.
        """
        fetched, (last_step, latest) = jax.device_get((self._unchecked, self._latest))
        self._unchecked = []
        for step, values in fetched:
            if np.all(np.isfinite(values)):
                self._num_in_a_row = 0
                continue
            text = _format(dict(zip(self._WATCHED, values, strict=True)))
            self._num_in_a_row += 1
            if self._num_in_a_row <= self._max_skipped and np.isfinite(values[-1]):
                self._num_skipped += 1
                _log.warning(
                    "step %d: %s. It is left out, as number %d in a row, of at most %d "
                    "(optimizer.skip_nonfinite)",
                    step,
                    text,
                    self._num_in_a_row,
                    self._max_skipped,
                )
                continue
            raise NonFiniteLoss(
                f"step {step}: {text}. {self._why_not_skipped(values[-1])}Nothing of it was "
                f"saved; {self._last_good()}; the same command continues from there. A lower "
                "optimizer.learning_rate, a longer optimizer.warmup_epochs or "
                f"optimizer.clip_norm usually helps{self._other_help(values[-1])} (with "
                f"--allow_config_changes). Metrics of step {last_step}: {_format(latest)}",
                step,
            )
        values = {name: float(value) for name, value in latest.items() if name != "skipped"}
        return values | ({"skipped_steps": float(self._num_skipped)} if self._max_skipped else {})

    def _why_not_skipped(self, parameter_norm: float) -> str:
        """Returns the sentence that says why a step was not skipped; empty if none may be."""
        if self._num_in_a_row > self._max_skipped > 0:
            return (
                f"It is number {self._num_in_a_row} in a row, and optimizer.skip_nonfinite leaves "
                f"out {self._max_skipped}. "
            )
        if not np.isfinite(parameter_norm):
            return "The parameters themselves are no numbers any more. "
        return ""

    def _other_help(self, parameter_norm: float) -> str:
        """Returns the advice to skip steps, where that would help."""
        if self._max_skipped or not np.isfinite(parameter_norm):
            return ""
        return ", and optimizer.skip_nonfinite=5 leaves out up to five such steps in a row"

    def _last_good(self) -> str:
        """Describes the last good checkpoint."""
        try:
            self._checkpoints.wait()
        except CheckpointError as error:
            return str(error)
        good = self._checkpoints.latest_step()
        if good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {good}"


def _format(metrics: Mapping[str, Any]) -> str:
    """Formats metrics for a message."""
    return ", ".join(f"{name}={value:.4g}" for name, value in metrics.items())
