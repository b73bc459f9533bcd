"""DDAE: pixels and momentum features of hidden patches, under deep dynamic supervision."""

from ddae_jax.methods.method import Method, Objective, make_method
from ddae_jax.methods.pixels import pixel_objective
from ddae_jax.methods.targets import feature_error, pixel_targets, show_pixels, squared_error
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT


def ddae(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    depths: tuple[int, ...],
    channels: int = 3,
    pixel_weight: float = 1.0,
    feature_weight: float = 1.0,
    normalize_pixels: bool = True,
    **options,
) -> Method:
    """Every supervised depth predicts two things of each hidden patch, through one head:

    1. *pixels*: its raw pixels, normalised patch by patch;
    2. *features*: what the momentum encoder, which sees the whole image, makes of it at the SAME
       depth, layer-normalised without affine.

    Both errors are mean squared ones. An objective of weight 0 is left out.

    Args:
        encoder: the vision transformer.
        decoder: None for ``full`` input, a light decoder for ``visible`` input.
        depths: supervised depths (see :func:`ddae_jax.methods.supervision.supervised_depths`).
        channels: of the images.
        pixel_weight, feature_weight: ``lambda`` of the two objectives.
        normalize_pixels: whether pixel targets are normalised patch by patch.
        options: masking and supervision, see :func:`ddae_jax.methods.method.make_method`.

    Raises:
        ValueError: if both weights are 0, or one is negative.

    Source: Chen et al., DDAE: Deep Dynamic AutoEncoder for vision BERT pretraining.
    """
    objectives = {
        "pixels": pixel_objective(encoder, channels, squared_error, pixel_weight),
        "features": Objective(encoder.width, feature_error, feature_weight),
    }
    if min(pixel_weight, feature_weight) < 0 or not (pixel_weight or feature_weight):
        raise ValueError(
            f"pixel_weight={pixel_weight}, feature_weight={feature_weight}; "
            "weights are not negative, and one of them is positive"
        )
    objectives = {name: o for name, o in objectives.items() if o.weight}

    def targets(teacher, images):
        found = {}
        if "pixels" in objectives:
            found["pixels"] = pixel_targets(images, encoder.patch_size, normalize_pixels)[None]
        if "features" in objectives:
            features = encoder.apply({"params": teacher}, images, depths=depths, normalize=False)
            found["features"] = features.patches
        return found

    return make_method(
        encoder,
        decoder,
        objectives,
        targets,
        depths=depths,
        has_momentum_encoder="features" in objectives,
        show=show_pixels(encoder, normalize_pixels) if "pixels" in objectives else None,
        **options,
    )
