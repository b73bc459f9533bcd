"""Scores of a classifier on a set of labelled images, each of which counts exactly once."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from ddae_jax.data.readable import NothingReadable
from ddae_jax.training.sharding import batch_sharding, put_batch, replicated

Logits = Callable[[PyTree, Array], Float[Array, "batch classes"]]
"""``(params, uint8 images) -> logits``."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a classifier on a set of labelled images.

    Attributes:
        confusion: number of images of each class (row) that were assigned to each class (column).
        num_in_top5: number of images whose class is among the five with the highest logits.
        loss_sum: cross-entropy summed over the images, nats.
    """

    confusion: Int[np.ndarray, "classes classes"]
    num_in_top5: int
    loss_sum: float

    @property
    def num_images(self) -> int:
        """Number of images that were counted."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose class is the most likely one."""
        return float(np.trace(self.confusion) / self.num_images)

    @property
    def top5(self) -> float:
        """Share of the images whose class is among the five most likely ones."""
        return self.num_in_top5 / self.num_images

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return self.loss_sum / self.num_images

    @property
    def per_class(self) -> Float[np.ndarray, "classes"]:
        """Accuracy on the images of each class; NaN for a class without images."""
        count = self.confusion.sum(axis=1)
        return np.where(count > 0, np.diag(self.confusion) / np.maximum(count, 1), np.nan)


def make_count(logits: Logits, num_classes: int, mesh: Mesh) -> Callable[..., PyTree]:
    """Makes the jitted ``(params, batch) -> counts``, over the mesh, for :func:`score`.

    Args:
        logits: ``(params, uint8 images) -> logits``.
        num_classes: number of classes.
        mesh: images are split over all its devices.

    Returns:
        A function that gives the confusion matrix of a batch, the number of images whose class is
        among the top five, and the sum of cross-entropies; invalid and unlabelled images do not
        count.
    """

    def count(params: PyTree, batch: Mapping[str, Array]) -> PyTree:
        scores, label = logits(params, batch["image"]), batch["label"]
        counts = batch["valid"] & (label >= 0)
        true = jax.nn.one_hot(label, num_classes, dtype=jnp.float32) * counts[:, None]
        predicted = jax.nn.one_hot(scores.argmax(axis=-1), num_classes, dtype=jnp.float32)
        confusion = jnp.matmul(true.T, predicted, precision=jax.lax.Precision.HIGHEST)
        _, best = jax.lax.top_k(scores, min(5, num_classes))
        is_in_top5 = (best == label[:, None]).any(axis=-1) & counts
        loss = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(label, 0))
        return confusion.astype(jnp.int32), is_in_top5.sum(), jnp.where(counts, loss, 0).sum()

    return jax.jit(count, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


def score(
    count: Callable[..., PyTree],
    params: PyTree,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
) -> Scores:
    """Scores a classifier on every valid and labelled image of the batches.

    Args:
        count: function from :func:`make_count`.
        params: parameters of the classifier.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`).
        mesh: mesh that ``count`` was made for.

    Raises:
        NothingReadable: if there is no valid and labelled image.
    """
    total, num_labelled = None, 0
    for batch in batches:
        num_labelled += int((batch["label"] >= 0).sum())
        inputs = {name: batch[name] for name in ("image", "label", "valid")}
        counts = jax.device_get(count(params, put_batch(inputs, mesh)))
        counts = [np.asarray(part, np.float64) for part in counts]
        total = counts if total is None else [a + b for a, b in zip(total, counts, strict=True)]
    if total is None or not total[0].sum():
        raise NothingReadable(
            f"none of {num_labelled:,} labelled images can be decoded; the log names them"
            if num_labelled
            else "there are no labelled images to classify"
        )
    confusion, num_in_top5, loss_sum = total
    return Scores(confusion.astype(np.int64), int(num_in_top5), float(loss_sum))


def scores_to_json(scores: Scores, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the scores as JSON stores them: accuracy by class name, and the confusion."""
    per_class = {
        name: None if np.isnan(value) else round(float(value), 6)
        for name, value in zip(names, scores.per_class, strict=True)
    }
    return {
        "num_images": scores.num_images,
        "top1": scores.top1,
        "top5": scores.top5,
        "loss": scores.loss,
        "per_class": per_class,
        "confusion": scores.confusion.tolist(),
    }
