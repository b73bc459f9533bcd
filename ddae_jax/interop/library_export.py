"""Export of encoders to folders that timm and transformers load.

:func:`ddae_jax.interop.backbones.read_backbone` reads such a folder back. Each library has two
networks for an encoder: a plain vision transformer, and BEiT. An encoder whose features neither can
compute is refused, with the option that prevents it.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from ddae_jax.interop.backbones import Backbone
from ddae_jax.interop.digests import digest_metadata
from ddae_jax.interop.params_to_weights import (
    timm_weights,
    transformers_mae_weights,
    transformers_weights,
)
from ddae_jax.interop.preprocessing import OWN_KEY
from ddae_jax.interop.weights_to_params import Tree, Weights

_ACTIVATIONS_OF_TRANSFORMERS = MappingProxyType(
    {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}
)
_SIZES_OF_TIMM = MappingProxyType({192: "tiny", 384: "small", 1024: "large"})


class ExportedFolder(NamedTuple):
    """Content of a folder to be written.

    Attributes:
        network: name of the library's class.
        weights: arrays by the library's names.
        files: contents of the JSON files, by file name.
    """

    network: str
    weights: Weights
    files: Mapping[str, Mapping[str, Any]]


class MaeDecoder(NamedTuple):
    """Decoder of a masked autoencoder, and how the autoencoder was trained.

    Attributes:
        params: parameters ``decoder``, with its fixed ``positions``, and ``head``.
        num_heads: number of attention heads of the decoder.
        mask_ratio: hidden share of patches.
        normalizes_pixels: whether the targets are normalised within each patch.
    """

    params: Tree
    num_heads: int
    mask_ratio: float
    normalizes_pixels: bool


def export_timm(backbone: Backbone) -> ExportedFolder:
    """Exports an encoder to timm's ``VisionTransformer`` or ``Beit``.

    The network returns the pooled features.

    Args:
        backbone: the encoder. Its pool and preprocessing must be known, and fixed positions must
            be given as learned ones.

    Returns:
        The content of the folder.

    Raises:
        ValueError: if neither network can be the encoder. The message names the option.
    """
    options = backbone.options
    is_beit = options["relative_positions"] != "none" or not options["has_key_bias"]
    network = "Beit" if is_beit else "VisionTransformer"
    limits = _limits_of_timm_beit(options) if is_beit else _limits_of_timm_vit(options)
    _check(limits, options, f"timm's {network}", "transformers")
    params = {name: value for name, value in backbone.params.items() if name != "mask_token"}
    params = _without_key_bias(params) if is_beit else _with_bias_in_positions(params, options)
    pool = backbone.pool
    own = (
        _beit_of_timm(options, pool)
        if is_beit
        else _vit_of_timm(options, pool, "positions" in params)
    )
    global_pool = "token" if pool == "class_token" else "avg"
    channels, size = len(backbone.mean), list(options["image_size"])
    config = {
        "architecture": _architecture_of_timm(options, is_beit),
        "num_classes": 0,
        "num_features": options["width"],
        "global_pool": global_pool,
        "model_args": {
            "img_size": size,
            "patch_size": options["patch_size"],
            "in_chans": channels,
            "num_classes": 0,
            "global_pool": global_pool,
            "embed_dim": options["width"],
            "depth": options["depth"],
            "num_heads": options["num_heads"],
            "mlp_ratio": options["mlp_ratio"],
            "init_values": options["layer_scale"] or 0.0,  # for None, timm takes its default
            **own,
        },
        "pretrained_cfg": {
            "input_size": [channels, *size],
            "fixed_input_size": True,
            **backbone.preprocessing.to_timm(),
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    weights = timm_weights(params, channels, is_beit)
    if pool == "normed_mean":
        weights = _renamed(weights, "norm.", "fc_norm.")
    return ExportedFolder(network, weights, {"config.json": config})


def export_transformers(backbone: Backbone) -> ExportedFolder:
    """Exports an encoder to transformers' ``ViTModel``, or to ``BeitModel`` if it needs that.

    The network's ``last_hidden_state`` holds all tokens after the final norm, or before it for a
    ``BeitModel`` that norms the mean of the patches. A ``ViTModel`` always has positions; they are
    0 if the encoder has none.

    Args:
        backbone: as in :func:`export_timm`.

    Returns:
        The content of the folder.

    Raises:
        ValueError: if neither network can be the encoder. The message names the option.
    """
    options, params, channels = backbone.options, dict(backbone.params), len(backbone.mean)
    is_beit = (
        options["relative_positions"] != "none"
        or not options["has_key_bias"]
        or options["layer_scale"] is not None
    )
    network = "BeitModel" if is_beit else "ViTModel"
    limits = _limits_of_transformers(options)
    if is_beit:  # otherwise its positions of both kinds would be those of another grid
        limits["image_size"] = (_is_square(options), "is for square images")
    _check(limits, options, f"transformers' {network}", "timm")
    config = _config_of_transformers(backbone) | {"architectures": [network]}
    norms_mean = is_beit and backbone.pool == "normed_mean"
    if is_beit:
        params = _without_key_bias(params)
        config |= {
            "model_type": "beit",
            "use_mask_token": "mask_token" in params,
            "use_absolute_position_embeddings": "positions" in params,
            "use_relative_position_bias": options["relative_positions"] == "per_block",
            "use_shared_relative_position_bias": options["relative_positions"] == "shared",
            "use_mean_pooling": norms_mean,  # True norms the mean, not the patches
            "layer_scale_init_value": options["layer_scale"] or 0.0,
            "drop_path_rate": 0.0,
        }
    else:
        params.pop("mask_token", None)
        params.setdefault("positions", _no_positions(options))
        config |= {"model_type": "vit", "qkv_bias": True}
    weights = transformers_weights(params, channels)
    if norms_mean:
        weights = _renamed(weights, "layernorm.", "pooler.layernorm.")
    return ExportedFolder(
        network,
        weights,
        {"config.json": config, "preprocessor_config.json": _preprocessor(backbone)},
    )


def export_transformers_mae(backbone: Backbone, decoder: MaeDecoder) -> ExportedFolder:
    """Exports an encoder with its decoder and head to transformers' ``ViTMAEForPreTraining``.

    Args:
        backbone: as in :func:`export_timm`.
        decoder: decoder and head.

    Returns:
        The content of the folder.

    Raises:
        ValueError: if that network cannot be the autoencoder. The message names the option.
    """
    options, channels = backbone.options, len(backbone.mean)
    network = "ViTMAEForPreTraining"
    limits = _limits_of_transformers(options) | {
        "image_size": (_is_square(options), "is for square images"),
        "relative_positions": (options["relative_positions"] == "none", "has none"),
        "has_key_bias": (options["has_key_bias"], "has biases of keys"),
        "layer_scale": (options["layer_scale"] is None, "has none"),
        "activation": (options["activation"] == "gelu", "has one activation, the decoder's gelu"),
        "norm_epsilon": (options["norm_epsilon"] == 1e-6, "has one epsilon, the decoder's 1e-06"),
    }
    _check(limits, options, f"transformers' {network}", "timm")
    params = {"positions": _no_positions(options)} | backbone.params
    params.pop("mask_token", None)
    decoder_params = decoder.params["decoder"]
    blocks = [block for name, block in decoder_params.items() if name.startswith("block_")]
    config = _config_of_transformers(backbone) | {
        "architectures": [network],
        "model_type": "vit_mae",
        "qkv_bias": True,
        "decoder_hidden_size": decoder_params["embedding"]["kernel"].shape[1],
        "decoder_num_hidden_layers": len(blocks),
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": blocks[0]["mlp_in"]["kernel"].shape[1],
        "mask_ratio": decoder.mask_ratio,
        "norm_pix_loss": decoder.normalizes_pixels,
    }
    return ExportedFolder(
        network,
        transformers_mae_weights({"encoder": params, **decoder.params}, channels),
        {"config.json": config, "preprocessor_config.json": _preprocessor(backbone)},
    )


def write_exported(exported: ExportedFolder, folder: pathlib.Path) -> pathlib.Path:
    """Writes a folder's files, and with the weights a digest of each array.

    Args:
        exported: the content.
        folder: an existing folder.

    Returns:
        The path of the weight file.
    """
    weights = dict(exported.weights)
    metadata = {"format": "pt"} | digest_metadata(weights)
    file = folder / "model.safetensors"
    save_file(weights, file, metadata=metadata)
    for name, content in exported.files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file


Limits = dict[str, tuple[bool, str]]
"""By option: whether a network can have its value, and what the network has instead."""


def _check(limits: Limits, options: Mapping[str, Any], network: str, other: str) -> None:
    """Raises ``ValueError`` for an option that a network cannot have; ``other`` may have it."""
    for name, (is_possible, instead) in limits.items():
        if not is_possible:
            raise ValueError(
                f"{name}={options[name]!r}: {network} {instead}, and would give other features; "
                f"try --format={other}"
            )


def _is_square(options: Mapping[str, Any]) -> bool:
    height, width = options["image_size"]
    return height == width


def _limits_of_timm_vit(options: Mapping[str, Any]) -> Limits:
    return {"norm_epsilon": (options["norm_epsilon"] in (1e-6, 1e-5), "has 1e-06 or 1e-05")}


def _limits_of_timm_beit(options: Mapping[str, Any]) -> Limits:
    """Returns the limits of ``Beit``: alone in timm, it has relative positions or no key bias."""
    return {
        "use_class_token": (options["use_class_token"], "always has a class token"),
        "norms_embedding": (not options["norms_embedding"], "has no norm before its blocks"),
        "activation": (options["activation"] == "gelu", "has gelu alone"),
        "norm_epsilon": (options["norm_epsilon"] == 1e-6, "has 1e-06 alone"),
    }


def _limits_of_transformers(options: Mapping[str, Any]) -> Limits:
    return {
        "use_class_token": (options["use_class_token"], "always has a class token"),
        "norms_embedding": (not options["norms_embedding"], "has no norm before its blocks"),
    }


def _architecture_of_timm(options: Mapping[str, Any], is_beit: bool) -> str:
    """Returns a similar architecture's name. It sets the epsilon; the arguments set the rest."""
    size = _SIZES_OF_TIMM.get(options["width"], "base")
    if is_beit:
        return f"beit_{'large' if size == 'large' else 'base'}_patch16_224"
    if options["norm_epsilon"] == 1e-5:
        return "vit_base_patch16_clip_224"
    return f"vit_{size}_patch16_224"


def _vit_of_timm(options: Mapping[str, Any], pool: str, has_positions: bool) -> dict[str, Any]:
    return {
        "class_token": options["use_class_token"],
        "pos_embed": "learn" if has_positions else "none",
        "pre_norm": options["norms_embedding"],
        "act_layer": options["activation"],
        "fc_norm": pool == "normed_mean",  # otherwise the patches are normed, not their mean
    }


def _beit_of_timm(options: Mapping[str, Any], pool: str) -> dict[str, Any]:
    own = {
        "use_abs_pos_emb": options["positions"] != "none",
        "use_rel_pos_bias": options["relative_positions"] == "per_block",
        "use_shared_rel_pos_bias": options["relative_positions"] == "shared",
    }
    # With False, the patches are normed, not their mean. timm has the argument since 1.0.31.
    return own | ({"use_fc_norm": False} if pool == "mean" else {})


def _config_of_transformers(backbone: Backbone) -> dict[str, Any]:
    options = backbone.options
    height, width = options["image_size"]
    return {
        "hidden_size": options["width"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "intermediate_size": backbone.params["block_01"]["mlp_in"]["kernel"].shape[1],
        "hidden_act": _ACTIVATIONS_OF_TRANSFORMERS[options["activation"]],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": options["norm_epsilon"],
        "image_size": height if height == width else [height, width],
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        OWN_KEY: {"pool": backbone.pool, **backbone.preprocessing._asdict()},
    }


def _preprocessor(backbone: Backbone) -> dict[str, Any]:
    """Returns the content of ``preprocessor_config.json``."""
    return {
        **backbone.preprocessing.to_transformers(backbone.options["image_size"]),
        "do_convert_rgb": len(backbone.mean) == 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }


def _renamed(weights: Weights, prefix: str, other: str) -> Weights:
    """Replaces a prefix of names by another; names without it stay."""
    return {
        other + name.removeprefix(prefix) if name.startswith(prefix) else name: array
        for name, array in weights.items()
    }


def _without_key_bias(params: Tree) -> Tree:
    """Drops the bias of keys, which changes no feature.

    It adds the same value to all logits of a query, and softmax ignores that.
    """
    tree = dict(params)
    for name, block in params.items():
        if name.startswith("block_") and "bias" in block["attention"]["qkv"]:
            attention = dict(block["attention"])
            query_bias, _, value_bias = np.split(attention["qkv"]["bias"], 3)
            attention["qkv"] = {"kernel": attention["qkv"]["kernel"]}
            attention |= {"query_bias": query_bias, "value_bias": value_bias}
            tree[name] = block | {"attention": attention}
    return tree


def _with_bias_in_positions(params: Tree, options: Mapping[str, Any]) -> Tree:
    """Moves the bias of the patch embedding into the positions if a norm precedes the blocks.

    timm's network has no such bias then. The features stay the same.
    """
    if "embedding_norm" not in params:
        return params
    kernel, bias = (params["patch_embedding"][name] for name in ("kernel", "bias"))
    tree = params | {"patch_embedding": {"kernel": kernel}}
    if bias.any():
        tree["positions"] = params.get("positions", _no_positions(options)) + bias
    return tree


def _no_positions(options: Mapping[str, Any]) -> np.ndarray:
    """Returns positions of 0, (patches, width)."""
    sides = (side // options["patch_size"] for side in options["image_size"])
    return np.zeros((math.prod(sides), options["width"]), np.float32)
