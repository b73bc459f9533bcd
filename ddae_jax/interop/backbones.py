"""Somebody's vision transformer: weights, architecture and pixel statistics.

A folder is as timm and transformers save it: ``model.safetensors`` (or ``pytorch_model.bin``) with
``config.json``, and for transformers ``preprocessor_config.json``. A file has weights alone, as the
authors of MAE, BEiT and AugReg publish them: its arrays tell the architecture. Nothing in either is
executed.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddae_jax.interop.encoders import (
    Tree,
    UnknownWeights,
    Weights,
    augreg_encoder,
    timm_encoder,
    transformers_encoder,
)
from ddae_jax.interop.preprocessing import (
    OWN_KEY,
    Preprocessing,
    pool_of_timm,
    pool_of_transformers,
    preprocessing_of_timm,
    preprocessing_of_transformers,
)
from ddae_jax.interop.weights import find_weights, read_weights


class Backbone(NamedTuple):
    """An encoder that was trained elsewhere.

    Attributes:
        options: arguments of :class:`ddae_jax.models.vit.ViT`, but for its computation.
        params: of that encoder.
        mean, std: of each channel, of pixel values in [0, 1], that it was trained on; None if
            not known, as of a file of weights alone.
        pool: how its features are pooled, as a word of ``evaluation.pool``; None if not known.
        preprocessing: how images are cut to its size; None if not known.
    """

    options: dict[str, Any]
    params: Tree
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    pool: str | None = None
    preprocessing: Preprocessing | None = None


_HEADS_OF_TIMM = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
_HEADS_OF_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # Ti, S, B, L, H
_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Those of transformers, and their names here."""
_IN_A_FOLDER = (
    "give a folder that holds the weights as model.safetensors or pytorch_model.bin, with the "
    "config.json of timm, or the config.json and preprocessor_config.json of transformers"
)
_PREFIXES = {"vit_mae": "vit.", "beit": "beit.", "vit": "vit."}


def read_backbone(path: str | os.PathLike) -> Backbone:
    """The encoder in a folder, or in a file (see :func:`ddae_jax.interop.weights.read_weights`).

    A file does not tell activation, epsilon and pixel statistics: ``gelu`` and 1e-6 are those of
    MAE, BEiT and of timm's own; Google's have the approximate ``gelu``, and see pixels in [-1, 1].

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` for what is not known here:
    weights, width, heads, pixel statistics, each by name with what to do.
    """
    folder = pathlib.Path(path)
    if folder.is_file():
        return _from_file(folder)
    weights = read_weights(find_weights(folder))
    config = _read_json(folder / "config.json", "it says the architecture")
    if "architecture" in config:
        return _from_timm(folder, config, weights)
    if config.get("model_type") in _PREFIXES:
        return _from_transformers(folder, config, weights)
    found = config.get("model_type", "none")
    raise ValueError(
        f"{folder / 'config.json'}: known are timm's (with 'architecture') and transformers' with "
        f"model_type {', '.join(map(repr, _PREFIXES))}; found model_type {found!r}"
    )


def _from_file(path: pathlib.Path) -> Backbone:
    weights = read_weights(path)
    is_of_google = "embedding/kernel" in weights
    kernel = weights.get("embedding/kernel" if is_of_google else "patch_embed.proj.weight")
    _check_tells_all(path, weights)
    if kernel is None or kernel.ndim != 4:
        raise UnknownWeights(
            f"{path} is of no encoder known here: it has no patch_embed.proj.weight, as timm, MAE "
            "and BEiT have it, nor embedding/kernel, as Google has it, of four axes; found "
            f"{', '.join([*weights][:5])}"
        )
    try:
        params, num_heads = augreg_encoder(weights) if is_of_google else (timm_encoder(weights), 0)
        options = describe_encoder(params, kernel.shape[2 if is_of_google else 1])
    except UnknownWeights as error:
        raise UnknownWeights(f"{path}: {error}") from error
    num_heads = num_heads or _HEADS_OF_WIDTH.get(options["width"])
    if num_heads is None:
        known = ", ".join(f"{width}: {heads}" for width, heads in _HEADS_OF_WIDTH.items())
        raise ValueError(
            f"{path} does not tell the heads of an encoder of width {options['width']} (known are "
            f"those of published widths, {known}); {_IN_A_FOLDER}"
        )
    side = _grid_side(path, params) * options["patch_size"]
    options |= {"num_heads": num_heads, "image_size": (side, side)}
    options |= {"activation": "gelu_tanh" if is_of_google else "gelu", "norm_epsilon": 1e-6}
    half = (0.5,) * kernel.shape[2] if is_of_google else None
    pool = "class_token" if is_of_google and "class_token" in params else None
    pool = "normed_mean" if "fc_norm.weight" in weights else pool
    return Backbone(options, params, mean=half, std=half, pool=pool)


def _check_tells_all(path: pathlib.Path, weights: Weights) -> None:
    """Raises ``ValueError`` for encoders whose activation or epsilon vary."""
    of = {"CLIP": r"norm_pre\.", "transformers": r"((vit|beit)\.)?embeddings\."}
    for whose, pattern in of.items():
        if any(re.match(pattern, name) for name in weights):
            raise ValueError(
                f"{path} is of {whose}, and does not tell all of its architecture; {_IN_A_FOLDER}"
            )


def _grid_side(path: pathlib.Path, params: Tree) -> int:
    """Rows of a square grid of ``h * h`` patches, by its positions or its relative ones.

    Of the latter there are ``(2h - 1)^2``, and three more of the class token.
    """
    table = params.get("shared_bias", params.get("relative_positions_01", {})).get("table")
    if "positions" in params:
        count = len(params["positions"])
        side = math.isqrt(count)
        is_square = side**2 == count
    elif table is not None:
        count = len(table)
        side = (math.isqrt(max(count - 3, 0)) + 1) // 2
        is_square = (2 * side - 1) ** 2 + 3 == count
    else:
        raise ValueError(
            f"{path} has no positions, so that the size of the images is not known; {_IN_A_FOLDER}"
        )
    if not is_square:
        raise ValueError(
            f"{path} has {count} positions, which are of no square grid of patches; {_IN_A_FOLDER}"
        )
    return side


def _from_timm(folder: pathlib.Path, config: Mapping[str, Any], weights: Weights) -> Backbone:
    arguments = config.get("model_args", {})
    architecture = config["architecture"]
    trained_on = config.get("pretrained_cfg", {})
    sizes = re.findall("|".join(_HEADS_OF_TIMM), architecture)
    num_heads = arguments.get("num_heads") or (_HEADS_OF_TIMM[sizes[0]] if sizes else None)
    if num_heads is None:
        raise ValueError(
            f"{folder / 'config.json'}: the heads of architecture {architecture!r} are not known; "
            'give them as "model_args": {"num_heads": 12}'
        )
    params = timm_encoder(weights)
    size = arguments.get("img_size") or trained_on.get("input_size", [None])[-2:]
    options = {
        "num_heads": num_heads,
        "image_size": _pair(size, folder / "config.json", "pretrained_cfg.input_size"),
        "activation": _activation_of_timm(arguments, architecture, folder),
        "norm_epsilon": 1e-5 if "clip" in architecture else 1e-6,
        "layer_scale": arguments.get("init_values"),
    }
    where = f"{folder / 'config.json'}: pretrained_cfg"
    return _finish(
        options,
        params,
        _statistics(trained_on, "mean", where),
        _statistics(trained_on, "std", where),
    )._replace(
        pool=pool_of_timm(config, weights),
        preprocessing=preprocessing_of_timm(trained_on, where),
    )


def _activation_of_timm(
    arguments: Mapping[str, Any], architecture: str, folder: pathlib.Path
) -> str:
    told = arguments.get("act_layer", "quick_gelu" if "quickgelu" in architecture else "gelu")
    if told not in _ACTIVATIONS.values():
        raise ValueError(
            f"{folder / 'config.json'}: act_layer={told!r}; known activations are "
            f"{', '.join(map(repr, dict.fromkeys(_ACTIVATIONS.values())))}"
        )
    return told


def _from_transformers(
    folder: pathlib.Path, config: Mapping[str, Any], weights: Weights
) -> Backbone:
    prefix = _PREFIXES[config["model_type"]]
    if not any(name.startswith(prefix) for name in weights):
        weights = {prefix + name: array for name, array in weights.items()}  # saved without a head
    params = transformers_encoder(weights, prefix)
    file = folder / "preprocessor_config.json"
    seen = _read_json(file, "it says which pixel statistics the encoder was trained on")
    num_heads, activation = config.get("num_attention_heads"), config.get("hidden_act", "gelu")
    if not num_heads or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{folder / 'config.json'}: num_attention_heads={num_heads!r}, hidden_act="
            f"{activation!r}; the heads must be told, and known activations are "
            f"{', '.join(map(repr, _ACTIVATIONS))}"
        )
    options = {
        "num_heads": num_heads,
        "activation": _ACTIVATIONS[activation],
        "image_size": _pair(config.get("image_size"), folder / "config.json", "image_size"),
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "layer_scale": config.get("layer_scale_init_value"),
    }
    return _finish(
        options, params, _statistics(seen, "image_mean", file), _statistics(seen, "image_std", file)
    )._replace(
        pool=pool_of_transformers(config, weights),
        preprocessing=preprocessing_of_transformers(seen, config.get(OWN_KEY, {}), file),
    )


def _finish(
    options: dict[str, Any], params: Tree, mean: tuple[float, ...], std: tuple[float, ...]
) -> Backbone:
    told = describe_encoder(params, len(mean))
    if told["layer_scale"] is None or not options["layer_scale"]:
        del options["layer_scale"]
    return Backbone(told | options, params, mean, std)


def describe_encoder(params: Tree, channels: int) -> dict[str, Any]:
    """The arguments of ``ViT`` that its parameters tell; a bias that is not there becomes 0.

    Raises :class:`UnknownWeights` for parameters of no such encoder.
    """
    blocks = [params[name] for name in params if re.fullmatch(r"block_\d+", name)]
    needed = {"patch_embedding/kernel": params.get("patch_embedding", {}).get("kernel")}
    needed["block_01/mlp_in/kernel"] = params.get("block_01", {}).get("mlp_in", {}).get("kernel")
    lost = [name for name, array in needed.items() if array is None]
    if lost:
        raise UnknownWeights(f"the weights lack what is here called {', '.join(lost)}")
    values, width = params["patch_embedding"]["kernel"].shape
    params["patch_embedding"].setdefault("bias", np.zeros(width, np.float32))
    relative = "per_block" if "relative_positions_01" in params else "none"
    return {
        "patch_size": math.isqrt(values // channels),
        "width": width,
        "depth": len(blocks),
        "mlp_ratio": blocks[0]["mlp_in"]["kernel"].shape[1] / width,
        "positions": "learned" if "positions" in params else "none",
        "relative_positions": "shared" if "shared_bias" in params else relative,
        "has_key_bias": "query_bias" not in blocks[0].get("attention", {}),
        "layer_scale": 1.0 if "attention_scale" in blocks[0] else None,
        "norms_embedding": "embedding_norm" in params,
        "use_class_token": "class_token" in params,
    }


def _read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {what}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {found!r}; it must hold keys and values, in {{}}")
    return found


def _statistics(config: Mapping[str, Any], key: str, where: object) -> tuple[float, ...]:
    if not config.get(key):
        raise ValueError(
            f"{where} has no {key!r}: the pixel statistics that the encoder was trained on are not "
            "known. Add them, one value a channel, such as [0.5, 0.5, 0.5]"
        )
    return tuple(float(value) for value in config[key])


def _pair(size: Any, where: object, key: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and None not in size:
        return tuple(size)
    raise ValueError(f"{where} has no {key!r}: the size of the images is not known")
