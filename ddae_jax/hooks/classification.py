"""How a fine-tuning run is watched: accuracy on the test split, and what is taken for what."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders import build
from ddae_jax.builders.networks import build_normalize
from ddae_jax.data.source_base import Source
from ddae_jax.evaluation.classification import Scores, make_count, score
from ddae_jax.figures.confusion import CAPTION, confusion_figure, worst_classes
from ddae_jax.figures.metrics import CAPTIONS, accuracy_figure
from ddae_jax.figures.report import Summary
from ddae_jax.hooks.report import LabelledWatch
from ddae_jax.methods.supervised import LabelledTask
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir


class ClassificationWatch(LabelledWatch[Scores]):
    """Who looks at a fine-tuning run.

    Args:
        config, workdir, schedule: see :class:`LabelledWatch`.
        task: that is trained.
        test: images that are never trained on.
        mesh: of devices.
    """

    title = "Fine-tuning"
    headline = "test/top1"
    captions: ClassVar = {
        "accuracy": (CAPTIONS["accuracy"], "What it reaches"),
        "confusion": (CAPTION, "What it reaches"),
    }

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        task: LabelledTask,
        test: Source,
        schedule: build.Schedule,
        mesh: Mesh,
    ):
        super().__init__(config, workdir, schedule)
        self._test = test
        self._names = class_names(test)
        self._mesh = mesh
        self._count = build_count(config, task, test.num_classes, mesh)

    def score(self, state: TrainState) -> Scores:
        """Of every test image once."""
        batches = build.build_eval_batches(self._config, self._test, self._mesh)
        return score(self._count, (state.params, state.teacher), batches, self._mesh)

    def metrics(self, scores: Scores) -> dict[str, float]:
        """``test/top1``, ``test/top5`` and ``test/loss``."""
        return {"test/top1": scores.top1, "test/top5": scores.top5, "test/loss": scores.loss}

    def in_words(self, scores: Scores) -> str:
        """Top-1 and top-5."""
        shown = f"top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}"
        return f"{shown} of {scores.num_images:,} test images"

    def plain(self, scores: Scores) -> dict[str, Any]:
        """All of it."""
        return plain_scores(scores, self._names)

    def summary(self, scores: Scores) -> tuple[Sequence[Summary], Mapping[str, Mapping]]:
        """Top-1, top-5, and the class that is recognised least."""
        worst, accuracy = worst_classes(scores.per_class, self._names)[0]
        cards = [
            Summary("Top-1 accuracy", f"{scores.top1:.1%}", f"{scores.num_images:,} test images"),
            Summary("Top-5 accuracy", f"{scores.top5:.1%}"),
            Summary("Hardest class", worst, f"{accuracy:.1%} of its images are recognised"),
        ]
        return cards, {"accuracy": {"top-1": scores.top1, "top-5": scores.top5}}

    def draw(self, scores: Scores, variables: None, records: list[dict]) -> None:
        """Accuracy over epochs, and the confusion."""
        accuracy_figure(self.figure("accuracy"), records)
        confusion_figure(self.figure("confusion"), scores.confusion, self._names)


def build_count(
    config: ConfigDict, task: LabelledTask, num_classes: int, mesh: Mesh
) -> Callable[..., PyTree]:
    """What counts a batch for :func:`ddae_jax.evaluation.classification.score`.

    Its parameters are those of the task, and its teacher.
    """
    normalize = build_normalize(config)

    def logits(variables: PyTree, images: jax.Array) -> jax.Array:
        return task.predict(*variables, normalize(images))

    return make_count(logits, num_classes, mesh)


def class_names(source: Source) -> tuple[str, ...]:
    """Of a source's classes; their numbers, where they have none."""
    return source.class_names or tuple(map(str, range(source.num_classes)))


def plain_scores(scores: Scores, names: tuple[str, ...]) -> dict[str, Any]:
    """Scores as JSON stores them: accuracy of each class by its name, and the confusion."""
    per_class = {
        name: None if np.isnan(value) else round(float(value), 6)
        for name, value in zip(names, scores.per_class, strict=True)
    }
    return {
        "num_images": scores.num_images,
        "top1": scores.top1,
        "top5": scores.top5,
        "loss": scores.loss,
        "per_class": per_class,
        "confusion": scores.confusion.tolist(),
    }
