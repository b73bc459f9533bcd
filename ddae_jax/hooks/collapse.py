"""Hooks that measure the collapse of features and of their targets, and warn of it."""

import collections
import logging
import pathlib
from collections.abc import Mapping

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.data import sample_images
from ddae_jax.builders.networks import build_normalize
from ddae_jax.data.sources import Source
from ddae_jax.evaluation.collapse import make_collapse_metrics
from ddae_jax.methods.method import Method
from ddae_jax.training.hooks import Hook
from ddae_jax.training.metrics import read_metrics
from ddae_jax.training.program import TrainState

_log = logging.getLogger(__name__)

_NUM_PROBED = (32, 256)  # fewest and most images whose features are measured

# Shares below which features count as collapsed: of the first record's rank and of the largest
# possible rank, both at once; or of the first record's deviation.
_RANK_LEFT, _RANK_NEEDED, _DEVIATION_LEFT = 1 / 4, 1 / 10, 1 / 4
_MOST_SHARE = 0.95  # largest share of the targets that their position may explain

_SHARE = "position_share/depth_"

_ADVICE = (
    "It learns little from here on: stop this run and start another one, with a lower "
    "optimizer.learning_rate, a longer optimizer.warmup_epochs or a lower optimizer.clip_norm"
)
_ADVICE_ON_TARGETS = (
    "What is left to predict teaches little: stop this run and start another one. Try, one after "
    "the other, a slower teacher (a longer teacher.half_life_epochs), {normalization}a later "
    "targets.feature_start and a lower targets.feature_weight; targets.feature_weight=0 does "
    "without the teacher"
)
_OTHER_NORMALIZATION = "targets.feature_normalization='position', "


class FeatureStatistics(Hook):
    """Hook that measures, at each record, how much features differ between images.

    The features are those of student and teacher, always of the same images. There are as many
    images as in a (micro-)batch, clipped to 32 to 256, so that measuring needs no more memory than
    training, and hardly any time.

    Args:
        config: of the run.
        method: that is trained.
        source: of the images.
        mesh: of devices.
    """

    metric = "rank/student"

    def __init__(self, config: ConfigDict, method: Method, source: Source, mesh: Mesh):
        fewest, most = _NUM_PROBED
        count = config.batch_size // config.optimizer.micro_batches
        self.every_steps = config.log.every_steps
        self._images = sample_images(source, config, min(max(count, fewest), most))
        self._metrics = make_collapse_metrics(method, build_normalize(config), mesh)

    @property
    def num_images(self) -> int:
        """Number of images whose features are measured."""
        return len(self._images)

    def on_start(self, state: TrainState) -> dict[str, float]:
        """Returns the metrics before the first step, to compare later ones with."""
        return self.on_steps(state, 0)

    def on_steps(self, state: TrainState, step: int) -> dict[str, float]:
        """Returns the metrics of :func:`ddae_jax.evaluation.collapse.make_collapse_metrics`."""
        metrics = self._metrics(state.params["encoder"], state.teacher, self._images)
        return {name: float(value) for name, value in jax.device_get(metrics).items()}


class FeatureCollapseWarning(Hook):
    """Hook that warns of features, and of targets, that are nearly the same in all images.

    It warns if one of these holds for ``patience`` records in a row:

    1. The effective rank of teacher or student is below a quarter of that in the run's first
       record, and below a tenth of the largest possible one; or the mean deviation is below a
       quarter of that in the first record.
    2. While features are learned, the mean at each place explains more than 0.95 of those at the
       deepest depth: all but a twentieth can be predicted without seeing the image.

    The thresholds come from runs of a ViT-nano on CIFAR-10. In sound ones the rank falls from 15
    (of 63) to between 7 and 11 in the first hundred steps, and MAE's then rises beyond 15; so half
    the first rank is no sign of collapse. The deviation begins at 0.54 and stays above 0.28, and
    the mean at each place explains at most 0.75. In a run that was made to collapse (features
    alone, layer-normalised, of a teacher that followed at once) the deviation fell to 0.06 within
    fifty steps and the mean explained 0.99; the rank did not fall below 3.5, because rounding alone
    has many directions.

    Args:
        records: the run's ``metrics.jsonl``, which has the first record of a continued run.
        most_rank: the largest possible effective rank.
        learned_from: the share of the run from which features have weight.
        normalization: of the targets, a value of ``targets.feature_normalization``.
        patience: records in a row after which it warns.
    """

    def __init__(
        self,
        records: pathlib.Path,
        *,
        most_rank: int,
        learned_from: float = 0.0,
        normalization: str = "layer",
        patience: int = 5,
    ):
        self._records = records
        self._most_rank = most_rank
        self._learned_from = learned_from
        self._takes_out_places = normalization == "position"
        self._advice_on_targets = _ADVICE_ON_TARGETS.format(
            normalization="" if self._takes_out_places else _OTHER_NORMALIZATION
        )
        self._patience = patience
        self._first: dict[str, Mapping[str, float]] = {}
        self._num_bad: collections.Counter[str] = collections.Counter()

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Checks a record; warns at every ``patience``-th bad one in a row."""
        has_begun = metrics.get("progress", 1.0) >= self._learned_from
        advice = self._advice_on_targets if has_begun and "rank/teacher" in metrics else _ADVICE
        for name in ("teacher", "student"):
            if f"rank/{name}" in metrics:
                self._check_features(step, metrics, name, advice)
        depths = [int(key.rpartition("_")[2]) for key in metrics if key.startswith(_SHARE)]
        if has_begun and depths:
            self._check_targets(step, metrics, max(depths))

    def _check_features(
        self, step: int, metrics: Mapping[str, float], name: str, advice: str
    ) -> None:
        """Checks rank and deviation of student or teacher against the first record."""
        keys = f"rank/{name}", f"deviation/{name}"
        first = self._first_with(keys, step, metrics)
        (rank, deviation), (first_rank, first_deviation) = (
            [record[key] for key in keys] for record in (metrics, first)
        )
        is_lower = rank < _RANK_LEFT * first_rank and rank < _RANK_NEEDED * self._most_rank
        if self._has_lasted(name, is_lower or deviation < _DEVIATION_LEFT * first_deviation):
            _log.warning(
                "step %d: the features of the %s have COLLAPSED: they are nearly the same for all "
                "images. They differ in %.1f directions (rank/%s), where it was %.1f at step %d "
                "and can be %d, with a deviation of %.3f (deviation/%s), where it was %.3f. It has "
                "been so for %d records in a row. %s",
                step,
                name,
                rank,
                name,
                first_rank,
                first["step"],
                self._most_rank,
                deviation,
                name,
                first_deviation,
                self._num_bad[name],
                advice,
            )

    def _check_targets(self, step: int, metrics: Mapping[str, float], depth: int) -> None:
        """Checks how much of the targets at a depth their position explains."""
        share = metrics[f"{_SHARE}{depth}"]
        if self._has_lasted("targets", share > _MOST_SHARE):
            _log.warning(
                "step %d: the feature targets have COLLAPSED: %.1f %% of the teacher's features at "
                "depth %d (%s%d) are the same in all images: %s. It has been so for %d records in "
                "a row. %s",
                step,
                100 * share,
                depth,
                _SHARE,
                depth,
                "targets.feature_normalization='position' takes that out, and leaves mostly noise"
                if self._takes_out_places
                else "where a patch lies tells them, without a look at it",
                self._num_bad["targets"],
                self._advice_on_targets,
            )

    def _first_with(
        self, keys: tuple[str, ...], step: int, metrics: Mapping[str, float]
    ) -> Mapping[str, float]:
        """Returns the run's first record that has a number for each key."""
        if keys[0] not in self._first:
            records = [*read_metrics(self._records), {"step": step, **metrics}]
            self._first[keys[0]] = next(
                r for r in records if all(r.get(key) is not None for key in keys)
            )
        return self._first[keys[0]]

    def _has_lasted(self, what: str, is_bad: bool) -> bool:
        """Counts bad records in a row; returns whether a warning is due."""
        self._num_bad[what] = self._num_bad[what] + 1 if is_bad else 0
        return is_bad and self._num_bad[what] % self._patience == 0
