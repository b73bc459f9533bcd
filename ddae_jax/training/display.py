"""Terminal output of a run: its log, and a progress bar."""

import logging
import math
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_log = logging.getLogger(__name__)

_console = Console(stderr=True)


def set_up_logging(is_primary: bool = True) -> None:
    """Sends the log to stderr, formatted for a terminal if it is one, else as plain lines.

    Args:
        is_primary: whether this is the first process of the run; all others log only warnings.
    """
    handler: logging.Handler
    if _console.is_terminal:
        handler = RichHandler(console=_console, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs each of its operations
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tasks of a restore that has failed
    for name in ("ddae_jax", "__main__"):  # __main__ is the command of python -m ddae_jax.COMMAND
        logging.getLogger(name).setLevel(logging.INFO if is_primary else logging.WARNING)


class ProgressDisplay:
    """Progress bar with rate, time left and loss; without a terminal, a plain log line at times.

    Args:
        total_steps: number of steps of the whole run.
        start_step: step from which the run continues.
        plain_every_s: least number of seconds between plain lines.
    """

    def __init__(self, total_steps: int, start_step: int = 0, plain_every_s: float = 10.0):
        self._total = total_steps
        self._start = start_step
        self._plain_every_s = plain_every_s
        self._began = time.monotonic()
        self._last_plain = -math.inf
        self._bar = None
        if _console.is_terminal:
            self._bar = Progress(
                TextColumn("pretraining"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TextColumn("gone,"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=_console,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, text="")
            self._bar.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a step and its most important metrics."""
        text = format_metrics(metrics)
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._last_plain >= self._plain_every_s or step >= self._total:
            self._last_plain = now
            rate = (step - self._start) / max(now - self._began, 1e-9)
            left = (self._total - step) / rate if rate > 0 else 0.0
            _log.info("step %d/%d  %s  %s left", step, self._total, text, format_duration(left))

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def close(self) -> None:
        """Stops updating the bar, and leaves it on the terminal."""
        if self._bar:
            self._bar.stop()


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Formats the most important metrics: the loss, the betas of each objective, and the rate.

    If betas are learned, those of the shallowest and the deepest supervised depth are shown, as in
    ``beta pixels -0.41..-0.32``, and so is the plain loss, ``plain``: all patches weigh the same in
    it, so that it does not change with beta.

    Args:
        metrics: with ``loss`` and ``images_per_s``; and, if betas are learned, ``plain_loss`` and
            ``beta/OBJECTIVE/depth_N``.
    """
    betas: dict[str, dict[int, float]] = {}
    for name, value in metrics.items():
        family, _, place = name.partition("/")
        if family == "beta":
            objective, _, depth = place.partition("/depth_")
            betas.setdefault(objective, {})[int(depth)] = value
    if not any(value for by_depth in betas.values() for value in by_depth.values()):
        betas = {}  # betas that are all 0 are not learned
    parts = [f"loss {metrics['loss']:.3f}"]
    if betas:
        parts.append(f"plain {metrics['plain_loss']:.3f}")
    for objective, by_depth in betas.items():
        first, last = by_depth[min(by_depth)], by_depth[max(by_depth)]
        parts.append(f"beta {objective} {first:+.2f}..{last:+.2f}")
    return "  ".join([*parts, f"{metrics['images_per_s']:,.0f} img/s"])


def format_duration(seconds: float) -> str:
    """Formats seconds as ``h:mm:ss``, or as ``m:ss`` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
