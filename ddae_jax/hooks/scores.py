"""Base classes of the hooks that score runs with labels on the test split, and report it."""

import abc
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import jax
from ml_collections import ConfigDict

from ddae_jax.data.readable import NothingReadable
from ddae_jax.figures.metrics import CAPTIONS, loss_figure, schedule_figure
from ddae_jax.hooks.report import ReportHook
from ddae_jax.training.hooks import Hook, Metrics
from ddae_jax.training.metrics import Record
from ddae_jax.training.program import TrainState
from ddae_jax.training.workdir import Workdir, write_json

_log = logging.getLogger(__name__)

Scores = TypeVar("Scores")

TRAINING_CAPTIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {name: (CAPTIONS[name], "How training went") for name in ("loss", "schedule")}
)
"""Caption and section of the figures that are in every report on runs with labels."""


class ScoresHook(Hook, abc.ABC, Generic[Scores]):
    """Base class of the hooks that score a network on the test split.

    Args:
        every_steps: steps between scores; None to score only at the end.
    """

    def __init__(self, every_steps: int | None):
        self.every_steps = every_steps
        self._latest: tuple[int, Scores] | None = None

    @abc.abstractmethod
    def score(self, state: TrainState) -> Scores:
        """Scores every test image once; all processes must call it.

        Raises ``NothingReadable`` if no test image can be scored.
        """

    @abc.abstractmethod
    def metrics(self, scores: Scores) -> dict[str, float]:
        """Returns the scores as metrics, by their names in the records."""

    @abc.abstractmethod
    def format(self, scores: Scores) -> str:
        """Formats the scores for the log."""

    @abc.abstractmethod
    def to_json(self, scores: Scores) -> dict[str, Any]:
        """Returns the scores in the form of ``scores.json``."""

    def on_steps(self, state: TrainState, step: int) -> Metrics:
        """Returns the metrics of the test split; {}, and logs an error, if it cannot be read."""
        try:
            return self.metrics(self.scores_at(state, step))
        except NothingReadable as error:
            _log.error("step %d: the test split has no scores: %s", step, error)
            return {}

    def scores_at(self, state: TrainState, step: int) -> Scores:
        """Returns the scores of a state; they are computed once per step.

        Raises ``NothingReadable`` if no test image can be scored.
        """
        if self._latest is None or self._latest[0] != step:
            scores = self.score(state)
            self._latest = step, scores
            _log.info("step %d: %s", step, self.format(scores))
        return self._latest[1]


class ScoresReport(ReportHook[tuple[Scores, Any]]):
    """Base class of the hooks that report on runs with labels, and write ``scores.json``.

    Args:
        config, workdir, total_steps: see :class:`ReportHook`.
        scores: the hook that computes the scores.
    """

    captions: ClassVar[Mapping[str, tuple[str, str]]] = TRAINING_CAPTIONS

    def __init__(
        self, config: ConfigDict, workdir: Workdir, total_steps: int, scores: ScoresHook[Scores]
    ):
        super().__init__(config, workdir, total_steps)
        self._scores = scores

    @abc.abstractmethod
    def draw_scores(self, scores: Scores, variables: Any, records: Sequence[Record]) -> None:
        """Draws the figures that are specific to the job."""

    def variables(self, state: TrainState) -> Any:
        """Returns the arrays that :meth:`draw_scores` needs; all processes must call it."""
        return None

    def content(self, state: TrainState, step: int) -> tuple[Scores, Any]:
        """Computes the scores, unless the step is scored already, and writes ``scores.json``.

        Raises ``NothingReadable`` if no test image can be scored; the state is saved by then.
        """
        try:
            scores = self._scores.scores_at(state, step)
        except NothingReadable as error:
            raise NothingReadable(
                f"step {step} is saved, but the test split has no scores: {error}. Once it can "
                "be read, the same command scores it and writes the report"
            ) from error
        variables = self.variables(state)
        if jax.process_index() == 0:
            write_json(self.workdir.scores, self._scores.to_json(scores))
        return scores, variables

    def draw(self, content: tuple[Scores, Any], records: Sequence[Record]) -> None:
        """Draws loss and schedule, and calls :meth:`draw_scores`."""
        loss_figure(self.figure("loss"), records)
        schedule_figure(self.figure("schedule"), records)
        self.draw_scores(*content, records)

    def headline(self, content: tuple[Scores, Any]) -> str:
        """Returns the scores, formatted for the log."""
        return self._scores.format(content[0])
