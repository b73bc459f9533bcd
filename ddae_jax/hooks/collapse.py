"""Watches over collapse on the way: of features, of their targets, and of a codebook."""

import collections
import logging
import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.build import build_view
from ddae_jax.builders.networks import build_normalize
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.source_base import Source
from ddae_jax.evaluation.collapse import make_collapse_metrics
from ddae_jax.methods.method import Method
from ddae_jax.methods.task import Trainable
from ddae_jax.training.metrics import read_metrics
from ddae_jax.training.state import TrainState

_log = logging.getLogger(__name__)

_NUM_PROBED = (32, 256)  # fewest and most images whose features are looked at

# What of the first record's a network keeps that has not collapsed, and what it needs of the most.
_RANK_LEFT, _RANK_NEEDED, _DEVIATION_LEFT = 1 / 4, 1 / 10, 1 / 4
_MOST_SHARE = 0.95  # of targets that are told by their place

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


class FeatureMonitor:
    """How well the features of student and teacher tell images apart while it is trained.

    They are always of the same images, as many as a step's (where it is taken in parts, a part's),
    but from 32 to 256: so they need no more memory than training does, and hardly any time.

    Args:
        config: of the run.
        method: that is trained.
        source: of the images.
        mesh: of devices.
    """

    def __init__(self, config: ConfigDict, method: Method, source: Source, mesh: Mesh):
        fewest, most = _NUM_PROBED
        count = config.batch_size // config.optimizer.micro_batches
        self._images = sample_images(source, config, min(max(count, fewest), most))
        self._metrics = make_collapse_metrics(method, build_normalize(config), mesh)

    @classmethod
    def from_config(
        cls, config: ConfigDict, method: Trainable, source: Source, mesh: Mesh
    ) -> "FeatureMonitor | None":
        """None for a tokenizer: it is its codebook that may collapse."""
        return cls(config, method, source, mesh) if isinstance(method, Method) else None

    @property
    def num_images(self) -> int:
        """Images whose features are looked at."""
        return len(self._images)

    def measure(self, state: TrainState, step: int) -> dict[str, float]:
        """The metrics of :func:`ddae_jax.evaluation.collapse.make_collapse_metrics`."""
        found = self._metrics(state.params["encoder"], state.teacher, self._images)
        return {name: float(value) for name, value in jax.device_get(found).items()}


class CollapseWatch:
    """Warns of a codebook that has collapsed: few of its codes are used, and it stays so.

    Args:
        least: perplexity below which it has; 0 for no warnings.
        patience: records in a row.
    """

    def __init__(self, least: float, patience: int = 5):
        self._least = least
        self._patience = patience
        self._num_below = 0

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a record; warns at every ``patience`` -th one in a row that is below."""
        found = metrics.get("codebook/perplexity", math.inf)
        self._num_below = self._num_below + 1 if found < self._least else 0
        if self._num_below and self._num_below % self._patience == 0:
            _log.warning(
                "step %d: the codebook has COLLAPSED: its perplexity is %.1f, below %g (its size "
                "times tokenizer.min_perplexity_share), for %d records in a row. Its tokens say "
                "little. A "
                "lower optimizer.learning_rate, a smaller tokenizer.code_width, a larger "
                "batch_size or a higher tokenizer.revive_below usually helps",
                step,
                found,
                self._least,
                self._num_below,
            )


class FeatureCollapseWatch:
    """Warns of features that no longer tell images apart, and of targets that never did.

    It warns if one of these holds for ``patience`` records in a row:

    1. The effective rank of teacher or student is below a quarter of that in the run's first
       record, and below a tenth of the largest possible one; or the mean deviation is below a
       quarter of that in the first record.
    2. While features are learned, the mean at each place explains more than 0.95 of those at the
       deepest depth: they can be predicted, but for a twentieth, without a look at the image.

    The thresholds come from runs of a ViT-nano on CIFAR-10. In sound ones the rank falls from 15
    (of 63) to between 7 and 11 in the first hundred steps, and MAE's then rises beyond 15; so half
    the first rank is no sign of collapse. The deviation begins at 0.54 and stays above 0.28, and
    the mean at each place explains at most 0.75. In a run that was made to collapse (features
    alone, layer-normalised, of a teacher that followed at once) the deviation fell to 0.06 within
    fifty steps and the mean explained 0.99; the rank did not fall below 3.5, because rounding alone
    has many directions.

    Args:
        records: the run's ``metrics.jsonl``. It has the first record of a run that is continued.
        most_rank: the most that the effective rank can be.
        learned_from: the share of the run from which features have weight.
        normalization: of the targets, a value of ``targets.feature_normalization``.
        patience: records in a row.
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

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a record; warns at every ``patience`` -th one in a row that is bad."""
        has_begun = metrics.get("progress", 1.0) >= self._learned_from
        advice = self._advice_on_targets if has_begun and "rank/teacher" in metrics else _ADVICE
        for name in ("teacher", "student"):
            if f"rank/{name}" in metrics:
                self._look_at_features(step, metrics, name, advice)
        depths = [int(key.rpartition("_")[2]) for key in metrics if key.startswith(_SHARE)]
        if has_begun and depths:
            self._look_at_targets(step, metrics, max(depths))

    def _look_at_features(
        self, step: int, metrics: Mapping[str, float], name: str, advice: str
    ) -> None:
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

    def _look_at_targets(self, step: int, metrics: Mapping[str, float], depth: int) -> None:
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
        """The run's first record that has numbers of these names."""
        if keys[0] not in self._first:
            records = [*read_metrics(self._records), {"step": step, **metrics}]
            self._first[keys[0]] = next(
                r for r in records if all(r.get(key) is not None for key in keys)
            )
        return self._first[keys[0]]

    def _has_lasted(self, what: str, is_bad: bool) -> bool:
        self._num_bad[what] = self._num_bad[what] + 1 if is_bad else 0
        return is_bad and self._num_bad[what] % self._patience == 0


def sample_images(source: Source, config: ConfigDict, count: int) -> np.ndarray:
    """Reads at most so many images, spread evenly, as evaluation sees them.

    They are the same in all processes: ``uint8 [images, height, width, channels]``.
    """
    size = tuple(config.model.image_size)
    batch = next(eval_batches(source, size, count, limit=count, view=build_view(config)))
    return batch["image"][batch["valid"]]
