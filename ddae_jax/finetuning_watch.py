"""How a fine-tuning run is watched: accuracy on the test split, figures, and the report."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax import build
from ddae_jax.config import to_plain
from ddae_jax.data.sources import Source
from ddae_jax.evaluation import curves
from ddae_jax.evaluation.classification import Scores, make_count, score
from ddae_jax.evaluation.confusion_figure import CAPTION, confusion_figure, worst_classes
from ddae_jax.evaluation.report import Captioned, Summary, write_report
from ddae_jax.methods.labelled import LabelledTask
from ddae_jax.monitor import environment
from ddae_jax.networks import build_normalize
from ddae_jax.training.logging import read_metrics
from ddae_jax.training.loop import Every
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir, write_json

_log = logging.getLogger(__name__)

_SECTIONS = {
    "accuracy": "What it reaches",
    "confusion": "What it reaches",
    "loss": "How training went",
    "schedule": "How training went",
}
"""Where each figure stands in the report, in its order."""

_CAPTIONS = {**curves.CAPTIONS, "confusion": CAPTION}


class ClassificationWatch:
    """Who looks at a fine-tuning run: a :class:`ddae_jax.job.Watch`.

    Args:
        config: of the run.
        workdir: where figures and report go.
        task: that is trained.
        test: images that are never trained on.
        schedule: of the run.
        mesh: of devices.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        task: LabelledTask,
        test: Source,
        schedule: build.Schedule,
        mesh: Mesh,
    ):
        self._config = config
        self._workdir = workdir
        self._schedule = schedule
        self._test = test
        self._mesh = mesh
        self._count = build_count(config, task, test.num_classes, mesh)
        self._scores: tuple[int, Scores] | None = None

    def baselines(self) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def actions(self) -> list[Every]:
        """Accuracy on the test split, as often as the config says."""
        every_epochs = self._config.evaluation.every_epochs
        if not every_epochs:
            return []
        return [Every(self._schedule.steps(every_epochs), self.measure)]

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def measure(self, state: TrainState, step: int) -> dict[str, float]:
        """``test/top1``, ``test/top5`` and ``test/loss``, of every image once."""
        batches = build.build_eval_batches(self._config, self._test, self._mesh)
        scores = score(self._count, (state.params, state.teacher), batches, self._mesh)
        self._scores = step, scores
        _log.info("step %d: %s", step, _in_words(scores))
        return {"test/top1": scores.top1, "test/top5": scores.top5, "test/loss": scores.loss}

    def finish(self, state: TrainState, step: int) -> None:
        """Writes scores, figures and report."""
        is_complete = step >= self._schedule.total_steps
        if self._scores is None or self._scores[0] != step:
            self.measure(state, step)
        _, scores = self._scores
        if jax.process_index() == 0:
            try:
                self._write(step, scores, None if is_complete else "stopped")
            except Exception:  # no run ends for its pictures
                _log.exception("step %d: figures or report could not be written", step)
        _log.info(
            "%s: %s; report: %s",
            "complete" if is_complete else f"stopped at step {step}",
            _in_words(scores),
            self._workdir.report,
        )

    def _write(self, step: int, scores: Scores, status: str | None) -> None:
        records = read_metrics(self._workdir.metrics)
        names = class_names(self._test)
        write_json(self._workdir.scores, plain_scores(scores, names))
        figures = {name: self._workdir.figures / f"{name}.png" for name in _SECTIONS}
        curves.accuracy_figure(figures["accuracy"], records)
        confusion_figure(figures["confusion"], scores.confusion, names)
        curves.loss_figure(figures["loss"], records)
        curves.schedule_figure(figures["schedule"], records)
        write_report(
            self._workdir.report,
            title=f"Fine-tuning · {self._workdir.path.name}",
            step=step,
            num_steps=self._schedule.total_steps,
            summary=_summary(scores, names),
            figures=[
                Captioned(figures[name], _CAPTIONS[name], section)
                for name, section in _SECTIONS.items()
            ],
            results={"accuracy": {"top-1": scores.top1, "top-5": scores.top5}},
            config=to_plain(self._config),
            environment=environment(),
            state=status,
        )


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


def _in_words(scores: Scores) -> str:
    return f"top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%} of {scores.num_images:,} test images"


def _summary(scores: Scores, names: tuple[str, ...]) -> list[Summary]:
    worst, accuracy = worst_classes(scores.per_class, names)[0]
    return [
        Summary("Top-1 accuracy", f"{scores.top1:.1%}", f"{scores.num_images:,} test images"),
        Summary("Top-5 accuracy", f"{scores.top5:.1%}"),
        Summary("Hardest class", worst, f"{accuracy:.1%} of its images are recognised"),
    ]
