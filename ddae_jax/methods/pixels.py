"""Pixels of hidden patches, as several methods predict them."""

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
    """The pixels of a patch: ``patch_size**2 * channels`` values, by an error of each patch."""
    return Objective(encoder.patch_size**2 * channels, error, weight, schedule)


def predict_pixels(
    encoder: ViT,
    decoder: Decoder | None,
    error: Callable[[Array, Array], Array],
    channels: int,
    normalize_pixels: bool,
    **options,
) -> Method:
    """A method whose one objective is the pixels of hidden patches.

    Args:
        encoder: the vision transformer.
        decoder: a light decoder for ``visible`` input; None for ``full`` input.
        error: ``(predictions, targets) -> error of each patch``.
        channels: of the images.
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
