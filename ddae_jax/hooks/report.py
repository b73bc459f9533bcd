"""How a run that learns from labels is watched: scores on the test split, figures, the report."""

import abc
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
from ml_collections import ConfigDict

from ddae_jax.builders import build
from ddae_jax.config import to_plain
from ddae_jax.data.readable import NothingReadable
from ddae_jax.figures.metrics import CAPTIONS, loss_figure, schedule_figure
from ddae_jax.figures.report import Captioned, Summary, write_report
from ddae_jax.hooks.pretraining import environment
from ddae_jax.training.loop import Every
from ddae_jax.training.metrics import read_metrics
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir, write_json

_log = logging.getLogger(__name__)

Scores = TypeVar("Scores")


class LabelledWatch(abc.ABC, Generic[Scores]):
    """Who looks at such a run: a :class:`ddae_jax.jobs.runner.Watch`, but for what the scores are.

    Args:
        config: of the run.
        workdir: where scores, figures and report go.
        schedule: of the run.
    """

    title: str
    """What the run does, for the report."""

    headline: str
    """The metric that people ask for first."""

    captions: Mapping[str, tuple[str, str]]
    """Caption and section of each figure, by its name, in the order of the report."""

    def __init__(self, config: ConfigDict, workdir: Workdir, schedule: build.Schedule):
        self._config = config
        self._workdir = workdir
        self._schedule = schedule
        self._latest: tuple[int, Scores] | None = None

    @abc.abstractmethod
    def score(self, state: TrainState) -> Scores:
        """Scores on every test image once; all processes take part.

        Raises ``NothingReadable`` if there is nothing to score on.
        """

    @abc.abstractmethod
    def metrics(self, scores: Scores) -> dict[str, float]:
        """Scores for the records."""

    @abc.abstractmethod
    def in_words(self, scores: Scores) -> str:
        """Scores for the log."""

    @abc.abstractmethod
    def plain(self, scores: Scores) -> dict[str, Any]:
        """Scores for ``scores.json``."""

    @abc.abstractmethod
    def summary(self, scores: Scores) -> tuple[Sequence[Summary], Mapping[str, Mapping]]:
        """Cards and table of the report."""

    @abc.abstractmethod
    def draw(self, scores: Scores, variables: Any, records: list[dict]) -> None:
        """Draws the figures that are not of every such run."""

    def for_drawing(self, state: TrainState) -> Any:
        """What :meth:`draw` needs of the state; all processes take part."""
        return None

    def baselines(self) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def measure_fresh(self, state: TrainState) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def actions(self) -> list[Every]:
        """Scores on the test split, as often as the config says."""
        every_epochs = self._config.evaluation.every_epochs
        if not every_epochs:
            return []
        return [Every(self._schedule.steps(every_epochs), self.measure_now, metric=self.headline)]

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def measure(self, state: TrainState, step: int) -> dict[str, float]:
        """The metrics of the test split."""
        scores = self.score(state)
        self._latest = step, scores
        _log.info("step %d: %s", step, self.in_words(scores))
        return self.metrics(scores)

    def measure_now(self, state: TrainState, step: int) -> dict[str, float]:
        """The metrics of the test split; none, with an error in the log, if it cannot be read."""
        try:
            return self.measure(state, step)
        except NothingReadable as error:
            _log.error("step %d: the test split has no scores: %s", step, error)
            return {}

    def finish(self, state: TrainState, step: int) -> None:
        """Writes scores, figures and report.

        Raises ``NothingReadable`` if there is nothing to score on; the state is saved then.
        """
        is_complete = step >= self._schedule.total_steps
        if self._latest is None or self._latest[0] != step:
            try:
                self.measure(state, step)
            except NothingReadable as error:
                raise NothingReadable(
                    f"step {step} is saved, but the test split has no scores: {error}. Once it can "
                    "be read, the same command scores it and writes the report"
                ) from error
        _, scores = self._latest
        variables = self.for_drawing(state)
        if jax.process_index() == 0:
            write_json(self._workdir.scores, self.plain(scores))
            try:
                records = read_metrics(self._workdir.metrics)
                loss_figure(self.figure("loss"), records)
                schedule_figure(self.figure("schedule"), records)
                self.draw(scores, variables, records)
                self._write_report(step, scores, None if is_complete else "stopped")
            except Exception:  # no run ends for its pictures
                _log.exception("step %d: figures or report could not be written", step)
        _log.info(
            "%s: %s; report: %s",
            "complete" if is_complete else f"stopped at step {step}",
            self.in_words(scores),
            self._workdir.report,
        )

    def figure(self, name: str) -> pathlib.Path:
        """Where a figure goes."""
        return self._workdir.figures / f"{name}.png"

    def _write_report(self, step: int, scores: Scores, status: str | None) -> None:
        summary, results = self.summary(scores)
        of_every_run = {
            name: (CAPTIONS[name], "How training went") for name in ("loss", "schedule")
        }
        write_report(
            self._workdir.report,
            title=f"{self.title} · {self._workdir.path.name}",
            step=step,
            num_steps=self._schedule.total_steps,
            summary=summary,
            figures=[
                Captioned(self.figure(name), caption, section)
                for name, (caption, section) in ({**self.captions, **of_every_run}).items()
            ],
            results=results,
            config=to_plain(self._config),
            environment=environment(),
            state=status,
        )
