"""Labelled training and test images, from which features and accuracies are computed."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from ddae_jax.evaluation.features import Encode, Examples, encode_dataset, raw_pixels

Predict = Callable[..., Int[np.ndarray, "test"]]
"""``(train features, train labels, test features, num_classes=...) -> classes``."""
Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Labelled training and test set that can be read any number of times.

    Attributes:
        train_batches, test_batches: start a new pass over a set; see
            :func:`ddae_jax.data.eval_batches.eval_batches`.
        num_classes: number of classes.
        mesh: images are split over all its devices.
        fingerprint: identifies the examples of both sets.
    """

    train_batches: Batches
    test_batches: Batches
    num_classes: int
    mesh: Mesh
    fingerprint: str = ""

    def features(self, encode: Encode, params: PyTree) -> tuple[Examples, Examples]:
        """Returns features and labels of the training set and of the test set.

        Args:
            encode: ``(encoder params, uint8 images) -> features``.
            params: parameters of the encoder.
        """
        return (
            encode_dataset(encode, params, self.train_batches(), self.mesh),
            encode_dataset(encode, params, self.test_batches(), self.mesh),
        )

    def pixels(self) -> tuple[Examples, Examples]:
        """Returns raw pixels, as features, and labels of the training set and of the test set."""
        return (
            raw_pixels(self.train_batches(), self.mesh),
            raw_pixels(self.test_batches(), self.mesh),
        )

    def accuracy(self, predict: Predict, train: Examples, test: Examples) -> float:
        """Returns the share of the test set that ``predict`` classifies correctly.

        Args:
            predict: classifier that learns from the training set.
            train, test: features and labels.
        """
        predicted = predict(*train, test[0], num_classes=self.num_classes)
        return float((predicted == test[1]).mean())


def untrained_params(init: Callable[[jax.Array], PyTree], seed: int) -> PyTree:
    """Returns the parameters with which a run of that seed starts."""
    return jax.jit(init)(jax.random.key(seed))
