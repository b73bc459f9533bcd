"""DDAE: pixels and momentum features of hidden patches, under deep dynamic supervision."""

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
    """Builds DDAE, which predicts two things of each hidden patch at every supervised depth:

    1. *pixels*: its raw pixels, normalised patch by patch;
    2. *features*: those of the momentum encoder, which sees the whole image, at the SAME depth,
       normalised.

    Both errors are mean squared ones. An objective of weight 0 is left out.

    Args:
        encoder, decoder: a vision transformer, and a light decoder for ``visible`` input or None.
        depths: supervised depths (see :func:`ddae_jax.methods.supervision.supervised_depths`).
        channels: of the images.
        pixel_weight, feature_weight: ``lambda`` of the two objectives.
        pixel_fade, feature_start, feature_warmup: see :func:`weight_schedules`.
        feature_normalization: see :data:`ddae_jax.methods.features.NORMALIZED_AXES`.
        feature_places: patches whose features are learned: ``hidden`` ones, through the decoder and
            weighed by distance; ``visible`` ones, by the encoder's own, all alike; or ``both``.
        normalize_predictions: see :meth:`ddae_jax.methods.features.FeatureTargets.error`.
        normalize_pixels: whether pixel targets are normalised patch by patch.
        options: masking and supervision, see :func:`ddae_jax.methods.make_method.make_method`.

    Raises ``ValueError`` as :func:`check_weights` and :func:`check_feature_places` do.

    Source: Chen et al. 2024, DDAE; weights over a run: Dong et al. 2022, BootMAE.
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
    """Returns the factors of the pixels' and the features' weight over a run; None for 1.

    A teacher that has learned nothing has nothing to teach: the features' weight sets in later,
    rises, and takes the place of the pixels'.

    Args:
        pixel_fade: share of the pixels' weight that is gone once the features' has risen.
        feature_start: share of the run in which features have no weight.
        feature_warmup: share of the run over which their weight then rises, linearly.
        has_both: whether both are learned; one alone keeps its weight throughout.
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
    """Returns 0 until ``start``, then rises linearly to 1 over ``length``; all shares of a run."""
    if not length:
        return jnp.where(progress >= start, 1.0, 0.0)
    return jnp.clip((progress - start) / length, 0.0, 1.0)


def check_weights(pixel_weight: float, feature_weight: float) -> None:
    """Raises ``ValueError`` if a weight is negative, or both are 0."""
    if min(pixel_weight, feature_weight) < 0 or not (pixel_weight or feature_weight):
        raise ValueError(
            f"pixel_weight={pixel_weight}, feature_weight={feature_weight}; "
            "weights are not negative, and one of them is positive"
        )


def check_feature_places(
    feature_places: FeaturePlaces, pixel_weight: float, encodes_visible: bool
) -> None:
    """Raises ``ValueError`` if features of visible patches cannot be learned."""
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
