"""A method is a student that predicts, targets to predict, and a supervision of its errors.

A method's own file says which objectives it has, and builds a :class:`Method` from the parts here.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ddae_jax.distance import distance_map
from ddae_jax.dynamic_loss import dynamic_weights
from ddae_jax.masking import hidden_indices, spread_hidden
from ddae_jax.methods.student import Aggregation, Student
from ddae_jax.methods.supervision import DeepDynamicSupervision, Supervised
from ddae_jax.methods.trainable import Images, Mask, Predictions
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT
from ddae_jax.patches import at_patches


@dataclasses.dataclass(frozen=True)
class Objective:
    """Something to predict for each hidden patch.

    Attributes:
        width: values predicted for a patch.
        error: ``(predictions, targets) -> error of each patch``, over the last axis.
        weight: ``lambda``, its share in the loss.
    """

    width: int
    error: Callable[[Array, Array], Array]
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Method:
    """A masked-image-modelling method: a :class:`ddae_jax.methods.trainable.Trainable`.

    Attributes:
        student: the trained network.
        objectives: by name, in the supervision's order.
        targets: ``(teacher, images) -> targets by objective``, each of shape ``(depths or 1, batch,
            patches, ...)``. No gradient passes through them.
        sample_mask: ``(key, batch) -> mask``, with ``num_masked`` hidden patches a row.
        num_masked: hidden patches of each image.
        has_momentum_encoder: whether the teacher is a momentum encoder.
        frozen: the teacher, if it is none.
        show: ``(predictions, targets, teacher, images) -> arrays for the figures``, of all patches.
    """

    student: Student
    objectives: Mapping[str, Objective]
    targets: Callable[[PyTree, Images], Predictions]
    sample_mask: Callable[[PRNGKeyArray, int], Mask]
    num_masked: int
    has_momentum_encoder: bool = False
    frozen: PyTree = dataclasses.field(default_factory=dict)
    show: Callable[[Predictions, Predictions, PyTree, Images], dict[str, Array]] | None = None

    @property
    def encoder(self) -> ViT:
        """The student's."""
        return self.student.encoder

    @property
    def depths(self) -> tuple[int, ...]:
        """Supervised depths."""
        return self.student.supervision.depths

    @property
    def num_visible(self) -> int:
        """Visible patches of each image."""
        h, w = self.encoder.grid
        return h * w - self.num_masked

    @property
    def description(self) -> str:
        """One line on what is trained."""
        supervision, (h, w) = self.student.supervision, self.encoder.grid
        return (
            f"{supervision.mode} supervision of {' and '.join(self.objectives)} at depths "
            f"{', '.join(map(str, supervision.depths))} of {self.encoder.depth}, width "
            f"{self.encoder.width}, {self.num_masked} of {h * w} patches ({h} x {w}) hidden"
        )

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Fresh parameters of the student, float32."""
        images = jnp.zeros((1, *self.encoder.image_size, channels))
        mask = jnp.arange(self.num_masked + self.num_visible)[None] < self.num_masked

        def touch_everything(student):
            predictions = student.predict(images, mask, self.num_visible)
            errors = jnp.zeros((len(predictions), len(student.supervision.depths), *mask.shape))
            return student.supervise(errors, mask)

        return self.student.init(key, method=touch_everything)["params"]

    def teacher_of(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """The student's encoder, for a momentum encoder to start from, or what is frozen."""
        if self.has_momentum_encoder:
            return params["encoder"]
        return self.frozen if frozen is None else frozen

    def frozen_of(self, teacher: PyTree) -> PyTree:
        """All of it, if it is no momentum encoder."""
        return {} if self.has_momentum_encoder else teacher

    def follow(
        self, teacher: PyTree, params: PyTree, outcome: Supervised, momentum: Array
    ) -> PyTree:
        """``teacher <- momentum * teacher + (1 - momentum) * student``, or as it was."""
        if not self.has_momentum_encoder:
            return teacher
        return optax.incremental_update(params["encoder"], teacher, 1 - momentum)

    def loss(
        self,
        params: PyTree,
        teacher: PyTree,
        images: Images,
        key: PRNGKeyArray,
        is_training: bool = True,
        mask: Mask | None = None,
    ) -> tuple[Float[Array, ""], Supervised]:
        """Loss of a batch of normalised images, and what it is made of.

        Only hidden patches are predicted: the others carry no loss. The mask is that of
        :meth:`draw` if none is given.
        """
        if mask is None:
            mask = self.draw(key, len(images))["mask"]
        _, drop_path_key = jax.random.split(key)
        hidden = hidden_indices(mask, self.num_masked)
        targets = jax.lax.stop_gradient(self.targets(teacher, images))
        predictions = self._apply(
            params,
            images,
            mask,
            self.num_visible,
            at=hidden,
            is_training=is_training,
            method="predict",
            rngs={"drop_path": drop_path_key},
        )
        errors = [
            objective.error(predictions[name], at_patches(targets[name], hidden))
            for name, objective in self.objectives.items()
        ]
        errors = spread_hidden(jnp.stack(errors), mask)
        supervised = self._apply(params, errors, mask, method="supervise")
        return supervised.loss, supervised

    def draw(self, key: PRNGKeyArray, batch: int) -> dict[str, Mask]:
        """The masks."""
        mask_key, _ = jax.random.split(key)
        return {"mask": self.sample_mask(mask_key, batch)}

    def metrics(self, outcome: Supervised) -> dict[str, Float[Array, ""]]:
        """Dynamic loss, plain loss and beta by objective and depth.

        ``loss/pixels/depth_6`` and so on; ``plain_loss``, and ``plain_loss/...``, are the same with
        all hidden patches weighed alike.
        """
        found = {"plain_loss": outcome.plain_loss}
        for row, objective in enumerate(self.objectives):
            for column, depth in enumerate(self.student.supervision.depths):
                place = f"{objective}/depth_{depth}"
                found[f"loss/{place}"] = outcome.losses[row, column]
                found[f"plain_loss/{place}"] = outcome.plain_losses[row, column]
                found[f"beta/{place}"] = outcome.beta[row, column]
        return found

    def look(
        self, params: PyTree, teacher: PyTree, images: Images, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """What people look at: masks, distances, weights, beta, and what the method predicts.

        Returns:
            ``mask`` (batch, patches); if beta is learned, ``distance`` (batch, patches),
            ``weights`` (objectives, depths, batch, patches) and ``beta`` (objectives, depths); and
            what ``show`` makes of the predictions for all patches.
        """
        supervision = self.student.supervision
        mask = self.sample_mask(key, images.shape[0])
        seen = {"mask": mask}
        if supervision.mode == "deep_dynamic":  # else all weights are 1
            distance = distance_map(mask, self.encoder.grid)
            beta = self._apply(params, method="beta")
            weights = dynamic_weights(distance, mask, beta, supervision.weighting)
            seen |= {"distance": distance, "weights": weights, "beta": beta}
        if self.show is not None:
            predictions = self._apply(params, images, mask, self.num_visible, method="predict")
            seen |= self.show(predictions, self.targets(teacher, images), teacher, images)
        return seen

    def _apply(self, params: PyTree, *args, **kwargs):
        return self.student.apply({"params": params}, *args, **kwargs)


def make_method(
    encoder: ViT,
    decoder: Decoder | None,
    objectives: Mapping[str, Objective],
    targets: Callable[[PyTree, Images], Predictions],
    *,
    sample_mask: Callable[[PRNGKeyArray, int], Mask],
    num_masked: int,
    depths: tuple[int, ...],
    aggregation: Aggregation | None = None,
    has_momentum_encoder: bool = False,
    frozen: PyTree | None = None,
    show: Callable[[Predictions, Predictions, PyTree, Images], dict[str, Array]] | None = None,
    depth_weights: tuple[float, ...] | None = None,
    **supervision,
) -> Method:
    """A method of these objectives and targets, under deep dynamic supervision.

    Args:
        encoder, decoder, objectives: of the :class:`Student`.
        targets, sample_mask, num_masked, has_momentum_encoder, frozen, show: of the
            :class:`Method`.
        depths: supervised depths (see :func:`ddae_jax.methods.supervision.supervised_depths`).
        aggregation: see :class:`Aggregation`; its readout is supervised too, with weight 1, as
            that of depth ``encoder.depth + aggregation.num_blocks``.
        depth_weights: ``alpha`` of each of ``depths``; 1 each by default.
        supervision: further arguments of :class:`DeepDynamicSupervision`, such as its ``mode``.
    """
    if aggregation is not None:
        depths = (*depths, encoder.depth + aggregation.num_blocks)
        depth_weights = None if depth_weights is None else (*depth_weights, 1.0)
    student = Student(
        encoder=encoder,
        decoder=decoder,
        output_widths={name: o.width for name, o in objectives.items()},
        supervision=DeepDynamicSupervision(
            objectives=tuple(objectives),
            depths=depths,
            objective_weights=tuple(o.weight for o in objectives.values()),
            depth_weights=depth_weights,
            **supervision,
        ),
        aggregation=aggregation,
    )
    return Method(
        student=student,
        objectives=objectives,
        targets=targets,
        sample_mask=sample_mask,
        num_masked=num_masked,
        has_momentum_encoder=has_momentum_encoder,
        frozen=frozen or {},
        show=show,
    )
