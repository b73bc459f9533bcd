"""Hook that writes the report of a pretraining run: its predictions, weights and metrics."""

import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.data import sample_images
from ddae_jax.builders.networks import build_normalize
from ddae_jax.data.sources import Source
from ddae_jax.figures import metrics as metric_figures
from ddae_jax.figures import predictions as prediction_figures
from ddae_jax.figures.report import Summary
from ddae_jax.hooks.report import ReportHook
from ddae_jax.methods.task import TrainTask
from ddae_jax.training.metrics import Record, latest, read_metrics
from ddae_jax.training.program import TrainState
from ddae_jax.training.sharding import replicated
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)

_NUM_SHOWN = 4  # images in the figures
_NUM_WITH_WEIGHTS = 2  # images whose supervision weights are shown

Arrays = Mapping[str, np.ndarray]
"""The arrays that a method's ``visualize`` returns, by name."""

_CAPTIONS = {**prediction_figures.CAPTIONS, **metric_figures.CAPTIONS}
_SECTIONS = {
    "What is predicted": ("reconstruction", "tokens", "histograms"),
    "What is paid attention to": ("supervision", "beta"),
    "How training went": ("knn", "loss", "codebook", "collapse", "schedule"),
}


class PretrainingReport(ReportHook[Arrays]):
    """Hook that writes the report of a pretraining run.

    Args:
        config, workdir, total_steps, every_steps: see :class:`ReportHook`.
        method: that is trained.
        source: of the images shown.
        mesh: of devices.
    """

    captions: ClassVar[Mapping[str, tuple[str, str]]] = {
        name: (_CAPTIONS[name], section) for section, names in _SECTIONS.items() for name in names
    }

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        total_steps: int,
        every_steps: int | None,
        *,
        method: TrainTask,
        source: Source,
        mesh: Mesh,
    ):
        super().__init__(config, workdir, total_steps, every_steps)
        self._method = method
        self._normalize = build_normalize(config)
        self._visualize = jax.jit(method.visualize, out_shardings=replicated(mesh))
        self._grid = method.encoder.grid
        self._images = sample_images(source, config, 4 * _NUM_SHOWN)[:_NUM_SHOWN]

    @property
    def title(self) -> str:
        """Name of the method, in capitals."""
        return self.config.method.upper()

    def content(self, state: TrainState, step: int) -> Arrays:
        """Returns the method's arrays for the figures: a few images, always with the same masks."""
        key = jax.random.key(self.config.seed)
        images = self._normalize(self._images)
        return jax.device_get(self._visualize(state.params, state.teacher, images, key))

    def log_results(self) -> None:
        """Logs k-NN accuracy if it was measured."""
        knn = _knn_results(read_metrics(self.workdir.metrics))
        if knn:
            accuracies = ", ".join(f"{name} {value:.1%}" for name, value in knn.items())
            _log.info("k-NN accuracy: %s", accuracies)

    def summary(self, content: Arrays, records: Sequence[Record]) -> list[Summary]:
        """Returns cards of k-NN accuracy, loss, speed and unreadable images, where recorded."""
        return _summary(records, _knn_results(records))

    def results(self, content: Arrays, records: Sequence[Record]) -> Mapping[str, Mapping]:
        """Returns the table of k-NN accuracy; {} if it was not measured."""
        knn = _knn_results(records)
        return {"k-NN accuracy": knn} if knn else {}

    def draw(self, content: Arrays, records: Sequence[Record]) -> None:
        """Draws predictions, supervision weights and metrics."""
        images = {"images": self._images.astype(np.float32) / 255, "grid": self._grid}
        depths = self._method.depths
        if "reconstructions" in content:
            mean, std = np.asarray(self.config.data.mean), np.asarray(self.config.data.std)
            prediction_figures.reconstruction_figure(
                self.figure("reconstruction"),
                **images,
                mask=content["mask"],
                reconstructions=np.clip(content["reconstructions"] * std + mean, 0, 1),
                depths=depths,
            )
        if "histograms" in content:
            prediction_figures.histograms_figure(
                self.figure("histograms"),
                **images,
                mask=content["mask"],
                histograms=content["histograms"],
                predicted=content["predicted_histograms"],
                directions=content["directions"],
                depths=depths,
            )
        if "tokens" in content:
            prediction_figures.tokens_figure(
                self.figure("tokens"),
                **images,
                tokens=content["tokens"],
                codes=content["codes"],
                mask=content.get("mask"),
                predicted=content.get("predicted_tokens", ()),
                depths=depths,
            )
        if "weights" in content:
            prediction_figures.supervision_figure(
                self.figure("supervision"),
                images=images["images"][:_NUM_WITH_WEIGHTS],
                mask=content["mask"][:_NUM_WITH_WEIGHTS],
                grid=self._grid,
                distance=content["distance"][:_NUM_WITH_WEIGHTS],
                weights=content["weights"][:, :, :_NUM_WITH_WEIGHTS],
                beta=content["beta"],
                objectives=list(self._method.objectives),
                depths=depths,
            )
        for name in ("beta", "loss", "knn", "codebook", "collapse", "schedule"):
            getattr(metric_figures, f"{name}_figure")(self.figure(name), records)


def _knn_results(records: list[dict]) -> dict[str, float]:
    """Returns the latest k-NN accuracies, by their names in the report; {} without any."""
    accuracies = {
        name: latest(records, f"knn/{name}") for name in ("trained", "untrained", "raw_pixels")
    }
    return {
        name.replace("_", " "): value for name, value in accuracies.items() if value is not None
    }


def _summary(records: list[dict], knn: Mapping[str, float]) -> list[Summary]:
    """Returns the cards at the head of the report."""
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
