"""Base class of the hooks that write a run's report: figures and scores on one page."""

import abc
import importlib.metadata
import logging
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
from ml_collections import ConfigDict

from ddae_jax.config import to_plain
from ddae_jax.figures.report import Captioned, Summary, write_report
from ddae_jax.training.hooks import Hook, Metrics
from ddae_jax.training.metrics import Record, read_metrics
from ddae_jax.training.program import TrainState
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)

Content = TypeVar("Content")


class ReportHook(Hook, abc.ABC, Generic[Content]):
    """Base class of the hooks that draw a run's figures and write its report.

    Args:
        config: of the run.
        workdir: of the run; figures and report are written to it.
        total_steps: of the run.
        every_steps: steps between reports; None for only one, at the end.
    """

    at_end = False  # on_end writes the last report, also of a stopped run

    captions: ClassVar[Mapping[str, tuple[str, str]]]
    """Caption and section of each figure, by its name, in the order of the report."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        total_steps: int,
        every_steps: int | None = None,
    ):
        self.config = config
        self.workdir = workdir
        self.total_steps = total_steps
        self.every_steps = every_steps

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """The kind of run, with which the report's title begins."""

    @abc.abstractmethod
    def content(self, state: TrainState, step: int) -> Content:
        """Computes what the figures show; all processes must call it."""

    @abc.abstractmethod
    def draw(self, content: Content, records: Sequence[Record]) -> None:
        """Draws the figures for which there is data; only the first process calls it."""

    @abc.abstractmethod
    def summary(self, content: Content, records: Sequence[Record]) -> Sequence[Summary]:
        """Returns the cards at the head of the report."""

    @abc.abstractmethod
    def results(self, content: Content, records: Sequence[Record]) -> Mapping[str, Mapping]:
        """Returns the tables of the report: by title, the values by name."""

    def headline(self, content: Content) -> str:
        """Returns the result shown in the last log line; an empty string for none."""
        return ""

    def log_results(self) -> None:
        """Logs further results before the last log line."""

    def on_steps(self, state: TrainState, step: int) -> Metrics:
        """Writes figures and report from the state and the records so far; returns no metrics."""
        self._write(self.content(state, step), step)
        return {}

    def on_end(self, state: TrainState, step: int) -> None:
        """Writes figures and report for the last time, and logs whether the run is complete."""
        is_complete = step >= self.total_steps
        content = self.content(state, step)
        self._write(content, step, None if is_complete else "stopped")
        self.log_results()
        headline = self.headline(content)
        _log.info(
            "%s%s; report: %s",
            "complete" if is_complete else f"stopped at step {step}",
            f": {headline}" if headline else "",
            self.workdir.report,
        )

    def figure(self, name: str) -> pathlib.Path:
        """Returns the path of a figure."""
        return self.workdir.figures / f"{name}.png"

    def _write(self, content: Content, step: int, status: str | None = None) -> None:
        """Writes figures and report; errors are only logged, as they must not end the run."""
        if jax.process_index() != 0:
            return
        try:
            records = read_metrics(self.workdir.metrics)
            self.draw(content, records)
            write_report(
                self.workdir.report,
                title=f"{self.title} · {self.workdir.path.name}",
                step=step,
                num_steps=self.total_steps,
                summary=self.summary(content, records),
                figures=[
                    Captioned(self.figure(name), caption, section)
                    for name, (caption, section) in self.captions.items()
                ],
                results=self.results(content, records),
                config=to_plain(self.config),
                environment=environment(),
                state=status,
            )
        except Exception:
            _log.exception("step %d: figures or report could not be written", step)


def environment() -> dict[str, Any]:
    """Returns the versions and devices that a run uses."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
