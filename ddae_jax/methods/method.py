"""A method: a student network, the targets it predicts, and a supervision of its errors.

A method's own file defines its objectives and targets;
:func:`ddae_jax.methods.make_method.make_method` adds the rest.
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
    """The loss of a step, and its components.

    Attributes:
        objective_weights: ``lambda_o`` in this step.
        visible_losses: mean error of visible patches at each depth; None without an alignment.
        visible_weight: the weight of these in this step; None without an alignment.
    """

    objective_weights: Float[Array, "objectives"] | None = None
    visible_losses: Float[Array, " depths"] | None = None
    visible_weight: Float[Array, ""] | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A masked-image-modelling method: a :class:`ddae_jax.methods.task.TrainTask`.

    Attributes:
        student: the trained network.
        supervision: computes the loss from the student's errors.
        objectives: the objectives by name, in the supervision's order.
        targets: ``(teacher, images) -> targets by objective``, each of shape ``(depths or 1, batch,
            patches, ...)``. No gradient passes through them.
        sample_mask: ``(key, batch) -> mask``, with ``num_masked`` hidden patches in each row.
        num_masked: number of hidden patches in each image.
        num_sampled: how many of them the depths before the last one predict, sampled anew in each
            step; None for all.
        alignment: the comparison of visible patches' features with targets; None for none.
        target_statistics: ``(teacher, images) -> statistics``, for targets that depend on the whole
            batch; else None. ``targets`` then accepts as a third argument the statistics of all
            parts of the batch, along a new first axis; by default it uses those of its own images.
        watched_features: ``(teacher, images) -> features``, for methods that predict features; else
            None. They are monitored for collapse: if they were alike for all images, there would be
            nothing left to learn.
        has_momentum_encoder: whether the teacher is a momentum encoder.
        frozen: the teacher if it is not a momentum encoder.
        beta_gradient: what beta minimises. ``relative``: the logarithm of its own loss, which is
            independent of the loss's unit and weight
            (:meth:`DeepDynamicSupervision.relative_gradient`). ``absolute``: the loss itself.
        visualize_predictions: ``(predictions, targets, teacher, images) -> arrays for figures``, of
            all patches; None for none.
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
        """The student's encoder."""
        return self.student.encoder

    @property
    def depths(self) -> tuple[int, ...]:
        """The supervised depths."""
        return self.supervision.depths

    @property
    def num_visible(self) -> int:
        """The number of visible patches in each image."""
        h, w = self.encoder.grid
        return h * w - self.num_masked

    @property
    def description(self) -> str:
        """A one-line description of what is trained."""
        supervision, (h, w) = self.supervision, self.encoder.grid
        names = list(self.objectives)
        if self.alignment is not None:
            names.append(f"visible {self.alignment.name}")
        return (
            f"{supervision.mode} supervision of {' and '.join(names)} at depths "
            f"{', '.join(map(str, supervision.depths))} of {self.encoder.depth}, width "
            f"{self.encoder.width}, {self.num_masked} of {h * w} patches ({h} x {w}) hidden"
        )

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Returns newly initialised float32 parameters of the student and the supervision."""
        images = jnp.zeros((1, *self.encoder.image_size, channels))
        mask = jnp.arange(self.num_masked + self.num_visible)[None] < self.num_masked

        hidden = hidden_indices(mask, self.num_masked)
        places = self._places(hidden, hidden)
        network = self.student.init(key, images, mask, self.num_visible, places)["params"]
        errors = jnp.zeros((len(self.objectives), len(self.depths), *mask.shape))
        supervision = self.supervision.init(key, errors, mask, self.encoder.grid)
        return network | ({"supervision": supervision["params"]} if supervision else {})

    def init_teacher(self, params: PyTree, frozen: PyTree | None = None) -> PyTree:
        """Returns the student's encoder for a momentum encoder to start from, else ``frozen``."""
        if self.has_momentum_encoder:
            return params["encoder"]
        return self.frozen if frozen is None else frozen

    def frozen_part(self, teacher: PyTree) -> PyTree:
        """Returns {} for a momentum encoder, else the whole teacher."""
        return {} if self.has_momentum_encoder else teacher

    def update_teacher(
        self, teacher: PyTree, params: PyTree, output: MethodOutput, momentum: Float[ArrayLike, ""]
    ) -> PyTree:
        """Returns ``momentum * teacher + (1 - momentum) * student``, or a frozen teacher as is."""
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
        """Returns the loss of a batch of normalised images, and its components.

        Only hidden patches are predicted; visible ones have no loss. Depths before the last one may
        predict a sample of the hidden patches. Their errors are divided by the sample's share, so
        that the loss is an unbiased estimate if patches are decoded independently of each other.

        Args:
            params: parameters of the student and the supervision.
            teacher: see :meth:`init_teacher`.
            images: normalised pixels.
            key: random key of stochastic depth, and of masks unless they are given.
            is_training: whether stochastic depth is on.
            progress: share of the run that is done, for weights that change over a run.
            mask, sampled: see :meth:`sample_masks`, whose result is the default.
            statistics: :meth:`statistics` of all parts of the batch, along a new first axis; by
                default, those of these images.

        Raises:
            ValueError: if weights change over a run and ``progress`` is missing; or if ``mask`` and
                ``sampled`` are not both given, as :meth:`sample_masks` returns them.
        """
        if mask is None:
            masks = self.sample_masks(key, len(images))
            mask, sampled = masks["mask"], masks.get("sampled")
        if (sampled is None) == self._samples_hidden:
            raise ValueError("mask and sampled go together, as sample_masks gives them")
        _, drop_path_key = jax.random.split(key)
        hidden = hidden_indices(mask, self.num_masked)
        chosen = hidden if sampled is None else hidden_indices(sampled, self.num_sampled)
        batch_statistics = () if statistics is None else (statistics,)
        targets = jax.lax.stop_gradient(self.targets(teacher, images, *batch_statistics))
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
        supervision_output = self._supervise(
            params, errors, mask, self.encoder.grid, weights if self._has_schedule else None
        )
        output = MethodOutput(**vars(supervision_output), objective_weights=weights)
        if self.alignment is not None:
            output = self._aligned(output, outputs, targets, mask, progress)
        return output.loss, output

    def sample_masks(self, key: PRNGKeyArray, batch: int) -> dict[str, Mask]:
        """Samples the random masks of a batch, as :meth:`loss` does with this key.

        Returns:
            ``mask`` (batch, patches), True where hidden; and, if ``num_sampled`` is set,
            ``sampled``, True for the hidden patches that depths before the last one predict.
        """
        mask_key, other_key = jax.random.split(key)
        masks = {"mask": self.sample_mask(mask_key, batch)}
        if self._samples_hidden:
            sample_key = jax.random.fold_in(other_key, 1)
            masks["sampled"] = sample_hidden(sample_key, masks["mask"], self.num_sampled)
        return masks

    def statistics(self, teacher: PyTree, inputs: Images) -> dict[str, PyTree]:
        """Returns ``{"statistics": ...}`` if targets depend on the whole batch, else {}."""
        if self.target_statistics is None:
            return {}
        return {"statistics": self.target_statistics(teacher, inputs)}

    @property
    def _has_schedule(self) -> bool:
        """Whether a weight changes over a run."""
        items = [*self.objectives.values(), *filter(None, [self.alignment])]
        return any(item.schedule for item in items)

    @property
    def _samples_hidden(self) -> bool:
        """Whether depths before the last one predict only a sample of the hidden patches."""
        return self.num_sampled is not None

    def _places(self, chosen: Array, hidden: Array) -> tuple[Array, ...]:
        """Returns ``places`` of :meth:`MaskedImageModel.__call__`."""
        return (chosen, hidden) if self._samples_hidden else (hidden,)

    def _errors(
        self,
        predictions: Predictions,
        targets: Predictions,
        places: Int[Array, "batch chosen"],
        depths: slice = slice(None),
    ) -> Float[Array, "objectives depths batch chosen"]:
        """Returns the error of each predicted patch; ``depths`` are those of the predictions."""

        def error(name: str, objective: Objective) -> Array:
            values = targets[name]
            values = values if len(values) == 1 else values[depths]  # 1: the same at all depths
            return objective.error(predictions[name], at_patches(values, places))

        return jnp.stack([error(name, o) for name, o in self.objectives.items()])

    def _objective_weights(self, progress: Array | float | None) -> Float[Array, "objectives"]:
        return jnp.stack([weight_at(o, progress) for o in self.objectives.values()])

    def _aligned(
        self, output: MethodOutput, outputs: Outputs, targets: Predictions, mask: Mask, progress
    ) -> MethodOutput:
        """Returns ``output`` with the errors of visible patches added to its losses."""
        alignment = self.alignment
        visible = visible_indices(mask, self.num_visible)
        values = at_patches(targets[alignment.name], visible)
        losses = alignment.error(outputs.visible, values).mean(axis=(1, 2))
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
        """Returns the gradient, with beta's made relative if ``beta_gradient`` says so."""
        supervision = self.supervision
        if not supervision.learns_beta or self.beta_gradient == "absolute":
            return gradient
        beta = supervision.relative_gradient(gradient["supervision"]["beta"], output.losses)
        return gradient | {"supervision": gradient["supervision"] | {"beta": beta}}

    def metrics(self, output: MethodOutput) -> dict[str, Float[Array, ""]]:
        """Returns losses and beta by objective and depth, and the weights that change over a run.

        - ``loss/pixels/depth_6``: the loss of an objective at a depth;
        - ``plain_loss``, ``plain_loss/pixels/depth_6``: the same with equal weights of all hidden
          patches;
        - ``beta/pixels/depth_6``: its exponent;
        - ``loss/visible_features/depth_6``: the error of visible patches, with an alignment;
        - ``weight/features``: an objective's weight, if any weight changes over a run.
        """
        metrics = {"plain_loss": output.plain_loss}
        for row, objective in enumerate(self.objectives):
            for column, depth in enumerate(self.depths):
                place = f"{objective}/depth_{depth}"
                metrics[f"loss/{place}"] = output.losses[row, column]
                metrics[f"plain_loss/{place}"] = output.plain_losses[row, column]
                metrics[f"beta/{place}"] = output.beta[row, column]
        if self._has_schedule:
            for row, objective in enumerate(self.objectives):
                metrics[f"weight/{objective}"] = output.objective_weights[row]
        if self.alignment is not None:
            name = f"visible_{self.alignment.name}"
            for column, depth in enumerate(self.depths):
                metrics[f"loss/{name}/depth_{depth}"] = output.visible_losses[column]
            if self._has_schedule:
                metrics[f"weight/{name}"] = output.visible_weight
        return metrics

    def visualize(
        self, params: PyTree, teacher: PyTree, images: Images, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """Returns the arrays that figures show.

        Returns:
            ``mask`` (batch, patches); under ``deep_dynamic``, ``distance`` (batch, patches),
            ``weights`` (objectives, depths, batch, patches) and ``beta`` (objectives, depths); and
            the arrays of ``visualize_predictions``, for predictions of all patches.
        """
        mask = self.sample_mask(key, images.shape[0])
        arrays = {"mask": mask}
        if self.supervision.mode == "deep_dynamic":  # else all weights are 1
            grid = self.encoder.grid
            arrays |= {
                "distance": distance_map(mask, grid),
                "weights": self._supervise(params, mask, grid, method="weights"),
                "beta": self._supervise(params, method="beta"),
            }
        if self.visualize_predictions is not None:
            predictions = self._predictions(params, images, mask)
            arrays |= self.visualize_predictions(
                predictions, self.targets(teacher, images), teacher, images
            )
        return arrays

    def _predictions(self, params: PyTree, images: Images, mask: Mask) -> Predictions:
        """Predicts all patches of a batch.

        Depths that predict a sample of the hidden patches in training do so here in several rounds,
        each with as many patches as in training: MAE's decoder was not trained on more mask tokens.
        """
        predictions = self._apply(params, images, mask, self.num_visible, method="predict")
        if not self._samples_hidden:
            return predictions
        hidden = hidden_indices(mask, self.num_masked)
        num_rounds = round(self.num_masked / self.num_sampled)
        rows = jnp.arange(len(mask))[:, None]
        for start in range(num_rounds):
            chosen = hidden[:, start::num_rounds]
            outputs = self._apply(params, images, mask, self.num_visible, (chosen, hidden))
            predictions = {
                name: predictions[name].at[:-1, rows, chosen].set(earlier)
                for name, earlier in outputs.predictions[0].items()
            }
        return predictions

    def _apply(self, params: PyTree, *args, **kwargs):
        """Applies the student with its part of the parameters."""
        network = {name: values for name, values in params.items() if name != "supervision"}
        return self.student.apply({"params": network}, *args, **kwargs)

    def _supervise(self, params: PyTree, *args, **kwargs):
        """Applies the supervision with its part of the parameters."""
        return self.supervision.apply({"params": params.get("supervision", {})}, *args, **kwargs)
