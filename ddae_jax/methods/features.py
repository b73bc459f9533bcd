"""Features of a momentum encoder as targets: reading, normalising and comparing them."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from ddae_jax.methods.targets import squared_error
from ddae_jax.methods.task import Images
from ddae_jax.models.vit import ViT

FeatureNormalization = Literal["layer", "batch", "position", "instance"]

NORMALIZED_AXES: Mapping[FeatureNormalization, tuple[int, ...]] = MappingProxyType(
    {"layer": (-1,), "batch": (1, 2), "position": (1,), "instance": (2,)}
)
"""The axes of ``(depths, batch, patches, width)`` over which features are standardised.

``layer`` standardises each patch over its own values. The others standardise each dimension:
``batch`` over all patches of the batch, ``position`` over the batch at each place, ``instance``
over the patches of each image.
"""


class FeatureStatistics(NamedTuple):
    """Means and variances of a batch's features, with size 1 along the axes they are taken over."""

    mean: Float[Array, "*parts depths #batch #patches features"]
    variance: Float[Array, "*parts depths #batch #patches features"]


def feature_statistics(
    features: Float[ArrayLike, "depths batch patches features"], normalization: FeatureNormalization
) -> FeatureStatistics:
    """Computes the mean and variance that a normalisation needs, in float32."""
    features = features.astype(jnp.float32)
    axes = NORMALIZED_AXES[normalization]
    return FeatureStatistics(
        features.mean(axis=axes, keepdims=True), features.var(axis=axes, keepdims=True)
    )


def merge_statistics(parts: FeatureStatistics) -> FeatureStatistics:
    """Computes the statistics of a batch from those of its equal parts, along the first axis.

    The variance is the mean variance within parts plus the variance of their means. Unlike a mean
    of squares minus a squared mean, this stays accurate where means are much larger than
    deviations.
    """
    variance = parts.variance.mean(axis=0) + parts.mean.var(axis=0)
    return FeatureStatistics(parts.mean.mean(axis=0), variance)


def standardize(
    features: Float[ArrayLike, "depths batch patches features"],
    statistics: FeatureStatistics,
    epsilon: float = 1e-6,
) -> Float[Array, "depths batch patches features"]:
    """Scales features to zero mean and unit variance by given statistics, in their own dtype.

    Variation too small for the features' dtype to resolve around their mean becomes nearly 0,
    instead of rounding noise that is scaled up to unit variance.
    """
    resolved = jnp.finfo(features.dtype).eps * statistics.mean
    deviation = jnp.sqrt(statistics.variance + jnp.square(resolved) + epsilon)
    scaled = (features.astype(jnp.float32) - statistics.mean) / deviation
    return scaled.astype(features.dtype)


def feature_error(
    predictions: Float[ArrayLike, "*batch features"], features: Float[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """Returns the mean squared error of each patch against layer-normalised features.

    The normalisation has no affine parameters. It is done here, not when targets are made, so that
    only the features of hidden patches are normalised.

    Source: Chen et al., DDAE; Baevski et al. 2022, data2vec, section 3.3.
    """
    return squared_error(predictions, normalize_features(features))


def normalize_features(
    features: Float[ArrayLike, "*batch features"],
    axes: int | tuple[int, ...] = -1,
    epsilon: float = 1e-6,
) -> Float[Array, "*batch features"]:
    """Scales features to zero mean and unit variance over ``axes``, in float32.

    The default is layer normalisation without affine parameters.
    """
    features = features.astype(jnp.float32)
    mean = features.mean(axis=axes, keepdims=True)
    variance = features.var(axis=axes, keepdims=True)
    return (features - mean) / jnp.sqrt(variance + epsilon)


@dataclasses.dataclass(frozen=True)
class FeatureTargets:
    """Targets: a momentum encoder's features of the whole image, at several depths.

    Attributes:
        encoder: the momentum encoder's module.
        depths: the blocks whose output is read, before the encoder's final norm.
        normalization: a key of :data:`NORMALIZED_AXES`.
    """

    encoder: ViT
    depths: tuple[int, ...]
    normalization: FeatureNormalization

    def __call__(
        self, teacher: PyTree, images: Images, of_parts: FeatureStatistics | None = None
    ) -> Float[Array, "depths batch patches features"]:
        """Returns the targets of a batch, for :meth:`error`.

        Under ``layer`` they are not normalised yet: the error does so, for hidden patches only.

        Args:
            teacher: parameters of the momentum encoder.
            images: normalised pixels.
            of_parts: if these images are a part of a batch, the :meth:`statistics` of all its
                parts, along a new first axis; by default, those of these images are used.
        """
        features = self._read(teacher, images)
        if self.normalization == "layer":
            return features
        if of_parts is not None:
            return standardize(features, merge_statistics(of_parts))
        return standardize(features, feature_statistics(features, self.normalization))

    @property
    def need_whole_batch(self) -> bool:
        """Whether an image's targets depend on the other images."""
        return self.normalization in ("batch", "position")

    def options(self) -> dict[str, Any]:
        """Returns arguments of :class:`ddae_jax.methods.method.Method` that these targets need."""
        return {
            "target_statistics": self.statistics if self.need_whole_batch else None,
            "watched_features": self.watched,
            "has_momentum_encoder": True,
        }

    def statistics(self, teacher: PyTree, images: Images) -> FeatureStatistics:
        """Returns the statistics by which the features of these images are normalised."""
        return feature_statistics(self._read(teacher, images), self.normalization)

    def watched(
        self, teacher: PyTree, images: Images
    ) -> Float[Array, "depths batch patches features"]:
        """Returns features for monitoring how similar those of different images are.

        They are normalised like the targets, except under ``position``. That would remove the very
        thing to be measured, what all images have in common at a place, so ``batch`` is used.
        """
        features = self._read(teacher, images)
        normalization = "batch" if self.normalization == "position" else self.normalization
        return standardize(features, feature_statistics(features, normalization))

    def error(self, normalizes_predictions: bool) -> Callable[[Array, Array], Array]:
        """Returns the function ``(predictions, targets) -> error of each patch``.

        Args:
            normalizes_predictions: whether predictions are normalised, by their own statistics over
                the predicted places. Targets are then normalised over the same places, so that a
                perfect prediction has error 0. These places differ from image to image, so that
                none has a value in every image: ``position`` then normalises as ``batch`` does.
        """
        if not normalizes_predictions:
            return feature_error if self.normalization == "layer" else squared_error
        axes = NORMALIZED_AXES["batch" if self.normalization == "position" else self.normalization]

        def error(predictions, features):
            targets = normalize_features(features, axes)
            return squared_error(normalize_features(predictions, axes), targets)

        return error

    def _read(
        self, teacher: PyTree, images: Images
    ) -> Float[Array, "depths batch patches features"]:
        features = self.encoder.apply(
            {"params": teacher}, images, depths=self.depths, normalize=False
        )
        return features.patches
