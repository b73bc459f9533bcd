"""Hooks of a segmentation run: mean IoU on the test split, and its report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.segmentation import count_pixels
from ddae_jax.data.eval_pairs import eval_pairs
from ddae_jax.data.segmentation import PairSource
from ddae_jax.evaluation.segmentation import (
    Confusion,
    format_scores,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    scores_to_json,
)
from ddae_jax.figures.metrics import CAPTIONS, iou_figure
from ddae_jax.figures.report import Summary
from ddae_jax.figures.segmentation import CAPTION, overlay_figure
from ddae_jax.hooks.scores import TRAINING_CAPTIONS, ScoresHook, ScoresReport
from ddae_jax.training.metrics import Record
from ddae_jax.training.program import TrainState
from ddae_jax.training.sharding import local_replica

_NUM_SHOWN = 4  # images in the overlays

Segment = Callable[[PyTree], Callable]
"""Function from ``(params, teacher)`` to a function from an image to the class of each pixel."""


class SegmentationScores(ScoresHook[Confusion]):
    """Hook that measures mean IoU and pixel accuracy on the test split.

    Args:
        every_steps: see :class:`ScoresHook`.
        config: of the run.
        segment: from :func:`ddae_jax.builders.segmentation.build_segment`.
        test: pairs of test images and annotations.
        names: of the classes.
    """

    metric = "test/miou"

    def __init__(
        self,
        every_steps: int | None,
        config: ConfigDict,
        segment: Segment,
        test: PairSource,
        names: tuple[str, ...],
    ):
        super().__init__(every_steps)
        self._config = config
        self._segment = segment
        self._test = test
        self._names = names

    def score(self, state: TrainState) -> Confusion:
        """Counts the confusion matrix of all pixels of the test images."""
        return count_pixels(self._config, self._segment, on_one_device(state), self._test)

    def metrics(self, scores: Confusion) -> dict[str, float]:
        """Returns ``test/miou`` and ``test/pixel_accuracy``."""
        return {"test/miou": mean_iou(scores), "test/pixel_accuracy": pixel_accuracy(scores)}

    def format(self, scores: Confusion) -> str:
        """Formats mean IoU and pixel accuracy."""
        return format_scores(scores)

    def to_json(self, scores: Confusion) -> dict[str, Any]:
        """Returns all scores, and the confusion matrix."""
        return scores_to_json(scores, self._names)


class SegmentationReport(ScoresReport[Confusion]):
    """Hook that writes the report of a segmentation run.

    Args:
        segment: from :func:`ddae_jax.builders.segmentation.build_segment`.
        test: pairs of test images and annotations.
        names: of the classes.
        arguments: those of :class:`ScoresReport`.
    """

    title = "Segmentation"
    captions: ClassVar[Mapping[str, tuple[str, str]]] = {
        "overlays": (CAPTION, "What it reaches"),
        "iou": (CAPTIONS["iou"], "What it reaches"),
        **TRAINING_CAPTIONS,
    }

    def __init__(self, *arguments, segment: Segment, test: PairSource, names: tuple[str, ...]):
        super().__init__(*arguments)
        self._segment = segment
        self._test = test
        self._names = names

    def variables(self, state: TrainState) -> PyTree:
        """Returns ``(params, teacher)``, on one device."""
        return on_one_device(state)

    def summary(self, content: tuple[Confusion, PyTree], records: Sequence[Record]) -> list:
        """Returns mean IoU, pixel accuracy and mean class accuracy."""
        scores, _ = content
        return [
            Summary("Mean IoU", f"{mean_iou(scores):.1%}", f"{len(self._test):,} images"),
            Summary("Pixel accuracy", f"{pixel_accuracy(scores):.1%}"),
            Summary("Mean class accuracy", f"{mean_accuracy(scores):.1%}"),
        ]

    def results(
        self, content: tuple[Confusion, PyTree], records: Sequence[Record]
    ) -> Mapping[str, Mapping]:
        """Returns the table of IoU by class."""
        return {"IoU": scores_to_json(content[0], self._names)["iou"]}

    def draw_scores(self, scores: Confusion, variables: PyTree, records: Sequence[Record]) -> None:
        """Draws scores over epochs, and a few images overlaid with their classes."""
        iou_figure(self.figure("iou"), records)
        pairs = list(eval_pairs(self._test, limit=_NUM_SHOWN))
        segment = self._segment(variables)
        overlay_figure(
            self.figure("overlays"),
            [pair["image"] for pair in pairs],
            [pair["annotation"] for pair in pairs],
            [segment(pair["image"]) for pair in pairs],
            self._test.class_names,
        )


def on_one_device(state: TrainState) -> PyTree:
    """Returns ``(params, teacher)``, unsharded, on one device of this process."""
    return local_replica((state.params, state.teacher))
