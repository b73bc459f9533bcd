"""Hooks of a fine-tuning run: accuracy on the test split, and its report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.data import build_eval_batches
from ddae_jax.data.sources import Source
from ddae_jax.evaluation.classification import Scores, score, scores_to_json
from ddae_jax.figures.confusion import CAPTION, confusion_figure, worst_classes
from ddae_jax.figures.metrics import CAPTIONS, accuracy_figure
from ddae_jax.figures.report import Summary
from ddae_jax.hooks.scores import TRAINING_CAPTIONS, ScoresHook, ScoresReport
from ddae_jax.training.metrics import Record
from ddae_jax.training.program import TrainState


class ClassificationScores(ScoresHook[Scores]):
    """Hook that measures top-1 and top-5 accuracy on the test split.

    Args:
        every_steps: see :class:`ScoresHook`.
        config: of the run.
        count: from :func:`ddae_jax.builders.classification.build_count`.
        test: the test images.
        names: of the classes.
        mesh: of devices.
    """

    metric = "test/top1"

    def __init__(
        self,
        every_steps: int | None,
        config: ConfigDict,
        count: Callable[..., PyTree],
        test: Source,
        names: tuple[str, ...],
        mesh: Mesh,
    ):
        super().__init__(every_steps)
        self._config = config
        self._count = count
        self._test = test
        self._names = names
        self._mesh = mesh

    def score(self, state: TrainState) -> Scores:
        """Scores every test image once."""
        batches = build_eval_batches(self._config, self._test, self._mesh)
        return score(self._count, (state.params, state.teacher), batches, self._mesh)

    def metrics(self, scores: Scores) -> dict[str, float]:
        """Returns ``test/top1``, ``test/top5`` and ``test/loss``."""
        return {"test/top1": scores.top1, "test/top5": scores.top5, "test/loss": scores.loss}

    def format(self, scores: Scores) -> str:
        """Formats top-1 and top-5 accuracy."""
        accuracies = f"top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}"
        return f"{accuracies} of {scores.num_images:,} test images"

    def to_json(self, scores: Scores) -> dict[str, Any]:
        """Returns all scores, and the confusion matrix."""
        return scores_to_json(scores, self._names)


class ClassificationReport(ScoresReport[Scores]):
    """Hook that writes the report of a fine-tuning run.

    Args:
        names: of the classes.
        arguments: those of :class:`ScoresReport`.
    """

    title = "Fine-tuning"
    captions: ClassVar[Mapping[str, tuple[str, str]]] = {
        "accuracy": (CAPTIONS["accuracy"], "What it reaches"),
        "confusion": (CAPTION, "What it reaches"),
        **TRAINING_CAPTIONS,
    }

    def __init__(self, *arguments, names: tuple[str, ...]):
        super().__init__(*arguments)
        self._names = names

    def summary(self, content: tuple[Scores, None], records: Sequence[Record]) -> list[Summary]:
        """Returns top-1 and top-5 accuracy, and the class with the lowest accuracy."""
        scores, _ = content
        worst, accuracy = worst_classes(scores.per_class, self._names)[0]
        return [
            Summary("Top-1 accuracy", f"{scores.top1:.1%}", f"{scores.num_images:,} test images"),
            Summary("Top-5 accuracy", f"{scores.top5:.1%}"),
            Summary("Hardest class", worst, f"{accuracy:.1%} of its images are recognised"),
        ]

    def results(
        self, content: tuple[Scores, None], records: Sequence[Record]
    ) -> Mapping[str, Mapping]:
        """Returns the table of top-1 and top-5 accuracy."""
        scores, _ = content
        return {"accuracy": {"top-1": scores.top1, "top-5": scores.top5}}

    def draw_scores(self, scores: Scores, variables: None, records: Sequence[Record]) -> None:
        """Draws accuracy over epochs, and the confusion matrix."""
        accuracy_figure(self.figure("accuracy"), records)
        confusion_figure(self.figure("confusion"), scores.confusion, self._names)
