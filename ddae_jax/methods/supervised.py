"""Supervised training of a network on labels, for fine-tuning and segmentation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ddae_jax.models.upernet import resize_bilinear
from ddae_jax.models.vit import ViT

Metrics = Mapping[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class LabelledTask:
    """A network and the error of its outputs (a :class:`ddae_jax.methods.task.TrainTask`).

    Its "teacher" holds the state that is not updated by gradients: ``statistics``, the running
    statistics of batch norms, and ``average``, the moving average of the parameters if it is kept.

    Attributes:
        network: ``(images, is_training=...) -> outputs``; has an ``encoder``.
        error: ``(outputs, targets) -> (loss, metrics)``, means over the batch.
        keeps_average: whether a moving average of the parameters is kept.
        description: a one-line description of what is trained.
    """

    network: nn.Module
    error: Callable[[PyTree, PyTree], tuple[Float[Array, ""], Metrics]]
    keeps_average: bool = False
    description: str = ""

    frozen: ClassVar[Mapping[str, Any]] = {}
    objectives: ClassVar[tuple[str, ...]] = ()
    depths: ClassVar[tuple[int, ...]] = ()
    has_momentum_encoder: ClassVar[bool] = False

    @property
    def encoder(self) -> ViT:
        """The network's encoder."""
        return self.network.encoder

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Returns newly initialised float32 parameters of the network."""
        return self._variables(key, channels)["params"]

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """Returns initial statistics (mean 0, variance 1) and ``params`` as the initial average."""
        del frozen
        channels = self._channels(params)
        shapes = jax.eval_shape(lambda: self._variables(jax.random.key(0), channels))
        statistics = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype),
            dict(shapes.get("batch_stats", {})),
        )
        average = params if self.keeps_average else {}
        return {"statistics": statistics, "average": average}

    def frozen_part(self, teacher: PyTree) -> PyTree:
        """Returns {}: nothing is frozen."""
        return {}

    def loss(
        self,
        params: PyTree,
        teacher: PyTree,
        inputs: tuple[Float[ArrayLike, "batch height width channels"], PyTree],
        key: PRNGKeyArray,
        is_training: bool = True,
        progress: Float[ArrayLike, ""] | float | None = None,
    ) -> tuple[Float[Array, ""], PyTree]:
        """Returns the loss of normalised images and their targets, new statistics and metrics."""
        images, targets = inputs
        drop_path_key, dropout_key = jax.random.split(key)
        outputs, variables = self.network.apply(
            {"params": params, "batch_stats": teacher["statistics"]},
            images,
            is_training=is_training,
            rngs={"drop_path": drop_path_key, "dropout": dropout_key},
            mutable=["batch_stats"],
        )
        loss, metrics = self.error(outputs, targets)
        return loss, {"statistics": variables.get("batch_stats", {}), "metrics": dict(metrics)}

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> dict[str, Array]:
        """Returns {}: nothing is masked."""
        return {}

    def statistics(self, teacher: PyTree, inputs: PyTree) -> dict[str, Array]:
        """Returns {}: the targets of an image do not depend on the rest of the batch."""
        return {}

    def descent(self, gradient: PyTree, output: PyTree) -> PyTree:
        """Returns the gradient as it is."""
        return gradient

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: PyTree, momentum: Float[ArrayLike, ""]
    ) -> PyTree:
        """Returns the new statistics, and the average moved towards the new parameters."""
        average = teacher["average"]
        if self.keeps_average:
            average = optax.incremental_update(params, average, 1 - momentum)
        return {"statistics": output["statistics"], "average": average}

    def metrics(self, output: PyTree) -> dict[str, Float[Array, ""]]:
        """Returns the metrics of ``error``."""
        return output["metrics"]

    def visualize(
        self, params: PyTree, teacher: PyTree, images: ArrayLike, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns {}: evaluation draws the figures of such runs."""
        return {}

    def predict(self, params: PyTree, teacher: PyTree, images: ArrayLike) -> PyTree:
        """Returns the network's outputs, using the average of the parameters if it is kept."""
        params = teacher["average"] if self.keeps_average else params
        variables = {"params": params, "batch_stats": teacher["statistics"]}
        return self.network.apply(variables, images)

    def _variables(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Returns newly initialised parameters and batch statistics."""
        images = jnp.zeros((1, *self.encoder.image_size, channels))
        return self.network.init(key, images)

    def _channels(self, params: PyTree) -> int:
        """Returns the number of image channels, from the shape of the patch embedding."""
        values_per_patch = params["encoder"]["patch_embedding"]["kernel"].shape[0]
        return values_per_patch // self.encoder.patch_size**2


def classification_error(
    logits: Float[ArrayLike, "batch classes"], targets: Float[ArrayLike, "batch classes"]
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the mean cross-entropy against class probabilities, and ``train_accuracy``.

    The accuracy is the share of images whose largest logit is at the most probable class.

    Source: Szegedy et al. 2016, section 7 (label smoothing); Zhang et al. 2018, mixup (targets of
    two classes).
    """
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    is_correct = logits.argmax(axis=-1) == targets.argmax(axis=-1)
    return loss, {"train_accuracy": is_correct.mean()}


def segmentation_error(
    outputs: tuple[ArrayLike, ArrayLike | None],
    labels: Int[ArrayLike, "batch height width"],
    auxiliary_weight: float = 0.4,
    ignored: int = 255,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the mean cross-entropy of labelled pixels, plus that of auxiliary scores.

    Args:
        outputs: scores (batch, rows, columns, classes) on a grid coarser than pixels, and auxiliary
            scores of the same kind, or None.
        labels: the class of each pixel.
        auxiliary_weight: weight of the auxiliary scores' loss.
        ignored: the label of pixels that do not count.

    Returns:
        The loss, and the metrics ``train_accuracy`` and, if auxiliary scores count, ``loss/pixels``
        and ``loss/auxiliary``.

    Source: Xiao et al. 2018, UperNet; the auxiliary loss: Zhao et al. 2017, PSPNet, section 3.3.
    """
    scores, auxiliary = outputs
    is_labelled = labels != ignored
    num_pixels = jnp.maximum(is_labelled.sum(), 1)

    def error(scores: ArrayLike) -> tuple[Array, Array]:
        logits = resized_logits(scores, labels.shape[1:])
        classes = jnp.where(is_labelled, labels, 0)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        is_correct = (logits.argmax(axis=-1) == labels) & is_labelled
        loss = jnp.where(is_labelled, errors, 0).sum() / num_pixels
        return loss, is_correct.sum() / num_pixels

    loss, accuracy = error(scores)
    metrics = {"train_accuracy": accuracy}
    if auxiliary is not None and auxiliary_weight > 0:
        auxiliary_loss, _ = error(auxiliary)
        metrics |= {"loss/pixels": loss, "loss/auxiliary": auxiliary_loss}
        loss = loss + auxiliary_weight * auxiliary_loss
    return loss, metrics


def resized_logits(
    scores: Float[ArrayLike, "batch rows columns classes"], size: tuple[int, int]
) -> Float[Array, "batch height width classes"]:
    """Returns float32 scores of every pixel, interpolated bilinearly to ``size``."""
    return resize_bilinear(scores.astype(jnp.float32), tuple(size))
