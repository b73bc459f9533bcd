"""Builders of networks, and of the normalisation of the pixel values they are given."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8
from ml_collections import ConfigDict

from ddae_jax.methods import METHODS
from ddae_jax.methods.task import Images
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.tokenizer import Tokenizer, make_tokenizer
from ddae_jax.models.vit import SIZES, ViT


def build_encoder(config: ConfigDict) -> ViT:
    """Builds the encoder that the config describes."""
    model = config.model
    return ViT(
        image_size=tuple(model.image_size),
        patch_size=model.patch_size,
        positions=model.positions,
        relative_positions=model.relative_positions,
        has_key_bias=model.has_key_bias,
        layer_scale=model.layer_scale or None,
        norms_embedding=model.norms_embedding,
        activation=model.activation,
        norm_epsilon=model.norm_epsilon,
        use_class_token=model.use_class_token,
        drop_path_rate=model.drop_path_rate,
        **SIZES[model.size]._asdict(),
        **_computation(config),
    )


def build_decoder(config: ConfigDict) -> Decoder | None:
    """Builds the decoder, which fills in hidden patches; returns None if they enter the encoder."""
    if config.model.encoder_input == "full":
        return None
    options = config.decoder
    return Decoder(
        build_encoder(config).grid,
        width=options.width,
        depth=options.depth,
        num_heads=options.num_heads,
        kind=options.kind,
        intermediate_blocks=options.intermediate_blocks,
        **_computation(config),
    )


def build_tokenizer(config: ConfigDict, teacher_width: int) -> Tokenizer:
    """Builds a tokenizer of the config's encoder that predicts ``teacher_width`` values a patch."""
    options = config.tokenizer
    return make_tokenizer(
        build_encoder(config), options.decoder_depth, options.code_width, teacher_width
    )


def untrained_encoder_params(config: ConfigDict) -> PyTree:
    """Returns ``params["encoder"]`` of a run with this config before its first step."""
    encoder = build_encoder(config)
    images = jnp.zeros((1, *encoder.image_size, config.data.channels))
    mask = None
    if METHODS[config.method].kind == "masked" and config.model.encoder_input == "full":
        mask = jnp.ones((1, encoder.grid[0] * encoder.grid[1]), bool)  # creates the mask token
    # Inside another module, as in training: Flax derives random keys from the parameters' paths.
    init = jax.jit(lambda key: _Holder(encoder).init(key, images, mask=mask))
    return init(jax.random.key(config.seed))["params"]["encoder"]


def build_normalize(
    config: ConfigDict,
) -> Callable[[UInt8[Array, "*b c"]], Float[Array, "*b c"]]:
    """Builds the function from pixel values 0..255 to float32 of zero mean and unit deviation.

    Mean and deviation of each channel are those of the config.
    """
    mean, std = jnp.asarray(config.data.mean), jnp.asarray(config.data.std)
    return lambda images: (images.astype(jnp.float32) / 255 - mean) / std


def renormalize(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    new_mean: tuple[float, ...],
    new_std: tuple[float, ...],
) -> Callable[[Images], Images]:
    """Builds the function that converts normalised images to another mean and deviation."""
    scale = jnp.asarray(std) / jnp.asarray(new_std)
    shift = (jnp.asarray(mean) - jnp.asarray(new_mean)) / jnp.asarray(new_std)
    return lambda images: images * scale + shift


class _Holder(nn.Module):
    """A module that contains an encoder, for the path of its parameters."""

    encoder: ViT

    def __call__(self, *arguments, **options):
        return self.encoder(*arguments, **options)


def _computation(config: ConfigDict) -> dict[str, Any]:
    """Returns the options that change how a network is computed, but not its parameters."""
    return {
        "rematerialization": config.model.rematerialization,
        "attention_form": config.model.attention_form,
        "dtype": jnp.dtype(config.model.dtype),
    }
