"""How well frozen features tell classes apart, beside raw pixels and the untrained network."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from ddae_jax.evaluation.features import Encode, Examples, encode_dataset, raw_pixels

Predict = Callable[..., Int[np.ndarray, "test"]]
Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A labelled training and test set, to be walked through as often as needed.

    Attributes:
        train_batches, test_batches: start a new pass, as
            :func:`ddae_jax.data.eval_batches.eval_batches` does.
        num_classes: classes.
        mesh: that images are spread over.
        fingerprint: tells these examples from others.
    """

    train_batches: Batches
    test_batches: Batches
    num_classes: int
    mesh: Mesh
    fingerprint: str = ""

    def features(self, encode: Encode, params: PyTree) -> tuple[Examples, Examples]:
        """Features and labels of both sets."""
        return (
            encode_dataset(encode, params, self.train_batches(), self.mesh),
            encode_dataset(encode, params, self.test_batches(), self.mesh),
        )

    def pixels(self) -> tuple[Examples, Examples]:
        """The pixels of both sets, as features."""
        return (
            raw_pixels(self.train_batches(), self.mesh),
            raw_pixels(self.test_batches(), self.mesh),
        )

    def accuracy(self, predict: Predict, train: Examples, test: Examples) -> float:
        """Share of the test set that ``predict`` gets right.

        Args:
            predict: ``(train features, train labels, test features, num_classes=...) -> classes``.
            train, test: features and labels.
        """
        predicted = predict(*train, test[0], num_classes=self.num_classes)
        return float((predicted == test[1]).mean())


def untrained_params(init: Callable[[jax.Array], PyTree], seed: int) -> PyTree:
    """The parameters with which the run of that seed started."""
    return jax.jit(init)(jax.random.key(seed))
