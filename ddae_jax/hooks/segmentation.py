"""How a segmentation run is watched: mean IoU on the test split, and overlays."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from ddae_jax.builders import build
from ddae_jax.builders.networks import build_normalize
from ddae_jax.data.annotations import IGNORED
from ddae_jax.data.eval_pairs import eval_pairs
from ddae_jax.data.readable import NothingReadable
from ddae_jax.data.segmentation import PairSource
from ddae_jax.evaluation.segmentation import (
    WholeImageSegmenter,
    class_iou,
    confusion_matrix,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from ddae_jax.figures.metrics import CAPTIONS, iou_figure
from ddae_jax.figures.report import Summary
from ddae_jax.figures.segmentation import CAPTION, overlay_figure
from ddae_jax.hooks.report import LabelledWatch
from ddae_jax.methods.supervised import LabelledTask, resized_logits
from ddae_jax.training.multihost import all_sum
from ddae_jax.training.sharding import local_replica
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir

_NUM_SHOWN = 4  # images in the overlays

Confusion = Int[np.ndarray, "classes classes"]


class SegmentationWatch(LabelledWatch[Confusion]):
    """Who looks at a segmentation run.

    Args:
        config, workdir, schedule: see :class:`LabelledWatch`.
        task: that is trained.
        test: pairs that are never trained on.
    """

    title = "Segmentation"
    headline = "test/miou"
    captions: ClassVar = {
        "overlays": (CAPTION, "What it reaches"),
        "iou": (CAPTIONS["iou"], "What it reaches"),
    }

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        task: LabelledTask,
        test: PairSource,
        schedule: build.Schedule,
    ):
        super().__init__(config, workdir, schedule)
        self._test = test
        self._names = class_names(test, config)
        self._segment = build_segment(config, task)

    def score(self, state: TrainState) -> Confusion:
        """The confusion of all pixels of every test image once."""
        return count_pixels(self._config, self._segment, self.for_drawing(state), self._test)

    def metrics(self, scores: Confusion) -> dict[str, float]:
        """``test/miou`` and ``test/pixel_accuracy``."""
        return {"test/miou": mean_iou(scores), "test/pixel_accuracy": pixel_accuracy(scores)}

    def in_words(self, scores: Confusion) -> str:
        """The two scores that people ask for."""
        return in_words(scores)

    def plain(self, scores: Confusion) -> dict[str, Any]:
        """All of it."""
        return plain_scores(scores, self._names)

    def summary(self, scores: Confusion) -> tuple[Sequence[Summary], Mapping[str, Mapping]]:
        """Three means, and the IoU of each class."""
        cards = [
            Summary("Mean IoU", f"{mean_iou(scores):.1%}", f"{len(self._test):,} images"),
            Summary("Pixel accuracy", f"{pixel_accuracy(scores):.1%}"),
            Summary("Mean class accuracy", f"{mean_accuracy(scores):.1%}"),
        ]
        return cards, {"IoU": plain_scores(scores, self._names)["iou"]}

    def for_drawing(self, state: TrainState) -> PyTree:
        """Parameters and teacher, on one device."""
        return local_replica((state.params, state.teacher))

    def draw(self, scores: Confusion, variables: PyTree, records: list[dict]) -> None:
        """Scores over epochs, and a few images with their classes in colour."""
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


def build_segment(config: ConfigDict, task: LabelledTask) -> Callable[[PyTree], Callable]:
    """From the parameters of a task and its teacher to ``uint8 image -> class of each pixel``."""
    crop_size, evaluation = tuple(config.model.image_size), config.evaluation
    normalize = build_normalize(config)

    @jax.jit
    def logits(variables: PyTree, crops: Float[Array, "batch height width channels"]) -> Array:
        found, _ = task.predict(*variables, crops)
        return resized_logits(found, crop_size)

    def with_variables(variables: PyTree) -> Callable[[np.ndarray], np.ndarray]:
        segmenter = WholeImageSegmenter(
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
    """The confusion of all pixels of a source; each process segments its share of the images.

    Raises ``NothingReadable`` if no pixel counts.
    """
    num_classes = config.data.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    num_read = 0
    of_image = segment(variables)
    pairs = eval_pairs(
        source,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        limit=limit,
        num_threads=config.data.num_threads or None,
    )
    for pair in pairs:
        num_read += 1
        confusion += confusion_matrix(
            pair["annotation"], of_image(pair["image"]), num_classes, IGNORED
        )
    confusion, num_read = all_sum(confusion), int(all_sum(np.array(num_read)))
    if not confusion.any():
        raise NothingReadable(
            f"no pixel of {num_read:,} images has a class, by data.ignore_label and "
            "data.reduce_zero_label"
            if num_read
            else f"none of {len(source):,} annotated images can be decoded; the log names them"
        )
    return confusion


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
