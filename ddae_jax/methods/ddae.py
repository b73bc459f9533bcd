"""DDAE: predicts pixels and momentum features of hidden patches, at several depths."""

import functools
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from ddae_jax.methods.features import FeatureNormalization, FeatureStatistics, FeatureTargets
from ddae_jax.methods.make_method import make_method
from ddae_jax.methods.method import Method
from ddae_jax.methods.objectives import Alignment, Objective, WeightSchedule
from ddae_jax.methods.pixels import pixel_objective
from ddae_jax.methods.spec import MethodSpec
from ddae_jax.methods.supervision import PAPER
from ddae_jax.methods.targets import pixel_targets, squared_error, visualize_pixels
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT

FeaturePlaces = Literal["hidden", "visible", "both"]


def ddae(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    depths: tuple[int, ...],
    channels: int = 3,
    pixel_weight: float = 1.0,
    pixel_fade: float = 0.0,
    feature_weight: float = 1.0,
    feature_start: float = 0.0,
    feature_warmup: float = 0.0,
    feature_normalization: FeatureNormalization = "layer",
    feature_places: FeaturePlaces = "hidden",
    normalize_predictions: bool = False,
    normalize_pixels: bool = True,
    **options,
) -> Method:
    """Builds DDAE, which predicts two things for each hidden patch at every supervised depth:

    1. *pixels*: its raw pixels, normalised patch by patch;
    2. *features*: the momentum encoder's features of the whole image at the SAME depth, normalised.

    Both errors are mean squared errors. An objective of weight 0 is left out.

    Args:
        encoder, decoder: a vision transformer, and a light decoder for ``visible`` input or None.
        depths: supervised depths (see :func:`ddae_jax.methods.supervision.supervised_depths`).
        channels: number of image channels.
        pixel_weight, feature_weight: the weights ``lambda`` of the two objectives.
        pixel_fade, feature_start, feature_warmup: see :func:`weight_schedules`.
        feature_normalization: see :data:`ddae_jax.methods.features.NORMALIZED_AXES`.
        feature_places: which patches' features are learned. ``hidden``: predicted through the
            decoder, weighted by distance. ``visible``: compared with the encoder's own features,
            weighted equally. ``both``.
        normalize_predictions: see :meth:`ddae_jax.methods.features.FeatureTargets.error`.
        normalize_pixels: whether pixel targets are normalised patch by patch.
        options: masking and supervision, see :func:`ddae_jax.methods.make_method.make_method`.

    Raises:
        ValueError: see :func:`check_weights` and :func:`check_feature_places`.

    Source: Chen et al. 2024, DDAE; weight schedules: Dong et al. 2022, BootMAE.
    """
    check_weights(pixel_weight, feature_weight)
    objectives, parts = {}, {}
    has_both = pixel_weight > 0 and feature_weight > 0
    fade, rise = weight_schedules(pixel_fade, feature_start, feature_warmup, has_both)
    if pixel_weight:
        objectives["pixels"] = pixel_objective(encoder, channels, squared_error, pixel_weight, fade)
        parts["visualize_predictions"] = visualize_pixels(encoder, normalize_pixels)
    features = FeatureTargets(encoder, depths, feature_normalization)
    if feature_weight:
        check_feature_places(feature_places, pixel_weight, decoder is not None)
        parts |= features.options()
        if feature_places != "visible":
            error = features.error(normalize_predictions)
            objectives["features"] = Objective(encoder.width, error, feature_weight, rise)
        if feature_places != "hidden":
            error = features.error(normalizes_predictions=True)
            parts["alignment"] = Alignment("features", error, feature_weight, rise)

    def targets(teacher, images, of_parts: FeatureStatistics | None = None):
        values = {}
        if pixel_weight:
            values["pixels"] = pixel_targets(images, encoder.patch_size, normalize_pixels)[None]
        if feature_weight:
            values["features"] = features(teacher, images, of_parts)
        return values

    return make_method(encoder, decoder, objectives, targets, depths=depths, **parts, **options)


def weight_schedules(
    pixel_fade: float, feature_start: float, feature_warmup: float, has_both: bool = True
) -> tuple[WeightSchedule | None, WeightSchedule | None]:
    """Returns the schedules of the pixels' and the features' weight.

    Early in a run the teacher's features are not yet worth learning. The features' weight can
    therefore start late and rise, while the pixels' weight falls.

    Args:
        pixel_fade: share of the pixels' weight that is gone once the features' weight has risen.
        feature_start: share of the run during which features have weight 0.
        feature_warmup: share of the run over which their weight then rises linearly.
        has_both: whether both objectives are learned; a single one keeps its weight throughout.

    Returns:
        A factor of the pixels' weight and one of the features' weight, each a function of the share
        of the run that is done, or None where the factor is always 1.
    """
    if not has_both:
        return None, None
    rise = None
    if feature_start or feature_warmup:
        rise = functools.partial(ramp, start=feature_start, length=feature_warmup)
    if not pixel_fade:
        return None, rise
    return (lambda progress: 1 - pixel_fade * (rise(progress) if rise else 1.0)), rise


def ramp(progress: Array | float, start: float, length: float) -> Array | float:
    """Rises linearly from 0 at ``start`` to 1 at ``start + length``. All are shares of a run."""
    if not length:
        return jnp.where(progress >= start, 1.0, 0.0)
    return jnp.clip((progress - start) / length, 0.0, 1.0)


def check_weights(pixel_weight: float, feature_weight: float) -> None:
    """Raises ``ValueError`` if a weight is negative or both are 0."""
    if min(pixel_weight, feature_weight) < 0 or not (pixel_weight or feature_weight):
        raise ValueError(
            f"pixel_weight={pixel_weight}, feature_weight={feature_weight}; "
            "weights are not negative, and one of them is positive"
        )


def check_feature_places(
    feature_places: FeaturePlaces, pixel_weight: float, encodes_visible: bool
) -> None:
    """Raises ``ValueError`` if features of visible patches are asked for but cannot be learned.

    Args:
        feature_places: see :func:`ddae`.
        pixel_weight: weight of the pixels; positive if only visible patches' features are learned.
        encodes_visible: whether the encoder is given visible patches only.
    """
    if feature_places == "hidden":
        return
    if not encodes_visible:
        raise ValueError(
            f"feature_places={feature_places!r} aligns what the encoder makes of visible patches: "
            "set model.encoder_input='visible'"
        )
    if feature_places == "visible" and not pixel_weight:
        raise ValueError(
            "feature_places='visible', pixel_weight=0: nothing is predicted of hidden patches; set "
            "pixel_weight or feature_places='both'"
        )


SPEC = MethodSpec(
    name="ddae",
    summary="pixels and momentum features of hidden patches, at several depths",
    build=ddae,
    papers=(PAPER,),
)
