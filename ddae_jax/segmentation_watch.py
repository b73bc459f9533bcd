"""How a segmentation run is watched: mean IoU on the test split, overlays, and the report."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from ddae_jax import build
from ddae_jax.config import to_plain
from ddae_jax.data.annotations import IGNORED
from ddae_jax.data.segmentation import PairSource
from ddae_jax.data.whole_pairs import eval_pairs
from ddae_jax.evaluation import curves, overlays
from ddae_jax.evaluation.report import Captioned, Summary, write_report
from ddae_jax.evaluation.segmentation import (
    Segmenter,
    class_iou,
    confusion_matrix,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from ddae_jax.methods.labelled import LabelledTask, resized_logits
from ddae_jax.monitor import environment
from ddae_jax.networks import build_normalize
from ddae_jax.training.agreement import summed
from ddae_jax.training.logging import read_metrics
from ddae_jax.training.loop import Every
from ddae_jax.training.sharding import local_replica
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir, write_json

_log = logging.getLogger(__name__)

_NUM_SHOWN = 4  # images in the overlays
_SECTIONS = {
    "overlays": "What it reaches",
    "iou": "What it reaches",
    "loss": "How training went",
    "schedule": "How training went",
}
"""Where each figure stands in the report, in its order."""

_CAPTIONS = {**curves.CAPTIONS, "overlays": overlays.CAPTION}

Confusion = Int[np.ndarray, "classes classes"]


class SegmentationWatch:
    """Who looks at a segmentation run: a :class:`ddae_jax.job.Watch`.

    Args:
        config: of the run.
        workdir: where figures and report go.
        task: that is trained.
        test: pairs that are never trained on.
        schedule: of the run.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        task: LabelledTask,
        test: PairSource,
        schedule: build.Schedule,
    ):
        self._config = config
        self._workdir = workdir
        self._schedule = schedule
        self._test = test
        self._segment = build_segment(config, task)
        self._confusion: tuple[int, Confusion] | None = None

    def baselines(self) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def actions(self) -> list[Every]:
        """Mean IoU on the test split, as often as the config says."""
        every_epochs = self._config.evaluation.every_epochs
        if not every_epochs:
            return []
        return [Every(self._schedule.steps(every_epochs), self.measure)]

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def measure(self, state: TrainState, step: int) -> dict[str, float]:
        """``test/miou`` and ``test/pixel_accuracy``, of every image once."""
        confusion = self._count(state)
        self._confusion = step, confusion
        _log.info("step %d: %s", step, in_words(confusion))
        return {"test/miou": mean_iou(confusion), "test/pixel_accuracy": pixel_accuracy(confusion)}

    def finish(self, state: TrainState, step: int) -> None:
        """Writes scores, overlays and report."""
        is_complete = step >= self._schedule.total_steps
        if self._confusion is None or self._confusion[0] != step:
            self.measure(state, step)
        _, confusion = self._confusion
        variables = local_replica((state.params, state.teacher))
        if jax.process_index() == 0:
            try:
                self._draw(variables)
                self._write(step, confusion, None if is_complete else "stopped")
            except Exception:  # no run ends for its pictures
                _log.exception("step %d: figures or report could not be written", step)
        _log.info(
            "%s: %s; report: %s",
            "complete" if is_complete else f"stopped at step {step}",
            in_words(confusion),
            self._workdir.report,
        )

    def _count(self, state: TrainState) -> Confusion:
        variables = local_replica((state.params, state.teacher))
        return count_pixels(self._config, self._segment, variables, self._test)

    def _draw(self, variables: PyTree) -> None:
        pairs = list(eval_pairs(self._test, limit=_NUM_SHOWN))
        segment = self._segment(variables)
        overlays.overlay_figure(
            self._figure("overlays"),
            [pair["image"] for pair in pairs],
            [pair["annotation"] for pair in pairs],
            [segment(pair["image"]) for pair in pairs],
            self._test.class_names,
        )

    def _write(self, step: int, confusion: Confusion, status: str | None) -> None:
        records = read_metrics(self._workdir.metrics)
        names = class_names(self._test, self._config)
        write_json(self._workdir.scores, plain_scores(confusion, names))
        curves.iou_figure(self._figure("iou"), records)
        curves.loss_figure(self._figure("loss"), records)
        curves.schedule_figure(self._figure("schedule"), records)
        write_report(
            self._workdir.report,
            title=f"Segmentation · {self._workdir.path.name}",
            step=step,
            num_steps=self._schedule.total_steps,
            summary=[
                Summary("Mean IoU", f"{mean_iou(confusion):.1%}", f"{len(self._test):,} images"),
                Summary("Pixel accuracy", f"{pixel_accuracy(confusion):.1%}"),
                Summary("Mean class accuracy", f"{mean_accuracy(confusion):.1%}"),
            ],
            figures=[
                Captioned(self._figure(name), _CAPTIONS[name], section)
                for name, section in _SECTIONS.items()
            ],
            results={"IoU": dict(zip(names, map(_plain, class_iou(confusion)), strict=True))},
            config=to_plain(self._config),
            environment=environment(),
            state=status,
        )

    def _figure(self, name: str):
        return self._workdir.figures / f"{name}.png"


def build_segment(config: ConfigDict, task: LabelledTask) -> Callable[[PyTree], Callable]:
    """From the parameters of a task and its teacher to ``uint8 image -> class of each pixel``."""
    crop_size, evaluation = tuple(config.model.image_size), config.evaluation
    normalize = build_normalize(config)

    @jax.jit
    def logits(variables: PyTree, crops: Float[Array, "batch height width channels"]) -> Array:
        found, _ = task.predict(*variables, crops)
        return resized_logits(found, crop_size)

    def with_variables(variables: PyTree) -> Callable[[np.ndarray], np.ndarray]:
        segmenter = Segmenter(
            functools.partial(logits, variables),
            config.data.num_classes,
            crop_size,
            stride=tuple(
                step or max(1, round(side * 2 / 3))
                for step, side in zip(evaluation.stride, crop_size, strict=True)
            ),
            base_size=tuple(config.augment.base_size),
            scales=tuple(evaluation.scales),
            flip=evaluation.flip,
            batch_size=evaluation.batch_size,
        )
        return lambda image: segmenter.labels(np.asarray(normalize(image)))

    return with_variables


def count_pixels(
    config: ConfigDict,
    segment: Callable[[PyTree], Callable],
    variables: PyTree,
    source: PairSource,
    limit: int | None = None,
) -> Confusion:
    """The confusion of all pixels of a source; each process segments its share of the images."""
    num_classes = config.data.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    of_image = segment(variables)
    pairs = eval_pairs(
        source,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        limit=limit,
        num_threads=config.data.num_threads or None,
    )
    for pair in pairs:
        confusion += confusion_matrix(
            pair["annotation"], of_image(pair["image"]), num_classes, IGNORED
        )
    return summed(confusion)


def class_names(source: PairSource, config: ConfigDict) -> tuple[str, ...]:
    """Of a source's classes; their numbers, where they have none."""
    return source.class_names or tuple(map(str, range(config.data.num_classes)))


def plain_scores(confusion: Confusion, names: tuple[str, ...]) -> dict[str, Any]:
    """Scores as JSON stores them."""
    return {
        "num_pixels": int(confusion.sum()),
        "miou": mean_iou(confusion),
        "pixel_accuracy": pixel_accuracy(confusion),
        "mean_accuracy": mean_accuracy(confusion),
        "iou": dict(zip(names, map(_plain, class_iou(confusion)), strict=True)),
        "confusion": confusion.tolist(),
    }


def in_words(confusion: Confusion) -> str:
    """The two scores that people ask for."""
    return f"mIoU {mean_iou(confusion):.2%}, pixel accuracy {pixel_accuracy(confusion):.2%}"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
