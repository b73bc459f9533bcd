"""The report: figures and scores of a run, on one page, now and then and at its end."""

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
    """A base class of the hooks that draw a run's figures and write its report.

    Args:
        config: of the run.
        workdir: where figures and report go.
        total_steps: of the run.
        every_steps: steps between reports; None for one at the end alone.
    """

    at_end = False  # there is on_end, for a run that is stopped too

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
        """The kind of the run, as the report's title has it."""

    @abc.abstractmethod
    def content(self, state: TrainState, step: int) -> Content:
        """Computes what the figures show; all processes take part."""

    @abc.abstractmethod
    def draw(self, content: Content, records: Sequence[Record]) -> None:
        """Draws the figures, those that there is something to draw of; the first process does."""

    @abc.abstractmethod
    def summary(self, content: Content, records: Sequence[Record]) -> Sequence[Summary]:
        """Returns the cards at the head of the report."""

    @abc.abstractmethod
    def results(self, content: Content, records: Sequence[Record]) -> Mapping[str, Mapping]:
        """Returns the tables of the report: values by name, by the table's title."""

    def headline(self, content: Content) -> str:
        """Returns the result that the last line of the log begins with; empty for none."""
        return ""

    def log_results(self) -> None:
        """Logs results that have lines of their own."""

    def on_steps(self, state: TrainState, step: int) -> Metrics:
        """Draws and writes everything, from the state and the records so far."""
        self._write(self.content(state, step), step)
        return {}

    def on_end(self, state: TrainState, step: int) -> None:
        """Draws and writes everything for the last time, and logs how the run stands."""
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
        """Draws and writes; the log tells what goes wrong, as no run ends for its figures."""
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
    """Returns what a run depends on besides its config: versions and devices."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
