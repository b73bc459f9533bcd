"""How a run is watched: k-NN accuracy and collapse on the way, figures, and the report."""

import collections
import importlib.metadata
import logging
import math
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax import build
from ddae_jax.config import to_plain
from ddae_jax.data.pipeline import eval_batches
from ddae_jax.data.sources import Source
from ddae_jax.evaluation import curves, pictures
from ddae_jax.evaluation.classify import LabelledImages
from ddae_jax.evaluation.collapse import make_collapse_metrics
from ddae_jax.evaluation.features import Encode
from ddae_jax.evaluation.report import Captioned, Summary, write_report
from ddae_jax.methods.method import Method
from ddae_jax.methods.trainable import Trainable
from ddae_jax.networks import build_normalize, untrained_encoder_params
from ddae_jax.training.agreement import from_first
from ddae_jax.training.logging import read_metrics
from ddae_jax.training.loop import Every
from ddae_jax.training.sharding import replicated
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir, read_json, write_json

_log = logging.getLogger(__name__)

_NUM_SHOWN = 4  # images in the figures
_NUM_WEIGHED = 2  # of which weights are shown too
_NUM_PROBED = (32, 256)  # fewest and most images whose features are looked at

_SECTIONS = {
    "reconstruction": "What is predicted",
    "tokens": "What is predicted",
    "histograms": "What is predicted",
    "supervision": "What is paid attention to",
    "beta": "What is paid attention to",
    "knn": "How training went",
    "loss": "How training went",
    "codebook": "How training went",
    "collapse": "How training went",
    "schedule": "How training went",
}
"""Where each figure stands in the report, in its order."""

_CAPTIONS = {**pictures.CAPTIONS, **curves.CAPTIONS}

# What of the first record's a network keeps that has not collapsed, and what it needs of the most.
_RANK_LEFT, _RANK_NEEDED, _DEVIATION_LEFT = 1 / 4, 1 / 10, 1 / 4
_MOST_SHARE = 0.95  # of targets that are told by their place

_SHARE = "position_share/depth_"

_ADVICE = (
    "It learns little from here on: stop this run and start another one, with a lower "
    "optimizer.learning_rate, a longer optimizer.warmup_epochs or a lower optimizer.clip_norm"
)
_ADVICE_ON_TARGETS = (
    "What is left to predict is easy and teaches little: stop this run and start another one. Try, "
    "one after the other, a slower teacher (a longer teacher.half_life_epochs), "
    "targets.feature_normalization='batch' or 'position', a later targets.feature_start and a "
    "lower targets.feature_weight; targets.feature_weight=0 does without the teacher"
)


class KnnMonitor:
    """k-NN accuracy of the student or teacher while it is trained.

    Args:
        config: of the run.
        method: that is trained.
        mesh: of devices.
    """

    def __init__(self, config: ConfigDict, method: Trainable, mesh: Mesh):
        self._config = config
        self._method = method
        self._images: LabelledImages = build.build_labelled_images(
            config, mesh, limit=config.evaluation.max_examples or None
        )
        self._encode: Encode = build.build_encode(
            config, mesh, depth=config.evaluation.depth, pool=config.evaluation.pool
        )
        self._predict = build.build_predict(config, "knn")

    @classmethod
    def from_config(cls, config: ConfigDict, method: Trainable, mesh: Mesh) -> "KnnMonitor | None":
        """None if the config asks for no k-NN. Raises ``ValueError`` if there are no labels."""
        if not config.evaluation.knn_every_epochs:
            return None
        try:
            return cls(config, method, mesh)
        except (ValueError, FileNotFoundError) as error:
            without = "set evaluation.knn_every_epochs=0 to pretrain without k-NN"
            raise type(error)(f"{error}; {without}") from error

    def baselines(self, path: pathlib.Path) -> dict[str, float]:
        """``knn/untrained`` and ``knn/raw_pixels``: what k-NN reaches without training.

        They are kept in ``path``, with all that they depend on, and computed where that differs.
        """
        key = {name: to_plain(self._config[name]) for name in ("data", "model", "evaluation")}
        key |= {"seed": self._config.seed, "examples": self._images.fingerprint}
        kept = _kept(path, key)
        # The first process decides: computing takes all of them.
        if from_first(kept is not None):
            return kept or {}
        untrained = self._accuracy(untrained_encoder_params(self._config))
        raw_pixels = self._images.accuracy(self._predict, *self._images.pixels())
        _log.info("k-NN accuracy: untrained %.3f, raw pixels %.3f", untrained, raw_pixels)
        values = {"knn/untrained": untrained, "knn/raw_pixels": raw_pixels}
        if jax.process_index() == 0:
            try:
                write_json(path, {"of": key, "values": values})
            except OSError as error:
                _log.warning("the baselines could not be kept for the next start: %s", error)
        return values

    def measure(self, state: TrainState, step: int) -> dict[str, float]:
        """``knn/trained``, of the encoder that the config names."""
        is_teacher = self._config.evaluation.encoder == "teacher"
        params = state.teacher if is_teacher else state.params["encoder"]
        accuracy = self._accuracy(params)
        _log.info("k-NN accuracy at step %d: %.3f", step, accuracy)
        return {"knn/trained": accuracy}

    def _accuracy(self, encoder_params) -> float:
        features = self._images.features(self._encode, encoder_params)
        return self._images.accuracy(self._predict, *features)


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
        self._images = _images_of(source, config, min(max(count, fewest), most))
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


class ReportWriter:
    """Draws the figures of a run and writes its report.

    Args:
        config: of the run.
        workdir: where figures and report go.
        method: that is trained.
        source: of the images shown.
        total_steps: of the run.
        mesh: of devices.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        method: Trainable,
        source: Source,
        total_steps: int,
        mesh: Mesh,
    ):
        self._config = config
        self._workdir = workdir
        self._method = method
        self._total_steps = total_steps
        self._normalize = build_normalize(config)
        self._look = jax.jit(method.look, out_shardings=replicated(mesh))
        self._grid = method.encoder.grid
        self._images = _images_of(source, config, 4 * _NUM_SHOWN)[:_NUM_SHOWN]

    def write(self, state: TrainState, step: int, status: str | None = None) -> dict[str, float]:
        """Draws and writes everything, from the state and the records so far; gives no metrics.

        What goes wrong in that is logged.

        ``status`` is what the run is doing; by default running, or complete at its last step.
        """
        key = jax.random.key(self._config.seed)
        images = self._normalize(self._images)
        seen = jax.device_get(self._look(state.params, state.teacher, images, key))
        if jax.process_index() == 0:
            try:
                records = read_metrics(self._workdir.metrics)
                self._draw(seen, records)
                self._write_report(step, records, status)
            except Exception:  # no run ends for its pictures
                _log.exception("step %d: figures or report could not be written", step)
        return {}

    def finish(self, state: TrainState, step: int) -> None:
        """Writes everything for the last time, and tells in the log how the run stands."""
        is_complete = step >= self._total_steps
        self.write(state, step, None if is_complete else "stopped")
        records = read_metrics(self._workdir.metrics)
        knn = _knn_results(records)
        if knn:
            shown = ", ".join(f"{name} {value:.1%}" for name, value in knn.items())
            _log.info("k-NN accuracy: %s", shown)
        _log.info(
            "%s; report: %s",
            "complete" if is_complete else f"stopped at step {step}",
            self._workdir.report,
        )

    def _draw(self, seen: Mapping[str, np.ndarray], records: list[dict]) -> None:
        images = {"images": self._images.astype(np.float32) / 255, "grid": self._grid}
        depths = self._method.depths
        if "reconstructions" in seen:
            mean, std = np.asarray(self._config.data.mean), np.asarray(self._config.data.std)
            pictures.reconstruction_figure(
                self._figure("reconstruction"),
                **images,
                mask=seen["mask"],
                reconstructions=np.clip(seen["reconstructions"] * std + mean, 0, 1),
                depths=depths,
            )
        if "histograms" in seen:
            pictures.histograms_figure(
                self._figure("histograms"),
                **images,
                mask=seen["mask"],
                histograms=seen["histograms"],
                predicted=seen["predicted_histograms"],
                depths=depths,
            )
        if "tokens" in seen:
            pictures.tokens_figure(
                self._figure("tokens"),
                **images,
                tokens=seen["tokens"],
                codes=seen["codes"],
                mask=seen.get("mask"),
                predicted=seen.get("predicted_tokens", ()),
                depths=depths,
            )
        if "weights" in seen:
            pictures.supervision_figure(
                self._figure("supervision"),
                images=images["images"][:_NUM_WEIGHED],
                mask=seen["mask"][:_NUM_WEIGHED],
                grid=self._grid,
                distance=seen["distance"][:_NUM_WEIGHED],
                weights=seen["weights"][:, :, :_NUM_WEIGHED],
                beta=seen["beta"],
                objectives=list(self._method.objectives),
                depths=depths,
            )
        for name in ("beta", "loss", "knn", "codebook", "collapse", "schedule"):
            getattr(curves, f"{name}_figure")(self._figure(name), records)

    def _write_report(self, step: int, records: list[dict], status: str | None) -> None:
        knn = _knn_results(records)
        write_report(
            self._workdir.report,
            title=f"{self._config.method.upper()} · {self._workdir.path.name}",
            step=step,
            num_steps=self._total_steps,
            summary=_summary(records, knn),
            figures=[
                Captioned(self._figure(name), _CAPTIONS[name], section)
                for name, section in _SECTIONS.items()
            ],
            results={"k-NN accuracy": knn} if knn else {},
            config=to_plain(self._config),
            environment=environment(),
            state=status,
        )

    def _figure(self, name: str) -> pathlib.Path:
        return self._workdir.figures / f"{name}.png"


class PretrainingWatch:
    """Who looks at a pretraining run: a :class:`ddae_jax.job.Watch`."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        method: Trainable,
        source: Source,
        schedule: build.Schedule,
        mesh: Mesh,
    ):
        self._config = config
        self._workdir = workdir
        self._schedule = schedule
        self._knn = KnnMonitor.from_config(config, method, mesh)
        self._report = ReportWriter(config, workdir, method, source, schedule.total_steps, mesh)
        self._codebook_watch = CollapseWatch(
            config.tokenizer.min_perplexity_share * config.tokenizer.num_codes
        )
        self._features = FeatureMonitor.from_config(config, method, source, mesh)
        self._feature_watch = None
        if self._features and jax.process_index() == 0:  # which has the records
            self._feature_watch = FeatureCollapseWatch(
                workdir.metrics,
                most_rank=min(method.encoder.width, self._features.num_images - 1),
                learned_from=config.targets.feature_start if config.targets.pixel_weight else 0.0,
            )

    def baselines(self) -> Mapping[str, float]:
        """What k-NN reaches without training, if it is asked for."""
        return self._knn.baselines(self._workdir.baselines) if self._knn else {}

    def actions(self) -> list[Every]:
        """How features stand at every record; k-NN and figures, as often as the config says."""
        config, schedule = self._config, self._schedule
        actions = []
        if self._features:
            actions.append(Every(config.log.every_steps, self._features.measure))
        if self._knn:
            knn_steps = schedule.steps(config.evaluation.knn_every_epochs)
            actions.append(Every(knn_steps, self._knn.measure))
        if config.log.figures_every_epochs:
            figure_steps = schedule.steps(config.log.figures_every_epochs)
            actions.append(Every(figure_steps, self._report.write, at_end=False))
        return actions

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warns of a collapsed codebook, and of features that collapse."""
        self._codebook_watch(step, metrics)
        if self._feature_watch:
            self._feature_watch(step, metrics)

    def finish(self, state: TrainState, step: int) -> None:
        """Writes the report for the last time."""
        self._report.finish(state, step)


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
        patience: records in a row.
    """

    def __init__(
        self,
        records: pathlib.Path,
        *,
        most_rank: int,
        learned_from: float = 0.0,
        patience: int = 5,
    ):
        self._records = records
        self._most_rank = most_rank
        self._learned_from = learned_from
        self._patience = patience
        self._first: dict[str, Mapping[str, float]] = {}
        self._num_bad: collections.Counter[str] = collections.Counter()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a record; warns at every ``patience`` -th one in a row that is bad."""
        has_begun = metrics.get("progress", 1.0) >= self._learned_from
        advice = _ADVICE_ON_TARGETS if has_begun and "rank/teacher" in metrics else _ADVICE
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
                "depth %d (%s%d) are the same in all images: where a patch lies tells them, "
                "without a look at it. It has been so for %d records in a row. %s",
                step,
                100 * share,
                depth,
                _SHARE,
                depth,
                self._num_bad["targets"],
                _ADVICE_ON_TARGETS,
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


def _images_of(source: Source, config: ConfigDict, count: int) -> np.ndarray:
    """At most so many images, spread evenly, as evaluation sees them; the same in all processes."""
    batch = next(eval_batches(source, tuple(config.model.image_size), count, limit=count))
    return batch["image"][batch["valid"]]


def _kept(path: pathlib.Path, key: Mapping[str, Any]) -> dict[str, float] | None:
    try:
        kept = read_json(path)
    except (OSError, ValueError):
        return None
    return kept.get("values") if kept.get("of") == key else None


def environment() -> dict[str, Any]:
    """What a run depends on besides its config: versions and devices."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _knn_results(records: list[dict]) -> dict[str, float]:
    found = {
        name: curves.latest(records, f"knn/{name}")
        for name in ("trained", "untrained", "raw_pixels")
    }
    return {name.replace("_", " "): value for name, value in found.items() if value is not None}


def _summary(records: list[dict], knn: Mapping[str, float]) -> list[Summary]:
    cards = []
    if "trained" in knn:
        others = {name: value for name, value in knn.items() if name != "trained"}
        note = ", ".join(f"{name} {value:.1%}" for name, value in others.items())
        cards.append(Summary("k-NN accuracy", f"{knn['trained']:.1%}", note))
    key = "plain_loss" if curves.latest(records, "plain_loss") is not None else "loss"
    first = next((record for record in records if record.get(key) is not None), None)
    if first is not None:
        since = f"{first[key]:.3f} at step {first['step']}"
        cards.append(Summary("Loss", f"{curves.latest(records, key):.3f}", since))
    rate = curves.latest(records, "images_per_s")
    if rate is not None:
        waiting = curves.latest(records, "data_wait_share") or 0.0
        cards.append(
            Summary("Images per second", f"{rate:,.0f}", f"{waiting:.1%} waiting for data")
        )
    corrupt = curves.latest(records, "corrupt_images")
    if corrupt:
        cards.append(Summary("Unreadable images", f"{corrupt:.0f}", "skipped; named in the log"))
    return cards
