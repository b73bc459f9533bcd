"""The builder that methods share: adds a student and a supervision to objectives and targets."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PRNGKeyArray

from ddae_jax.methods.masked_image_model import Aggregation, MaskedImageModel
from ddae_jax.methods.method import Method
from ddae_jax.methods.objectives import Objective
from ddae_jax.methods.supervision import DeepDynamicSupervision, Mode
from ddae_jax.methods.task import Mask, Predictions
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT


def make_method(
    encoder: ViT,
    decoder: Decoder | None,
    objectives: Mapping[str, Objective],
    targets: Callable[..., Predictions],
    *,
    sample_mask: Callable[[PRNGKeyArray, int], Mask],
    num_masked: int,
    depths: tuple[int, ...],
    mode: Mode = "deep_dynamic",
    weighting: str = "power",
    beta_init: float = -0.5,
    depth_weights: tuple[float, ...] | None = None,
    intermediate_share: float = 1.0,
    has_decoder_per_depth: bool = False,
    normalizes_intermediate: bool = True,
    aggregation: Aggregation | None = None,
    **options: Any,
) -> Method:
    """Builds a method from objectives and targets, under deep dynamic supervision.

    Args:
        encoder, decoder, has_decoder_per_depth, normalizes_intermediate: see
            :class:`MaskedImageModel`.
        objectives, targets, sample_mask, num_masked: see :class:`Method`.
        depths: supervised depths (see :func:`ddae_jax.methods.supervision.supervised_depths`).
        mode, weighting, beta_init: see :class:`DeepDynamicSupervision`.
        depth_weights: the weight ``alpha`` of each of ``depths``; 1 each by default.
        intermediate_share: if there is a decoder, the share of an image's hidden patches that
            depths before the last one predict; see :func:`num_sampled_patches`.
        aggregation: see :class:`Aggregation`; its readout is supervised with weight 1, as one more
            depth, ``encoder.depth + aggregation.num_blocks``.
        options: further attributes of the :class:`Method`, such as ``has_momentum_encoder``.
    """
    if aggregation is not None:
        depths = (*depths, encoder.depth + aggregation.num_blocks)
        depth_weights = None if depth_weights is None else (*depth_weights, 1.0)
    decodes_several = decoder is not None and len(depths) > 1
    num_sampled = num_masked
    if decodes_several:
        num_sampled = num_sampled_patches(num_masked, intermediate_share)
    student = MaskedImageModel(
        encoder=encoder,
        decoder=decoder,
        output_widths={name: o.width for name, o in objectives.items()},
        depths=depths,
        aggregation=aggregation,
        has_decoder_per_depth=has_decoder_per_depth and decodes_several,
        normalizes_intermediate=normalizes_intermediate,
    )
    supervision = DeepDynamicSupervision(
        objectives=tuple(objectives),
        depths=depths,
        objective_weights=tuple(o.weight for o in objectives.values()),
        depth_weights=depth_weights,
        mode=mode,
        weighting=weighting,
        beta_init=beta_init,
    )
    num_sampled = num_sampled if num_sampled < num_masked else None
    return Method(
        student, supervision, objectives, targets, sample_mask, num_masked, num_sampled, **options
    )


def num_sampled_patches(num_masked: int, intermediate_share: float) -> int:
    """Returns how many hidden patches of an image are predicted by depths before the last one.

    Raises ``ValueError`` if the share lies outside (0, 1] or leaves no patch.
    """
    if not 0 < intermediate_share <= 1:
        raise ValueError(
            f"intermediate_share={intermediate_share}; it is the share of hidden patches that "
            "intermediate depths decode and lies in (0, 1]"
        )
    num_sampled = round(intermediate_share * num_masked)
    if not num_sampled:
        raise ValueError(
            f"intermediate_share={intermediate_share} leaves none of the {num_masked} hidden "
            f"patches of an image to intermediate depths; {1 / num_masked:.3f} leaves one"
        )
    return num_sampled
