"""SimMIM: predicts the pixels of hidden patches, by absolute error."""

from ddae_jax.methods.method import Method
from ddae_jax.methods.pixels import predict_pixels
from ddae_jax.methods.spec import DECAYED_BY_BEIT, RELATIVE_POSITIONS, MethodSpec
from ddae_jax.methods.targets import absolute_error
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT


def simmim(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    channels: int = 3,
    normalize_pixels: bool = True,
    **options,
) -> Method:
    """Builds SimMIM: every supervised depth predicts hidden patches' pixels, by absolute error.

    With ``full`` input, random masks of 60 % in units of 32 pixels, pixels that are not normalised
    by patch, shared relative positions, layer scale and the mode ``last``, this is the published
    SimMIM.

    Args:
        encoder: the vision transformer.
        decoder: a light decoder for ``visible`` input; None for ``full`` input.
        channels, normalize_pixels, options: see :func:`predict_pixels`.

    Raises:
        ValueError: when the method is used, if the images' size is not the encoder's, or if
            patches of a single value are to be normalised.

    Source: Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling".
    """
    return predict_pixels(encoder, decoder, absolute_error, channels, normalize_pixels, **options)


SPEC = MethodSpec(
    name="simmim",
    summary="the pixels of hidden patches, by absolute error",
    build=simmim,
    papers=(
        "Xie et al. 2022. *SimMIM: A Simple Framework for Masked Image Modeling*. CVPR. "
        "arXiv:2111.09886",
    ),
    recipe={
        "model.encoder_input": "full",
        "mask.kind": "random",
        "mask.ratio": 0.6,
        "mask.unit": 2,  # 32 pixels, for patches of 16
        "targets.normalize_pixels": False,
        "optimizer.decay_also": DECAYED_BY_BEIT,
        **RELATIVE_POSITIONS,
    },
)
