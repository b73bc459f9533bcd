"""Networks that learn from labels: what fine-tuning and segmentation have in common."""

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
    """A network and an error of its outputs: a :class:`ddae_jax.methods.task.TrainTask`.

    Its teacher holds what no gradient moves: ``statistics``, the running ones of batch norms, and
    ``average``, the moving average of the parameters, where that is kept.

    Attributes:
        network: ``(images, is_training=...) -> outputs``; has an ``encoder``.
        error: ``(outputs, targets) -> (loss, metrics)``, means over the batch.
        keeps_average: whether the average of the parameters is kept.
        description: one line on what is trained.
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
        """The network's."""
        return self.network.encoder

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Fresh parameters, float32."""
        return self._variables(key, channels)["params"]

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """Statistics as they are before any batch, and the average, which begins with these."""
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
        """Nothing."""
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
        """Loss of a batch of normalised images and their targets; new statistics and metrics."""
        images, targets = inputs
        drop_path_key, dropout_key = jax.random.split(key)
        outputs, changed = self.network.apply(
            {"params": params, "batch_stats": teacher["statistics"]},
            images,
            is_training=is_training,
            rngs={"drop_path": drop_path_key, "dropout": dropout_key},
            mutable=["batch_stats"],
        )
        loss, metrics = self.error(outputs, targets)
        return loss, {"statistics": changed.get("batch_stats", {}), "metrics": dict(metrics)}

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> dict[str, Array]:
        """Nothing."""
        return {}

    def statistics(self, teacher: PyTree, inputs: PyTree) -> dict[str, Array]:
        """Nothing."""
        return {}

    def descent(self, gradient: PyTree, output: PyTree) -> PyTree:
        """The gradient."""
        return gradient

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: PyTree, momentum: Float[ArrayLike, ""]
    ) -> PyTree:
        """The new statistics, and the average moved a little towards the parameters."""
        average = teacher["average"]
        if self.keeps_average:
            average = optax.incremental_update(params, average, 1 - momentum)
        return {"statistics": output["statistics"], "average": average}

    def metrics(self, output: PyTree) -> dict[str, Float[Array, ""]]:
        """Those of the error."""
        return output["metrics"]

    def visualize(
        self, params: PyTree, teacher: PyTree, images: ArrayLike, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Nothing: what people look at here is made by evaluation."""
        return {}

    def predict(self, params: PyTree, teacher: PyTree, images: ArrayLike) -> PyTree:
        """The network's outputs, by the average of the parameters where that is kept."""
        params = teacher["average"] if self.keeps_average else params
        variables = {"params": params, "batch_stats": teacher["statistics"]}
        return self.network.apply(variables, images)

    def _variables(self, key: PRNGKeyArray, channels: int) -> PyTree:
        images = jnp.zeros((1, *self.encoder.image_size, channels))
        return self.network.init(key, images)

    def _channels(self, params: PyTree) -> int:
        values = params["encoder"]["patch_embedding"]["kernel"].shape[0]
        return values // self.encoder.patch_size**2


def classification_error(
    logits: Float[ArrayLike, "batch classes"], targets: Float[ArrayLike, "batch classes"]
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-entropy against the shares of each class, and how often the largest one is met.

    Source: Szegedy et al. 2016, section 7; Zhang et al. 2018, mixup (shares of two classes).
    """
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    is_met = logits.argmax(axis=-1) == targets.argmax(axis=-1)
    return loss, {"train_accuracy": is_met.mean()}


def segmentation_error(
    outputs: tuple[ArrayLike, ArrayLike | None],
    labels: Int[ArrayLike, "batch height width"],
    auxiliary_weight: float = 0.4,
    ignored: int = 255,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-entropy of each pixel that has a class, and that of the auxiliary scores beside it.

    Args:
        outputs: scores and, if there are any, auxiliary ones, of the places of a coarser grid.
        labels: the class of each pixel.
        auxiliary_weight: of the auxiliary scores' loss.
        ignored: the label of pixels that do not count.

    Source: Xiao et al. 2018, UperNet; the auxiliary loss: Zhao et al. 2017, PSPNet, section 3.3.
    """
    scores, auxiliary = outputs
    counts = labels != ignored
    num_pixels = jnp.maximum(counts.sum(), 1)

    def error(scores: ArrayLike) -> tuple[Array, Array]:
        logits = resized_logits(scores, labels.shape[1:])
        classes = jnp.where(counts, labels, 0)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        is_met = (logits.argmax(axis=-1) == labels) & counts
        return jnp.where(counts, errors, 0).sum() / num_pixels, is_met.sum() / num_pixels

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
    """Scores of every pixel, interpolated linearly."""
    return resize_bilinear(scores.astype(jnp.float32), tuple(size))
