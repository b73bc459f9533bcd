"""What every method is made of: a student that predicts, targets to predict, a supervision.

A method's own file says which objectives it has, and builds a :class:`Method` from the parts here.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ddae_jax.distance import distance_map
from ddae_jax.dynamic_loss import dynamic_weights
from ddae_jax.masking import visible_indices
from ddae_jax.methods.supervision import DeepDynamicSupervision, Supervised
from ddae_jax.methods.targets import images_from_pixel_predictions
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.dense import Dense
from ddae_jax.models.vit import ViT

Images = Float[Array, "batch height width channels"]
Mask = Bool[Array, "batch patches"]
Predictions = Mapping[str, Float[Array, "depths batch patches values"]]


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


class Student(nn.Module):
    """The trained network: encoder, decoder if only visible patches are encoded, and ONE head.

    The same head (and decoder) reads every depth of ``supervision.depths`` and serves every
    objective, so that deep supervision adds no structure to a method.

    Attributes:
        encoder: the vision transformer.
        decoder: None, if hidden patches enter the encoder as mask tokens.
        output_widths: values to predict for a patch, by objective.
        supervision: the loss of the errors.
    """

    encoder: ViT
    decoder: Decoder | None
    output_widths: Mapping[str, int]
    supervision: DeepDynamicSupervision

    def setup(self):
        self.head = Dense(sum(self.output_widths.values()), dtype=self.encoder.dtype)

    def predict(
        self, images: Images, mask: Mask, num_visible: int, is_training: bool = False
    ) -> Predictions:
        """Predictions for all patches, hidden or not, at each supervised depth."""
        options = {"depths": self.supervision.depths, "is_training": is_training}
        if self.decoder is None:
            patches = self.encoder(images, mask=mask, **options).patches
        else:
            visible = visible_indices(mask, num_visible)
            patches = self.decoder(self.encoder(images, visible=visible, **options), mask)
        # The batch comes first where axes are flattened, so that it stays split over devices.
        outputs = jnp.moveaxis(self.head(jnp.moveaxis(patches, 0, 1)), 1, 0)
        ends = list(itertools.accumulate(self.output_widths.values()))[:-1]
        return dict(zip(self.output_widths, jnp.split(outputs, ends, axis=-1), strict=True))

    def supervise(self, errors: Float[Array, "objectives depths batch patches"], mask: Mask):
        """See :class:`DeepDynamicSupervision`."""
        return self.supervision(errors, mask, self.encoder.grid)

    def beta(self) -> Float[Array, "objectives depths"]:
        """The exponents in force."""
        return self.supervision.beta()


@dataclasses.dataclass(frozen=True)
class Method:
    """A masked-image-modelling method, ready to be trained.

    Attributes:
        student: the trained network.
        objectives: by name, in the supervision's order.
        targets: ``(teacher parameters, images) -> targets by objective``, each of shape
            ``(depths or 1, batch, patches, values)``. No gradient passes through them.
        sample_mask: ``(key, batch) -> mask``, with ``num_masked`` hidden patches a row.
        num_masked: hidden patches of each image.
        has_teacher: whether a momentum encoder is to be kept (parameters of ``student.encoder``).
        pixels_are_normalized: None if no objective is called ``pixels``; else whether its targets
            are normalised patch by patch.
    """

    student: Student
    objectives: Mapping[str, Objective]
    targets: Callable[[PyTree, Images], Predictions]
    sample_mask: Callable[[PRNGKeyArray, int], Mask]
    num_masked: int
    has_teacher: bool
    pixels_are_normalized: bool | None = None

    @property
    def num_visible(self) -> int:
        """Visible patches of each image."""
        h, w = self.student.encoder.grid
        return h * w - self.num_masked

    def init(self, key: PRNGKeyArray, channels: int) -> PyTree:
        """Fresh parameters of the student, float32."""
        images = jnp.zeros((1, *self.student.encoder.image_size, channels))
        mask = jnp.arange(self.num_masked + self.num_visible)[None] < self.num_masked

        def touch_everything(student):
            predictions = student.predict(images, mask, self.num_visible)
            errors = jnp.zeros((len(predictions), len(student.supervision.depths), *mask.shape))
            return student.supervise(errors, mask)

        return self.student.init(key, method=touch_everything)["params"]

    def teacher_of(self, params: PyTree) -> PyTree:
        """The part of the student's parameters that the momentum encoder follows."""
        return params["encoder"] if self.has_teacher else {}

    def loss(
        self,
        params: PyTree,
        teacher: PyTree,
        images: Images,
        key: PRNGKeyArray,
        is_training: bool = True,
    ) -> tuple[Float[Array, ""], Supervised]:
        """Loss of a batch of normalised images, and what it is made of."""
        mask_key, drop_path_key = jax.random.split(key)
        mask = self.sample_mask(mask_key, images.shape[0])
        targets = jax.lax.stop_gradient(self.targets(teacher, images))
        predictions = self._apply(
            params,
            images,
            mask,
            self.num_visible,
            is_training,
            method="predict",
            rngs={"drop_path": drop_path_key},
        )
        errors = jnp.stack(
            [o.error(predictions[name], targets[name]) for name, o in self.objectives.items()]
        )
        supervised = self._apply(params, errors, mask, method="supervise")
        return supervised.loss, supervised

    def look(self, params: PyTree, images: Images, key: PRNGKeyArray) -> dict[str, Array]:
        """What people look at: masks, distances, weights, beta, and reconstructed images.

        Returns:
            ``mask`` and ``distance`` (batch, patches), ``weights`` (objectives, depths, batch,
            patches), ``beta`` (objectives, depths), and ``reconstructions`` (depths, batch, height,
            width, channels) where the method predicts pixels: predictions at hidden patches, in the
            units of ``images``.
        """
        encoder, supervision = self.student.encoder, self.student.supervision
        mask = self.sample_mask(key, images.shape[0])
        distance = distance_map(mask, encoder.grid)
        beta = self._apply(params, method="beta")
        weights = dynamic_weights(distance, mask, beta, supervision.weighting)
        seen = {"mask": mask, "distance": distance, "weights": weights, "beta": beta}
        if self.pixels_are_normalized is not None:
            predictions = self._apply(params, images, mask, self.num_visible, method="predict")
            seen["reconstructions"] = images_from_pixel_predictions(
                predictions["pixels"],
                images,
                encoder.grid,
                encoder.patch_size,
                self.pixels_are_normalized,
            )
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
    has_teacher: bool = False,
    pixels_are_normalized: bool | None = None,
    **supervision,
) -> Method:
    """A method of these objectives and targets, under deep dynamic supervision.

    Args:
        encoder, decoder, objectives: of the :class:`Student`.
        targets, sample_mask, num_masked, has_teacher, pixels_are_normalized: of the
            :class:`Method`.
        depths: supervised depths (see :func:`ddae_jax.methods.supervision.supervised_depths`).
        supervision: further arguments of :class:`DeepDynamicSupervision`, such as its ``mode``.
    """
    student = Student(
        encoder=encoder,
        decoder=decoder,
        output_widths={name: o.width for name, o in objectives.items()},
        supervision=DeepDynamicSupervision(
            objectives=tuple(objectives),
            depths=depths,
            objective_weights=tuple(o.weight for o in objectives.values()),
            **supervision,
        ),
    )
    return Method(
        student=student,
        objectives=objectives,
        targets=targets,
        sample_mask=sample_mask,
        num_masked=num_masked,
        has_teacher=has_teacher,
        pixels_are_normalized=pixels_are_normalized,
    )
