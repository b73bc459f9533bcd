"""A method: a student that predicts, targets to predict, and a supervision of its errors.

A method's own file says which objectives it has; :func:`ddae_jax.methods.make_method.make_method`
builds the rest around them.
"""

import dataclasses
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ddae_jax.distance import distance_map
from ddae_jax.masking import hidden_indices, sample_hidden, spread_hidden, visible_indices
from ddae_jax.methods.masked_image_model import MaskedImageModel, Outputs
from ddae_jax.methods.objectives import Alignment, Objective, weight_at
from ddae_jax.methods.supervision import BetaGradient, DeepDynamicSupervision, SupervisionOutput
from ddae_jax.methods.task import Images, Mask, Predictions
from ddae_jax.models.gather import at_patches
from ddae_jax.models.vit import ViT


@flax.struct.dataclass
class MethodOutput(SupervisionOutput):
    """What a step's loss is made of.

    Attributes:
        objective_weights: ``lambda_o`` of this step.
        visible_losses: mean error of visible patches at each depth, where they are aligned.
        visible_weight: what these are weighed by in this step.
    """

    objective_weights: Float[Array, "objectives"] | None = None
    visible_losses: Float[Array, " depths"] | None = None
    visible_weight: Float[Array, ""] | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A masked-image-modelling method: a :class:`ddae_jax.methods.task.TrainTask`.

    Attributes:
        student: the trained network.
        supervision: the loss of its errors.
        objectives: by name, in the supervision's order.
        targets: ``(teacher, images) -> targets by objective``, each of shape ``(depths or 1, batch,
            patches, ...)``. No gradient passes through them.
        sample_mask: ``(key, batch) -> mask``, with ``num_masked`` hidden patches a row.
        num_masked: hidden patches of each image.
        num_sampled: how many of them the depths before the last one predict, drawn anew each step;
            None for all.
        alignment: what visible patches' own features are compared with; None for nothing.
        target_statistics: ``(teacher, images) -> statistics``, where targets depend on the whole
            batch; ``targets`` then takes those of all its parts, along a new first axis, as a third
            argument, and makes its own if it gets none.
        watched_features: ``(teacher, images) -> features``, where features are predicted: those
            whose collapse would leave nothing to learn. None for no features.
        has_momentum_encoder: whether the teacher is a momentum encoder.
        frozen: the teacher, if it is none.
        beta_gradient: what beta descends: ``relative``, the logarithm of its own loss
            (:meth:`DeepDynamicSupervision.relative_gradient`), whatever that is measured in and
            weighed by; or ``absolute``, the loss.
        visualize_predictions: ``(predictions, targets, teacher, images) -> arrays for figures``, of
            all patches.
    """

    student: MaskedImageModel
    supervision: DeepDynamicSupervision
    objectives: Mapping[str, Objective]
    targets: Callable[..., Predictions]
    sample_mask: Callable[[PRNGKeyArray, int], Mask]
    num_masked: int
    num_sampled: int | None = None
    alignment: Alignment | None = None
    target_statistics: Callable[[PyTree, Images], PyTree] | None = None
    watched_features: Callable[[PyTree, Images], Array] | None = None
    has_momentum_encoder: bool = False
    frozen: PyTree = dataclasses.field(default_factory=dict)
    beta_gradient: BetaGradient = "relative"
    visualize_predictions: (
        Callable[[Predictions, Predictions, PyTree, Images], dict[str, Array]] | None
    ) = None

    @property
    def encoder(self) -> ViT:
        """The student's."""
        return self.student.encoder

    @property
    def depths(self) -> tuple[int, ...]:
        """Supervised depths."""
        return self.supervision.depths

    @property
    def num_visible(self) -> int:
        """Visible patches of each image."""
        h, w = self.encoder.grid
        return h * w - self.num_masked

    @property
    def description(self) -> str:
        """One line on what is trained."""
        supervision, (h, w) = self.supervision, self.encoder.grid
        learned = list(self.objectives)
        if self.alignment is not None:
            learned.append(f"visible {self.alignment.name}")
        return (
            f"{supervision.mode} supervision of {' and '.join(learned)} at depths "
            f"{', '.join(map(str, supervision.depths))} of {self.encoder.depth}, width "
            f"{self.encoder.width}, {self.num_masked} of {h * w} patches ({h} x {w}) hidden"
        )

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Fresh parameters of the student, float32."""
        images = jnp.zeros((1, *self.encoder.image_size, channels))
        mask = jnp.arange(self.num_masked + self.num_visible)[None] < self.num_masked

        hidden = hidden_indices(mask, self.num_masked)
        places = self._places(hidden, hidden)
        network = self.student.init(key, images, mask, self.num_visible, places)["params"]
        errors = jnp.zeros((len(self.objectives), len(self.depths), *mask.shape))
        supervision = self.supervision.init(key, errors, mask, self.encoder.grid)
        return network | ({"supervision": supervision["params"]} if supervision else {})

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """The student's encoder, for a momentum encoder to start from, or what is frozen."""
        if self.has_momentum_encoder:
            return params["encoder"]
        return self.frozen if frozen is None else frozen

    def frozen_part(self, teacher: PyTree) -> PyTree:
        """All of it, if it is no momentum encoder."""
        return {} if self.has_momentum_encoder else teacher

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: MethodOutput, momentum: Float[ArrayLike, ""]
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
        progress: Float[Array, ""] | float | None = None,
        mask: Mask | None = None,
        sampled: Mask | None = None,
        statistics: PyTree | None = None,
    ) -> tuple[Float[Array, ""], MethodOutput]:
        """Loss of a batch of normalised images, and what it is made of.

        Only hidden patches are predicted: the others carry no loss. Where the depths before the
        last one predict some of them, those count for as many more, so that the loss is an unbiased
        estimate if each is decoded by itself. Masks are those of :meth:`sample_masks`; statistics
        are those of all parts of the batch, and of these images if none are given.

        Raises:
            ValueError: if weights change over a run and no ``progress`` is given; or if one of
                ``mask`` and ``sampled`` is missing.
        """
        if mask is None:
            drawn = self.sample_masks(key, len(images))
            mask, sampled = drawn["mask"], drawn.get("sampled")
        if (sampled is None) == self._samples_hidden:
            raise ValueError("mask and sampled go together, as draw gives them")
        _, drop_path_key = jax.random.split(key)
        hidden = hidden_indices(mask, self.num_masked)
        chosen = hidden if sampled is None else hidden_indices(sampled, self.num_sampled)
        given = () if statistics is None else (statistics,)
        targets = jax.lax.stop_gradient(self.targets(teacher, images, *given))
        outputs = self._apply(
            params,
            images,
            mask,
            self.num_visible,
            self._places(chosen, hidden),
            is_training=is_training,
            rngs={"drop_path": drop_path_key},
        )
        if len(outputs.predictions) == 1:
            errors = spread_hidden(self._errors(outputs.predictions[0], targets, hidden), mask)
        else:
            earlier, last = outputs.predictions
            share = self.num_sampled / self.num_masked
            earlier = self._errors(earlier, targets, chosen, slice(-1)) / share
            last = self._errors(last, targets, hidden, slice(-1, None))
            errors = jnp.concatenate(
                [spread_hidden(earlier, sampled), spread_hidden(last, mask)], axis=1
            )
        weights = self._objective_weights(progress)
        supervised = self._supervise(
            params, errors, mask, self.encoder.grid, weights if self._has_schedule else None
        )
        output = MethodOutput(**vars(supervised), objective_weights=weights)
        if self.alignment is not None:
            output = self._aligned(output, outputs, targets, mask, progress)
        return output.loss, output

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> dict[str, Mask]:
        """The masks, and which of the hidden patches the depths before the last one predict."""
        mask_key, other_key = jax.random.split(key)
        drawn = {"mask": self.sample_mask(mask_key, batch)}
        if self._samples_hidden:
            sample_key = jax.random.fold_in(other_key, 1)
            drawn["sampled"] = sample_hidden(sample_key, drawn["mask"], self.num_sampled)
        return drawn

    def statistics(self, teacher: PyTree, inputs: Images) -> dict[str, PyTree]:
        """What targets depend on beyond their own image, if they do."""
        if self.target_statistics is None:
            return {}
        return {"statistics": self.target_statistics(teacher, inputs)}

    @property
    def _has_schedule(self) -> bool:
        """Whether a weight changes over a run."""
        weighed = [*self.objectives.values(), *filter(None, [self.alignment])]
        return any(item.schedule for item in weighed)

    @property
    def _samples_hidden(self) -> bool:
        return self.num_sampled is not None

    def _places(self, chosen: Array, hidden: Array) -> tuple[Array, ...]:
        """What the depths before the last one predict, and the last one; one for both if equal."""
        return (chosen, hidden) if self._samples_hidden else (hidden,)

    def _errors(
        self,
        predictions: Predictions,
        targets: Predictions,
        places: Int[Array, "batch chosen"],
        depths: slice = slice(None),
    ) -> Float[Array, "objectives depths batch chosen"]:
        def error(name: str, objective: Objective) -> Array:
            wanted = targets[name]
            wanted = wanted if len(wanted) == 1 else wanted[depths]  # 1: the same at all depths
            return objective.error(predictions[name], at_patches(wanted, places))

        return jnp.stack([error(name, o) for name, o in self.objectives.items()])

    def _objective_weights(self, progress: Array | float | None) -> Float[Array, "objectives"]:
        return jnp.stack([weight_at(o, progress) for o in self.objectives.values()])

    def _aligned(
        self, output: MethodOutput, outputs: Outputs, targets: Predictions, mask: Mask, progress
    ) -> MethodOutput:
        """The output with the errors of visible patches added."""
        alignment = self.alignment
        visible = visible_indices(mask, self.num_visible)
        wanted = at_patches(targets[alignment.name], visible)
        losses = alignment.error(outputs.visible, wanted).mean(axis=(1, 2))
        alpha = self.supervision.depth_weights or (1.0,) * len(self.depths)
        total = (jnp.asarray(alpha) * losses).sum()
        weight = weight_at(alignment, progress)
        return output.replace(
            loss=output.loss + weight * total,
            plain_loss=output.plain_loss + alignment.weight * total,
            visible_losses=losses,
            visible_weight=weight,
        )

    def descent(self, gradient: PyTree, output: MethodOutput) -> PyTree:
        """The gradient, in which beta's is relative if it is to be so."""
        supervision = self.supervision
        if not supervision.learns_beta or self.beta_gradient == "absolute":
            return gradient
        beta = supervision.relative_gradient(gradient["supervision"]["beta"], output.losses)
        return gradient | {"supervision": gradient["supervision"] | {"beta": beta}}

    def metrics(self, output: MethodOutput) -> dict[str, Float[Array, ""]]:
        """Dynamic loss, plain loss and beta by objective and depth.

        ``loss/pixels/depth_6`` and so on; ``plain_loss``, and ``plain_loss/...``, are the same with
        all hidden patches weighed alike. ``weight/features`` and so on are the objectives' weights,
        where they change over the run; ``loss/visible_features/depth_6`` the error of visible
        patches, where they are aligned.
        """
        found = {"plain_loss": output.plain_loss}
        for row, objective in enumerate(self.objectives):
            for column, depth in enumerate(self.depths):
                place = f"{objective}/depth_{depth}"
                found[f"loss/{place}"] = output.losses[row, column]
                found[f"plain_loss/{place}"] = output.plain_losses[row, column]
                found[f"beta/{place}"] = output.beta[row, column]
        if self._has_schedule:
            for row, objective in enumerate(self.objectives):
                found[f"weight/{objective}"] = output.objective_weights[row]
        if self.alignment is not None:
            name = f"visible_{self.alignment.name}"
            for column, depth in enumerate(self.depths):
                found[f"loss/{name}/depth_{depth}"] = output.visible_losses[column]
            if self._has_schedule:
                found[f"weight/{name}"] = output.visible_weight
        return found

    def visualize(
        self, params: PyTree, teacher: PyTree, images: Images, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """What people look at: masks, distances, weights, beta, and what the method predicts.

        Returns:
            ``mask`` (batch, patches); if beta is learned, ``distance`` (batch, patches),
            ``weights`` (objectives, depths, batch, patches) and ``beta`` (objectives, depths); and
            what ``visualize_predictions`` makes of the predictions for all patches.
        """
        mask = self.sample_mask(key, images.shape[0])
        seen = {"mask": mask}
        if self.supervision.mode == "deep_dynamic":  # else all weights are 1
            grid = self.encoder.grid
            seen |= {
                "distance": distance_map(mask, grid),
                "weights": self._supervise(params, mask, grid, method="weights"),
                "beta": self._supervise(params, method="beta"),
            }
        if self.visualize_predictions is not None:
            predictions = self._predictions(params, images, mask)
            seen |= self.visualize_predictions(
                predictions, self.targets(teacher, images), teacher, images
            )
        return seen

    def _predictions(self, params: PyTree, images: Images, mask: Mask) -> Predictions:
        """Predictions for all patches of a batch.

        A depth that predicts a share of the hidden patches does so here in rounds, each of them as
        many as in training: MAE's decoder has learned to see no more mask tokens than that.
        """
        found = self._apply(params, images, mask, self.num_visible, method="predict")
        if not self._samples_hidden:
            return found
        hidden = hidden_indices(mask, self.num_masked)
        num_rounds = round(self.num_masked / self.num_sampled)
        rows = jnp.arange(len(mask))[:, None]
        for start in range(num_rounds):
            chosen = hidden[:, start::num_rounds]
            outputs = self._apply(params, images, mask, self.num_visible, (chosen, hidden))
            found = {
                name: found[name].at[:-1, rows, chosen].set(earlier)
                for name, earlier in outputs.predictions[0].items()
            }
        return found

    def _apply(self, params: PyTree, *args, **kwargs):
        network = {name: values for name, values in params.items() if name != "supervision"}
        return self.student.apply({"params": network}, *args, **kwargs)

    def _supervise(self, params: PyTree, *args, **kwargs):
        return self.supervision.apply({"params": params.get("supervision", {})}, *args, **kwargs)
