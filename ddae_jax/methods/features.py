"""Features of a momentum encoder as targets: how they are read, normalised and compared."""

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

``layer``: over a patch's values. The others standardise each dimension: over all patches of the
whole batch, over the batch at each place, or over the patches of an image.
"""


class FeatureStatistics(NamedTuple):
    """Means and variances of a batch's features, of size 1 along what they are taken over."""

    mean: Float[Array, "*parts depths #batch #patches features"]
    variance: Float[Array, "*parts depths #batch #patches features"]


def feature_statistics(
    features: Float[ArrayLike, "depths batch patches features"], normalization: FeatureNormalization
) -> FeatureStatistics:
    """Takes the mean and the variance that a normalisation needs, in float32."""
    features = features.astype(jnp.float32)
    axes = NORMALIZED_AXES[normalization]
    return FeatureStatistics(
        features.mean(axis=axes, keepdims=True), features.var(axis=axes, keepdims=True)
    )


def merge_statistics(parts: FeatureStatistics) -> FeatureStatistics:
    """Makes the statistics of a batch from those of its equal parts, along the first axis.

    The variance is that within parts and that of their means: nothing is lost where means are
    large beside deviations, as it would be from means of squares.
    """
    variance = parts.variance.mean(axis=0) + parts.mean.var(axis=0)
    return FeatureStatistics(parts.mean.mean(axis=0), variance)


def standardize(
    features: Float[ArrayLike, "depths batch patches features"],
    statistics: FeatureStatistics,
    epsilon: float = 1e-6,
) -> Float[Array, "depths batch patches features"]:
    """Scales features to zero mean and unit variance, by given statistics; in their own dtype.

    What varies by less than the features' dtype resolves beside its mean becomes nearly 0, and not
    the noise of rounding at unit variance.
    """
    resolved = jnp.finfo(features.dtype).eps * statistics.mean
    deviation = jnp.sqrt(statistics.variance + jnp.square(resolved) + epsilon)
    scaled = (features.astype(jnp.float32) - statistics.mean) / deviation
    return scaled.astype(features.dtype)


def feature_error(
    predictions: Float[ArrayLike, "*batch features"], features: Float[ArrayLike, "*batch features"]
) -> Float[Array, "*batch"]:
    """Mean squared error of each patch against features, layer-normalised without affine.

    They are normalised here, and not among the targets, so that only those of hidden patches are.

    Source: Chen et al., DDAE; Baevski et al. 2022, data2vec, section 3.3.
    """
    return squared_error(predictions, normalize_features(features))


def normalize_features(
    features: Float[ArrayLike, "*batch features"],
    axes: int | tuple[int, ...] = -1,
    epsilon: float = 1e-6,
) -> Float[Array, "*batch features"]:
    """Zero mean and unit variance over some axes, in float32; layer normalisation by default."""
    features = features.astype(jnp.float32)
    mean = features.mean(axis=axes, keepdims=True)
    variance = features.var(axis=axes, keepdims=True)
    return (features - mean) / jnp.sqrt(variance + epsilon)


@dataclasses.dataclass(frozen=True)
class FeatureTargets:
    """What a momentum encoder, which sees the whole image, makes of it at some depths.

    Attributes:
        encoder: its module.
        depths: the blocks that are read, before the encoder's final norm.
        normalization: a key of :data:`NORMALIZED_AXES`.
    """

    encoder: ViT
    depths: tuple[int, ...]
    normalization: FeatureNormalization

    def __call__(
        self, teacher: PyTree, images: Images, of_parts: FeatureStatistics | None = None
    ) -> Float[Array, "depths batch patches features"]:
        """The targets of a batch, for :meth:`error`.

        Of ``layer`` they come as they are: the error normalises those of fewer patches.
        ``of_parts`` are the statistics of a whole batch, of which these images are a part; those
        of these images by default.
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
        """Returns the attributes that a :class:`ddae_jax.methods.method.Method` of them has."""
        return {
            "target_statistics": self.statistics if self.need_whole_batch else None,
            "watched_features": self.watched,
            "has_momentum_encoder": True,
        }

    def statistics(self, teacher: PyTree, images: Images) -> FeatureStatistics:
        """What targets depend on beyond their own image."""
        return feature_statistics(self._read(teacher, images), self.normalization)

    def watched(
        self, teacher: PyTree, images: Images
    ) -> Float[Array, "depths batch patches features"]:
        """Features for those who look at what images have in common.

        They are normalised as the targets are; but ``position`` would take out just what is looked
        for, so that they are then normalised over the ``batch``.
        """
        features = self._read(teacher, images)
        normalization = "batch" if self.normalization == "position" else self.normalization
        return standardize(features, feature_statistics(features, normalization))

    def error(self, normalizes_predictions: bool) -> Callable[[Array, Array], Array]:
        """The error of each predicted patch against these targets.

        Predictions are normalised by their own statistics, of the places that are predicted; then
        targets are too, over the same places, so that a perfect prediction has no error. Places
        differ from image to image: ``position`` has no batch at one of them and takes them all.
        """
        if not normalizes_predictions:
            return feature_error if self.normalization == "layer" else squared_error
        axes = NORMALIZED_AXES["batch" if self.normalization == "position" else self.normalization]

        def error(predictions, features):
            wanted = normalize_features(features, axes)
            return squared_error(normalize_features(predictions, axes), wanted)

        return error

    def _read(
        self, teacher: PyTree, images: Images
    ) -> Float[Array, "depths batch patches features"]:
        features = self.encoder.apply(
            {"params": teacher}, images, depths=self.depths, normalize=False
        )
        return features.patches
