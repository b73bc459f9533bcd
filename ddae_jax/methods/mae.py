"""MAE: predicts the pixels of hidden patches from visible ones, by squared error."""

from ddae_jax.methods.method import Method
from ddae_jax.methods.pixels import predict_pixels
from ddae_jax.methods.spec import MethodSpec
from ddae_jax.methods.targets import squared_error
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
    """Builds MAE: every supervised depth predicts hidden patches' pixels, by mean squared error.

    With ``visible`` input, random masks of 75 %, per-patch normalisation and the mode ``last``,
    this is the published MAE. Intermediate depths use the SAME final norm, decoder and head.

    Args:
        encoder: the vision transformer.
        decoder: a light decoder for ``visible`` input; None for ``full`` input.
        channels, normalize_pixels, options: see :func:`predict_pixels`.

    Raises:
        ValueError: when the method is used, if the images' size is not the encoder's, or if
            patches of a single value are to be normalised.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners".
    """
    return predict_pixels(encoder, decoder, squared_error, channels, normalize_pixels, **options)


SPEC = MethodSpec(
    name="mae",
    summary="the pixels of hidden patches, from visible ones, by squared error",
    build=mae,
    papers=(
        "He, Chen, Xie, Li, Dollár, Girshick 2022. *Masked Autoencoders Are Scalable Vision "
        "Learners*. CVPR. arXiv:2111.06377",
    ),
    recipe={
        "model.encoder_input": "visible",
        "decoder.kind": "self",
        "decoder.depth": 8,
        # How deep supervision decodes intermediate depths is this package's choice.
        "decoder.intermediate_share": 0.25,
        "decoder.intermediate_blocks": 1,
        "mask.kind": "random",
        "mask.ratio": 0.75,
        "targets.normalize_pixels": True,
        "optimizer.decay_also": "class_token,mask_token",
    },
)
