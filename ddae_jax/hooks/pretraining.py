"""How a pretraining run is watched: k-NN accuracy on the way, figures, and the report."""

import importlib.metadata
import logging
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders import build
from ddae_jax.builders.networks import build_normalize, untrained_encoder_params
from ddae_jax.config import to_plain
from ddae_jax.data.source_base import Source
from ddae_jax.evaluation.features import Encode
from ddae_jax.evaluation.labelled_images import LabelledImages
from ddae_jax.figures import metrics as metric_figures
from ddae_jax.figures import predictions as prediction_figures
from ddae_jax.figures.report import Captioned, Summary, write_report
from ddae_jax.hooks.collapse import (
    CollapseWatch,
    FeatureCollapseWatch,
    FeatureMonitor,
    sample_images,
)
from ddae_jax.methods.task import Trainable
from ddae_jax.training.loop import Every
from ddae_jax.training.metrics import latest, read_metrics
from ddae_jax.training.multihost import from_first
from ddae_jax.training.sharding import replicated
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import Workdir, read_json, write_json

_log = logging.getLogger(__name__)

_NUM_SHOWN = 4  # images in the figures
_NUM_WEIGHED = 2  # of which weights are shown too

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

_CAPTIONS = {**prediction_figures.CAPTIONS, **metric_figures.CAPTIONS}


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
        self._images = sample_images(source, config, 4 * _NUM_SHOWN)[:_NUM_SHOWN]

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
            prediction_figures.reconstruction_figure(
                self._figure("reconstruction"),
                **images,
                mask=seen["mask"],
                reconstructions=np.clip(seen["reconstructions"] * std + mean, 0, 1),
                depths=depths,
            )
        if "histograms" in seen:
            prediction_figures.histograms_figure(
                self._figure("histograms"),
                **images,
                mask=seen["mask"],
                histograms=seen["histograms"],
                predicted=seen["predicted_histograms"],
                directions=seen["directions"],
                depths=depths,
            )
        if "tokens" in seen:
            prediction_figures.tokens_figure(
                self._figure("tokens"),
                **images,
                tokens=seen["tokens"],
                codes=seen["codes"],
                mask=seen.get("mask"),
                predicted=seen.get("predicted_tokens", ()),
                depths=depths,
            )
        if "weights" in seen:
            prediction_figures.supervision_figure(
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
            getattr(metric_figures, f"{name}_figure")(self._figure(name), records)

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
    """Who looks at a pretraining run: a :class:`ddae_jax.jobs.runner.Watch`."""

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
                normalization=config.targets.feature_normalization,
            )

    def baselines(self) -> Mapping[str, float]:
        """What k-NN reaches without training, if it is asked for."""
        return self._knn.baselines(self._workdir.baselines) if self._knn else {}

    def measure_fresh(self, state: TrainState) -> Mapping[str, float]:
        """Measures how features stand before the first step: what collapses is compared with it."""
        return self._features.measure(state, 0) if self._features else {}

    def actions(self) -> list[Every]:
        """How features stand at every record; k-NN and figures, as often as the config says."""
        config, schedule = self._config, self._schedule
        actions = []
        if self._features:
            actions.append(
                Every(config.log.every_steps, self._features.measure, metric="rank/student")
            )
        if self._knn:
            knn_steps = schedule.steps(config.evaluation.knn_every_epochs)
            actions.append(Every(knn_steps, self._knn.measure, metric="knn/trained"))
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
        name: latest(records, f"knn/{name}") for name in ("trained", "untrained", "raw_pixels")
    }
    return {name.replace("_", " "): value for name, value in found.items() if value is not None}


def _summary(records: list[dict], knn: Mapping[str, float]) -> list[Summary]:
    cards = []
    if "trained" in knn:
        others = {name: value for name, value in knn.items() if name != "trained"}
        note = ", ".join(f"{name} {value:.1%}" for name, value in others.items())
        cards.append(Summary("k-NN accuracy", f"{knn['trained']:.1%}", note))
    key = "plain_loss" if latest(records, "plain_loss") is not None else "loss"
    first = next((record for record in records if record.get(key) is not None), None)
    if first is not None:
        since = f"{first[key]:.3f} at step {first['step']}"
        cards.append(Summary("Loss", f"{latest(records, key):.3f}", since))
    rate = latest(records, "images_per_s")
    if rate is not None:
        waiting = latest(records, "data_wait_share") or 0.0
        cards.append(
            Summary("Images per second", f"{rate:,.0f}", f"{waiting:.1%} waiting for data")
        )
    corrupt = latest(records, "corrupt_images")
    if corrupt:
        family = "corrupt_images/"
        causes = {name for record in records for name in record if name.startswith(family)}
        counts = ", ".join(
            f"{latest(records, name):.0f} {name.removeprefix(family)}" for name in sorted(causes)
        )
        note = f"skipped; named in the log: {counts}" if counts else "skipped; named in the log"
        cards.append(Summary("Unreadable images", f"{corrupt:.0f}", note))
    return cards
