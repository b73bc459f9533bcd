"""Tiny encoders to export, one for each way to be written, and random parameters for them."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from ddae_jax import export as export_command
from ddae_jax.config import pretrain_defaults
from ddae_jax.data.view import USUAL_SHARE
from ddae_jax.interop.backbones import Backbone
from ddae_jax.interop.library_export import (
    MaeDecoder,
    export_timm,
    export_transformers,
    export_transformers_mae,
)
from ddae_jax.jobs.card_code import Subject
from ddae_jax.jobs.model_card import model_card
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.vit import Features, ViT

BEIT = {"positions": "none", "relative_positions": "shared", "has_key_bias": False}
BEIT |= {"layer_scale": 0.1}
PER_BLOCK = BEIT | {"relative_positions": "per_block", "layer_scale": None}
WIDE = {"image_size": (8, 12)}

ENCODERS = {
    "timm_vit": {},
    "timm_vit_mean_of_all": {"use_class_token": False, "positions": "none", **WIDE},
    "timm_vit_scaled": {"layer_scale": 0.1, "activation": "quick_gelu", "norm_epsilon": 1e-5},
    "timm_vit_normed": {"norms_embedding": True, "activation": "gelu_tanh", "positions": "none"},
    "timm_beit": BEIT,
    "timm_beit_per_block": PER_BLOCK | WIDE | {"has_key_bias": True, "positions": "sincos"},
    "transformers_vit": {"norm_epsilon": 1e-5, "activation": "gelu_tanh", **WIDE},
    "transformers_beit": BEIT,
    "transformers_beit_per_block": PER_BLOCK | {"positions": "learned", "has_key_bias": True},
    "transformers_mae": {},
    "timm_vit_norm_of_mean": {},
    "timm_beit_norm_of_mean": BEIT,
    "transformers_vit_norm_of_mean": {},
    "transformers_beit_norm_of_mean": BEIT,
}
"""Options beside those of :func:`tiny_encoder`, by the name of what is exported."""

NORM_OF_MEAN = {"pool": "normed_mean"}
SQUASH = {"crop_mode": "squash"}
EVALUATION = {
    "timm_vit_mean_of_all": {"crop_share": 0.8, "interpolation": "bilinear"},
    "timm_vit_scaled": {"pool": "class_token", "crop_share": 1.0},
    "timm_vit_normed": SQUASH | {"crop_share": 0.8},
    "transformers_beit": {"crop_share": 0.9, "interpolation": "bilinear"},
    "transformers_beit_per_block": {"pool": "class_token", "crop_share": 1.0},
    "timm_vit_norm_of_mean": NORM_OF_MEAN | {"crop_share": 0.9, "interpolation": "lanczos"},
    "timm_beit_norm_of_mean": NORM_OF_MEAN,
    "transformers_vit_norm_of_mean": NORM_OF_MEAN | SQUASH | {"crop_share": 1.0},
    "transformers_beit_norm_of_mean": NORM_OF_MEAN | SQUASH | {"crop_share": 0.8},
}
"""What is not as usual in ``config.evaluation``, by the same names."""

MAX_VALUE = {"timm_vit": 4095.0, "timm_vit_scaled": 3000.0, "transformers_beit": 65535.0}
MAX_VALUE |= {"transformers_beit_per_block": 4095.0, "transformers_vit": 0.9}
"""What becomes white in images of more than 8 bits, by the same names; where it is given."""


def tiny_encoder(**options) -> ViT:
    """A narrow encoder of two blocks, for images of 8 x 8 pixels in patches of 4."""
    size = {"image_size": (8, 8), "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
    return ViT(**{**size, "mlp_ratio": 2.0, **options})


def channels_of(name: str) -> int:
    """One of the encoders of each library sees grey images."""
    return 1 if name.endswith(("_scaled", "_per_block")) else 3


def random_like(tree, seed: int):
    """Random arrays of these shapes, alike on every machine: scales around 1, others around 0."""
    rng = np.random.Generator(np.random.PCG64(seed))

    def draw(path, leaf):
        values = rng.integers(-128, 128, leaf.shape).astype(np.float32) / 512
        return values + np.float32(path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(draw, tree)


def random_params(encoder: ViT, channels: int, seed: int = 0, is_masked: bool = False):
    """Parameters of an encoder, all of them random; with a mask token if asked."""
    images = np.zeros((1, *encoder.image_size, channels), np.float32)
    mask = np.ones((1, encoder.grid[0] * encoder.grid[1]), bool) if is_masked else None
    init = functools.partial(encoder.init, mask=mask)
    return random_like(jax.eval_shape(init, jax.random.key(0), images)["params"], seed)


def config_of(encoder: ViT, channels: int, **evaluation) -> ConfigDict:
    """The config of a run that trained an encoder, as far as an export asks for it."""
    config = pretrain_defaults()
    config.model.image_size, config.model.patch_size = encoder.image_size, encoder.patch_size
    config.model.dtype = "float32"
    is_grey = channels == 1
    config.data.channels = channels
    config.data.mean, config.data.std = (
        ((0.2,), (0.5,)) if is_grey else ((0.1, 0.2, 0.3), (0.5, 0.4, 0.3))
    )
    config.evaluation.crop_share = USUAL_SHARE
    config.evaluation.update(evaluation)
    return config


def config_named(name: str) -> ConfigDict:
    """The config of the run that trained the named encoder."""
    encoder, channels = tiny_encoder(**ENCODERS[name]), channels_of(name)
    config = config_of(encoder, channels, **EVALUATION.get(name, {}))
    config.data.max_value = MAX_VALUE.get(name, 0.0)
    return config


def backbone_of(encoder: ViT, params, channels: int, **evaluation) -> Backbone:
    """An encoder as it is exported, of a run with these keys of ``evaluation``."""
    config = config_of(encoder, channels, **evaluation)
    return export_command.backbone_of(encoder, params, config)


def tiny_decoder(encoder: ViT) -> Decoder:
    """A decoder of one block."""
    return Decoder(encoder.grid, width=8, depth=1, num_heads=2, mlp_ratio=2.0)


def random_decoder_params(encoder: ViT, channels: int):
    """Random parameters of the decoder, and of a head that predicts pixels."""
    decoder = tiny_decoder(encoder)
    num_patches = encoder.grid[0] * encoder.grid[1]
    features = Features(np.zeros((1, 1, 2, encoder.width), np.float32), has_class_token=True)
    mask = np.arange(num_patches)[None] > 0
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), features, mask)["params"]
    values = encoder.patch_size**2 * channels
    head = {
        "kernel": jax.ShapeDtypeStruct((decoder.width, values), np.float32),
        "bias": jax.ShapeDtypeStruct((values,), np.float32),
    }
    return random_like({"decoder": shapes, "head": head}, seed=3)


def export(name: str):
    """The named encoder, its parameters, and what is exported of it."""
    encoder, channels = tiny_encoder(**ENCODERS[name]), channels_of(name)
    params = random_params(encoder, channels, seed=list(ENCODERS).index(name))
    backbone = backbone_of(encoder, params, channels, **EVALUATION.get(name, {}))
    if name == "transformers_mae":
        of_decoder = random_decoder_params(encoder, channels)
        positions = sincos_positions(encoder.grid, 8)
        decoder = {"decoder": of_decoder["decoder"] | {"positions": positions}}
        mae = MaeDecoder(of_decoder | decoder, 2, mask_ratio=0.5, normalizes_pixels=True)
        return encoder, params | {"of_decoder": of_decoder}, export_transformers_mae(backbone, mae)
    to_library = export_timm if name.startswith("timm") else export_transformers
    return encoder, params, to_library(backbone)


def card_of(name: str, folder: str) -> str:
    """The card of the named encoder, in a folder of that name."""
    encoder = tiny_encoder(**ENCODERS[name])
    subject = Subject(
        library=name.partition("_")[0],
        network=export(name)[2].network,
        folder=folder,
        encoder="student",
        step=0,
        use_class_token=encoder.use_class_token,
    )
    return model_card(subject, config_named(name))


def code_of(card: str) -> str:
    """The code in a card."""
    return card.partition("```python\n")[2].partition("\n```")[0]


def images_for(encoder: ViT, channels: int):
    """Two images of random normalised pixels, the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(99))
    return rng.integers(-256, 256, (2, *encoder.image_size, channels)).astype(np.float32) / 128
