"""Hook that measures k-NN accuracy on frozen features during pretraining."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddae_jax.builders.evaluation import build_encode, build_labelled_images, build_predict
from ddae_jax.builders.networks import untrained_encoder_params
from ddae_jax.config import to_plain
from ddae_jax.evaluation.features import Encode
from ddae_jax.evaluation.labelled_images import LabelledImages
from ddae_jax.training.hooks import Hook
from ddae_jax.training.multihost import broadcast
from ddae_jax.training.program import TrainState
from ddae_jax.training.workdir import Workdir, read_json, write_json

_log = logging.getLogger(__name__)


class KnnHook(Hook):
    """Hook that measures k-NN accuracy of the student or teacher.

    Args:
        config: of the run.
        workdir: of the run; it stores the baselines.
        every_steps: steps between measurements.
        mesh: of devices.

    Raises:
        ValueError: as :func:`ddae_jax.builders.evaluation.build_labelled_images` does.
        FileNotFoundError: if the data does not exist.
    """

    metric = "knn/trained"

    def __init__(self, config: ConfigDict, workdir: Workdir, every_steps: int, mesh: Mesh):
        self.every_steps = every_steps
        self._config = config
        self._path = workdir.baselines
        try:
            self._images: LabelledImages = build_labelled_images(
                config, mesh, limit=config.evaluation.max_examples or None
            )
        except (ValueError, FileNotFoundError) as error:
            advice = "set evaluation.knn_every_epochs=0 to pretrain without k-NN"
            raise type(error)(f"{error}; {advice}") from error
        self._encode: Encode = build_encode(
            config, mesh, depth=config.evaluation.depth, pool=config.evaluation.pool
        )
        self._predict = build_predict(config, "knn")

    def baselines(self) -> dict[str, float]:
        """Returns ``knn/untrained`` and ``knn/raw_pixels``: k-NN accuracy without training.

        They are stored in the workdir, and computed again if anything that they depend on changes.
        """
        key = {name: to_plain(self._config[name]) for name in ("data", "model", "evaluation")}
        key |= {"seed": self._config.seed, "examples": self._images.fingerprint}
        stored = _stored_baselines(self._path, key)
        # The first process decides, because computing takes all processes.
        if broadcast(stored is not None):
            return stored or {}
        untrained = self._accuracy(untrained_encoder_params(self._config))
        raw_pixels = self._images.accuracy(self._predict, *self._images.pixels())
        _log.info("k-NN accuracy: untrained %.3f, raw pixels %.3f", untrained, raw_pixels)
        values = {"knn/untrained": untrained, "knn/raw_pixels": raw_pixels}
        if jax.process_index() == 0:
            try:
                write_json(self._path, {"of": key, "values": values})
            except OSError as error:
                _log.warning("the baselines could not be kept for the next start: %s", error)
        return values

    def on_steps(self, state: TrainState, step: int) -> dict[str, float]:
        """Returns ``knn/trained``, the accuracy of the encoder that the config names."""
        is_teacher = self._config.evaluation.encoder == "teacher"
        params = state.teacher if is_teacher else state.params["encoder"]
        accuracy = self._accuracy(params)
        _log.info("k-NN accuracy at step %d: %.3f", step, accuracy)
        return {"knn/trained": accuracy}

    def _accuracy(self, encoder_params) -> float:
        """Returns the accuracy, 0 to 1, of k-NN on the features of an encoder."""
        features = self._images.features(self._encode, encoder_params)
        return self._images.accuracy(self._predict, *features)


def _stored_baselines(path: pathlib.Path, key: Mapping[str, Any]) -> dict[str, float] | None:
    """Returns the baselines in a file if they were computed with ``key``; else None."""
    try:
        stored = read_json(path)
    except (OSError, ValueError):
        return None
    return stored.get("values") if stored.get("of") == key else None
