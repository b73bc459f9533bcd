"""How well a classifier tells the images of a set apart: every image once, however many devices."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from ddae_jax.data.readable import NothingReadable
from ddae_jax.training.sharding import batch_sharding, put_batch, replicated

Logits = Callable[[PyTree, Array], Float[Array, "batch classes"]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a classifier reaches on a set of labelled images.

    Attributes:
        confusion: images of each class (row) that were taken for each class (column).
        num_in_top5: images whose class is among the five with the highest scores.
        loss_sum: cross-entropy, summed over the images.
    """

    confusion: Int[np.ndarray, "classes classes"]
    num_in_top5: int
    loss_sum: float

    @property
    def num_images(self) -> int:
        """Images that were counted."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images that were taken for what they are."""
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
        """Share of each class's images that were taken for it; NaN for a class without images."""
        count = self.confusion.sum(axis=1)
        return np.where(count > 0, np.diag(self.confusion) / np.maximum(count, 1), np.nan)


def make_count(logits: Logits, num_classes: int, mesh: Mesh) -> Callable[..., PyTree]:
    """Jitted ``(params, batch) -> counts of a batch``, over the mesh, for :func:`score`.

    Args:
        logits: ``(params, uint8 images) -> scores of each class``.
        num_classes: classes.
        mesh: images are split over all its devices.
    """

    def count(params: PyTree, batch: Mapping[str, Array]) -> PyTree:
        found, label = logits(params, batch["image"]), batch["label"]
        counts = batch["valid"] & (label >= 0)
        true = jax.nn.one_hot(label, num_classes, dtype=jnp.float32) * counts[:, None]
        taken_for = jax.nn.one_hot(found.argmax(axis=-1), num_classes, dtype=jnp.float32)
        confusion = jnp.matmul(true.T, taken_for, precision=jax.lax.Precision.HIGHEST)
        _, best = jax.lax.top_k(found, min(5, num_classes))
        is_in_top5 = (best == label[:, None]).any(axis=-1) & counts
        loss = optax.softmax_cross_entropy_with_integer_labels(found, jnp.maximum(label, 0))
        return confusion.astype(jnp.int32), is_in_top5.sum(), jnp.where(counts, loss, 0).sum()

    return jax.jit(count, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


def score(
    count: Callable[..., PyTree],
    params: PyTree,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
) -> Scores:
    """Scores on every valid and labelled example of the batches, each counted once.

    Args:
        count: from :func:`make_count`.
        params: its first argument.
        batches: this process's share (see :func:`ddae_jax.data.eval_batches.eval_batches`).
        mesh: the same as ``count``'s.

    Raises:
        NothingReadable: if there is no such example.
    """
    total, num_labelled = None, 0
    for batch in batches:
        num_labelled += int((batch["label"] >= 0).sum())
        shown = {name: batch[name] for name in ("image", "label", "valid")}
        found = jax.device_get(count(params, put_batch(shown, mesh)))
        found = [np.asarray(part, np.float64) for part in found]
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    if total is None or not total[0].sum():
        raise NothingReadable(
            f"none of {num_labelled:,} labelled images can be decoded; the log names them"
            if num_labelled
            else "there are no labelled images to classify"
        )
    confusion, num_in_top5, loss_sum = total
    return Scores(confusion.astype(np.int64), int(num_in_top5), float(loss_sum))
