"""Prediction of hidden patches' pixels, which several methods share."""

from collections.abc import Callable

from jaxtyping import Array

from ddae_jax.methods.make_method import make_method
from ddae_jax.methods.method import Method
from ddae_jax.methods.objectives import Objective, WeightSchedule
from ddae_jax.methods.targets import pixel_targets, visualize_pixels
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT


def pixel_objective(
    encoder: ViT,
    channels: int,
    error: Callable[[Array, Array], Array],
    weight: float = 1.0,
    schedule: WeightSchedule | None = None,
) -> Objective:
    """Returns the objective of a patch's ``patch_size**2 * channels`` pixel values."""
    return Objective(encoder.patch_size**2 * channels, error, weight, schedule)


def predict_pixels(
    encoder: ViT,
    decoder: Decoder | None,
    error: Callable[[Array, Array], Array],
    channels: int,
    normalize_pixels: bool,
    **options,
) -> Method:
    """Builds a method whose only objective is the pixels of hidden patches.

    Args:
        encoder: the vision transformer.
        decoder: a light decoder for ``visible`` input; None for ``full`` input.
        error: ``(predictions, targets) -> error of each patch``.
        channels: number of image channels.
        normalize_pixels: whether targets are normalised patch by patch.
        options: masking and supervision, see
            :func:`ddae_jax.methods.make_method.make_method`.
    """

    def targets(teacher, images):
        return {"pixels": pixel_targets(images, encoder.patch_size, normalize_pixels)[None]}

    return make_method(
        encoder,
        decoder,
        {"pixels": pixel_objective(encoder, channels, error)},
        targets,
        visualize_predictions=visualize_pixels(encoder, normalize_pixels),
        **options,
    )
