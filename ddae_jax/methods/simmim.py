"""SimMIM: the pixels of hidden patches, by absolute error."""

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
    """Every supervised depth predicts the pixels of hidden patches, by their mean absolute error.

    With ``full`` input, random masks of 60 % in units of 32 pixels, pixels as they are, shared
    relative positions, layer scale and the mode ``last`` this is the published SimMIM.

    Args:
        encoder: the vision transformer.
        decoder: None for ``full`` input.
        channels, normalize_pixels, options: see :func:`predict_pixels`.

    Raises:
        ValueError: in use, if the images are of another size than the encoder's, or a patch has one
            value and is to be normalised.

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
