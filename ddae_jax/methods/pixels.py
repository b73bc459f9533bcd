"""MAE and SimMIM: the pixels of hidden patches, by squared or absolute error."""

from collections.abc import Callable

from jaxtyping import Array

from ddae_jax.methods.method import Method, Objective, make_method
from ddae_jax.methods.targets import absolute_error, pixel_targets, show_pixels, squared_error
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT


def mae(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    channels: int = 3,
    normalize_pixels: bool = True,
    **options,
) -> Method:
    """Every supervised depth predicts the pixels of hidden patches, by their mean squared error.

    With ``visible`` input, random masks of 75 %, per-patch normalisation and the mode ``last`` this
    is the published MAE. Intermediate depths go through the SAME final norm, decoder and head.

    Args:
        encoder: the vision transformer.
        decoder: a light decoder for ``visible`` input; None for ``full`` input.
        channels, normalize_pixels, options: see :func:`predict_pixels`.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners".
    """
    return predict_pixels(encoder, decoder, squared_error, channels, normalize_pixels, **options)


def simmim(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    channels: int = 3,
    normalize_pixels: bool = True,
    **options,
) -> Method:
    """Every supervised depth predicts the pixels of hidden patches, by their mean absolute error.

    With ``full`` input, random masks of 60 % in units of 32 pixels, pixels as they are and the mode
    ``last`` this is the published SimMIM.

    Args:
        encoder: the vision transformer.
        decoder: None for ``full`` input.
        channels, normalize_pixels, options: see :func:`predict_pixels`.

    Source: Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling".
    """
    return predict_pixels(encoder, decoder, absolute_error, channels, normalize_pixels, **options)


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
        encoder, decoder: see :func:`mae`.
        error: ``(predictions, targets) -> error of each patch``.
        channels: of the images.
        normalize_pixels: whether targets are normalised patch by patch.
        options: masking and supervision, see :func:`ddae_jax.methods.method.make_method`.
    """

    def targets(teacher, images):
        return {"pixels": pixel_targets(images, encoder.patch_size, normalize_pixels)[None]}

    return make_method(
        encoder,
        decoder,
        {"pixels": Objective(encoder.patch_size**2 * channels, error)},
        targets,
        show=show_pixels(encoder, normalize_pixels),
        **options,
    )
