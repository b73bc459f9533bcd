"""Builder of methods: from ``config.method`` and the networks to what is trained."""

import functools
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.builders.networks import build_decoder, build_encoder
from ddae_jax.builders.tokenizers import load_teacher, load_tokenizer
from ddae_jax.config.pretraining import mask_unit
from ddae_jax.masking import block_mask, num_masked_patches, random_mask, smallest_block
from ddae_jax.methods import find_method
from ddae_jax.methods.spec import MethodSpec
from ddae_jax.methods.supervision import supervised_depths
from ddae_jax.methods.task import TrainTask
from ddae_jax.patches import Grid


def build_method(config: ConfigDict, *, stand_in_missing: bool = False) -> TrainTask:
    """Builds the task that the config trains: a method that hides patches, or a tokenizer.

    Args:
        config: of the run.
        stand_in_missing: whether to replace a missing tokenizer or teacher by one of the encoder's
            size whose parameters are ``ShapeDtypeStruct`` s, which is enough to compile with.

    Raises:
        ValueError: for a tokenizer or teacher that does not fit.
        FileNotFoundError: for one that is not there.
    """
    spec = find_method(config.method)
    encoder = build_encoder(config)
    options = _own_options(spec, config, stand_in_missing)
    if spec.kind == "masked":
        options |= _masking(config, encoder.grid) | _supervision(config, encoder.depth)
    return spec.build(encoder, build_decoder(config), **options)


def _own_options(spec: MethodSpec, config: ConfigDict, stand_in_missing: bool) -> dict[str, Any]:
    """Returns the values of a method's own options, by the names of its parameters."""
    section = config.targets if spec.kind == "masked" else config.tokenizer
    options = {name: value for name, value in section.items() if name in spec.options}
    if "channels" in spec.options:
        options["channels"] = config.data.channels
    if "tokenizer" in spec.options:
        path = config.targets.tokenizer
        options["tokenizer"] = load_tokenizer(path, config, stand_in_missing=stand_in_missing)
    if "teacher" in spec.options:
        path = config.tokenizer.teacher
        options["teacher"] = load_teacher(path, config, stand_in_missing=stand_in_missing)
    return options


def _masking(config: ConfigDict, grid: Grid) -> dict[str, Any]:
    """Returns the mask sampler of the config, and the number of patches it hides."""
    num_masked = num_masked_patches(grid, config.mask.ratio, mask_unit(config))
    masks = {
        "random": functools.partial(random_mask, unit=config.mask.unit),
        "block": functools.partial(
            block_mask, min_block=smallest_block(num_masked, config.mask.min_block_share)
        ),
    }
    sample_mask = functools.partial(masks[config.mask.kind], grid=grid, num_masked=num_masked)
    return {"sample_mask": sample_mask, "num_masked": num_masked}


def _supervision(config: ConfigDict, depth: int) -> dict[str, Any]:
    """Returns the options of supervision for an encoder of ``depth`` blocks."""
    options, decoder = config.supervision, config.decoder
    # The config's weights are for several depths; mode `last` supervises only one.
    depth_weights = None if options.mode == "last" else tuple(options.depth_weights) or None
    return {
        "depths": supervised_depths(options.mode, depth, tuple(options.depths)),
        "mode": options.mode,
        "weighting": options.weighting,
        "normalizes_intermediate": options.normalize_intermediate,
        "intermediate_share": decoder.intermediate_share,
        "has_decoder_per_depth": not decoder.is_shared,
        "depth_weights": depth_weights,
        "beta_init": options.beta_init,
        "beta_gradient": options.beta_gradient,
    }
