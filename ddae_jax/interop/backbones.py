"""Somebody's vision transformer: weights, architecture and pixel statistics.

A folder is as timm and transformers save it: ``model.safetensors`` (or ``pytorch_model.bin``),
whole or in parts, with ``config.json``, and for transformers ``preprocessor_config.json``. A file
has weights alone, as authors publish them: its arrays tell most of the architecture, and somebody
has to tell the rest. Nothing in either is executed.
"""

import math
import os
import pathlib
import re

import numpy as np

from ddae_jax.data.disks import ReadFailed, is_file
from ddae_jax.interop.architecture import (
    Backbone,
    WeightHints,
    check_heads,
    describe_encoder,
    other_encoders_note,
    relative_table,
)
from ddae_jax.interop.json_files import read_json
from ddae_jax.interop.library_folders import read_folder
from ddae_jax.interop.weight_files import find_weights, read_network
from ddae_jax.interop.weights_to_params import (
    Tree,
    UnknownWeights,
    Weights,
    augreg_encoder,
    clip_encoder,
    is_unreadable,
    timm_encoder,
    unreadable_message,
)

_HEADS_OF_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # Ti, S, B, L, H
_WIDTH_OF_MOCO = 384  # whose heads are 12 in MoCo v3, with fixed positions, and 6 in all others
_EPSILON, _EPSILON_OF_CLIP = 1e-6, 1e-5
_IN_A_FOLDER = (
    "give a folder that holds the weights as model.safetensors or pytorch_model.bin, with the "
    "config.json of timm, or the config.json and preprocessor_config.json of transformers"
)


def read_backbone(path: str | os.PathLike, told: WeightHints | None = None) -> Backbone:
    """The encoder in a folder, or in a file (see
    :func:`ddae_jax.interop.weight_files.read_network`).

    A file does not tell heads, activation, epsilon and pixel statistics. Heads are those of the
    width, where all that are published agree; ``gelu`` and 1e-6 are those of MAE, BEiT, DINO and of
    timm's own; Google's have the approximate ``gelu``, and see pixels in [-1, 1]. What was so taken
    for granted is in the backbone's notes.

    Args:
        path: of the folder or file.
        told: what somebody says of it. A folder has to agree.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` for what is not known here:
    weights, width, heads, pixel statistics, each by name with what to do.
    """
    place, told = pathlib.Path(path), told or WeightHints()
    if not is_file(place):
        return read_folder(place, told)
    if place == find_weights(place.parent) and _has_config_of_others(place.parent):
        return read_folder(place.parent, told)  # which tells more than the file alone
    return _from_file(place, told)


def is_library_folder(folder: pathlib.Path) -> bool:
    """Whether a folder is meant to hold an encoder of timm or transformers."""
    return is_file(find_weights(folder)) or _has_config_of_others(folder)


def _has_config_of_others(folder: pathlib.Path) -> bool:
    file = folder / "config.json"
    if not is_file(file):
        return False
    try:
        config = read_json(file, "")
    except ReadFailed:
        raise
    except (ValueError, OSError):
        return False
    return bool(config.keys() & {"architecture", "architectures", "model_type"})


def _from_file(path: pathlib.Path, told: WeightHints) -> Backbone:
    network = read_network(path, told.part)
    weights = network.weights
    is_of_google = "embedding/kernel" in weights
    is_of_openai = "class_embedding" in weights and "conv1.weight" in weights
    name = "embedding/kernel" if is_of_google else "patch_embed.proj.weight"
    name = "conv1.weight" if is_of_openai else name
    kernel = weights.get(name)
    _check_is_no_folder(path, weights)
    if kernel is not None and is_unreadable(kernel):
        raise UnknownWeights(f"{path}: {unreadable_message(name, kernel)}")
    if kernel is None or kernel.ndim != 4:
        raise UnknownWeights(
            f"{path} is of no encoder known here: it has no patch_embed.proj.weight, as timm, MAE "
            "and BEiT have it, nor embedding/kernel, as Google has it, of four axes; found "
            f"{', '.join([*weights][:5])}"
        )
    try:
        if is_of_google:
            params, heads = augreg_encoder(weights)
        elif is_of_openai:
            params, heads = clip_encoder(weights)
        else:
            params, heads = timm_encoder(weights, _patches_alone(weights)), None
        options = describe_encoder(params, kernel.shape[2 if is_of_google else 1])
    except UnknownWeights as error:
        raise UnknownWeights(f"{path}: {error}") from error
    notes = () if told.part else other_encoders_note(path, network)
    heads, of_heads = _heads(path, params, heads, told)
    activation, epsilon, of_activation = _activation(path, params, is_of_google, told)
    side = _grid_side(path, params) * options["patch_size"]
    options |= {"num_heads": heads, "image_size": (side, side)}
    options |= {"activation": activation, "norm_epsilon": epsilon}
    half = (0.5,) * kernel.shape[2] if is_of_google else None
    pool = "class_token" if is_of_openai or ("class_token" in params and is_of_google) else None
    pool = "normed_mean" if "fc_norm.weight" in weights else pool
    notes = (*notes, *of_heads, *of_activation)
    return Backbone(options, params, half, half, notes, pool)


def _check_is_no_folder(path: pathlib.Path, weights: Weights) -> None:
    """Raises ``ValueError`` for encoders of transformers, which vary in more than can be told."""
    if any(re.match(r"((vit|beit)\.)?embeddings\.", name) for name in weights):
        raise ValueError(
            f"{path} is of transformers, and does not tell all of its architecture; {_IN_A_FOLDER}"
        )


def _heads(
    path: pathlib.Path, params: Tree, heads: int | None, told: WeightHints
) -> tuple[int, tuple[str, ...]]:
    """The heads, and a note where they are taken for granted."""
    table, width = relative_table(params), params["patch_embedding"]["kernel"].shape[1]
    heads = heads or (None if table is None else table.shape[1])
    told.check(path, heads, None)
    known = heads or told.heads
    if known:
        check_heads(path, known, params)
        return known, ()
    if width not in _HEADS_OF_WIDTH:
        published = ", ".join(f"{width}: {heads}" for width, heads in _HEADS_OF_WIDTH.items())
        raise ValueError(
            f"{path} does not tell the heads of an encoder of width {width} (known are those of "
            f"published widths, {published}); say them as --config.init_heads=HEADS, or "
            f"{_IN_A_FOLDER}"
        )
    heads = _HEADS_OF_WIDTH[width]
    if width == _WIDTH_OF_MOCO and _are_fixed(params.get("positions")):
        raise ValueError(
            f"{path} does not tell its heads: encoders of width {width} with sine-cosine positions "
            "have 12 if they are of MoCo v3, and 6 by the architecture of others; say which by "
            f"--config.init_heads=12 or --config.init_heads={heads}"
        )
    return heads, (
        f"{path} does not tell its heads: {heads} are taken, as published encoders of width "
        f"{width} have; --config.init_heads says otherwise",
    )


def _activation(
    path: pathlib.Path, params: Tree, is_of_google: bool, told: WeightHints
) -> tuple[str, float, tuple[str, ...]]:
    """Activation and epsilon, and a note where they are taken for granted."""
    is_of_clip = "embedding_norm" in params
    if is_of_clip and not told.activation:
        raise ValueError(
            f"{path} is of CLIP, and does not tell its activation: say it as "
            "--config.init_activation=quick_gelu, which is that of OpenAI's and of some others, or "
            f"as --config.init_activation=gelu; or {_IN_A_FOLDER}"
        )
    epsilon = _EPSILON_OF_CLIP if is_of_clip else _EPSILON
    of_epsilon = (
        f"{path} does not tell the epsilon of its norms: {epsilon:g} is taken; "
        "--config.model.norm_epsilon says otherwise"
    )
    if told.activation or is_of_google:
        return told.activation or "gelu_tanh", epsilon, () if is_of_google else (of_epsilon,)
    note = (
        f"{path} does not tell its activation: gelu is taken, which is that of MAE, BEiT, DINO, "
        "DeiT and MoCo v3; --config.init_activation says otherwise. Nor does it tell of rotary "
        "positions, or of norms that follow each layer: an encoder with either is another one here"
    )
    return "gelu", epsilon, (note, of_epsilon)


def _are_fixed(positions: np.ndarray | None) -> bool:
    """Whether they look like sine-cosine positions: sines of 0 and cosines of 0 come first."""
    if positions is None:
        return False
    first = np.sort(np.round(positions[0], 5))
    half = len(first) // 2
    return bool((first[:half] == 0).all() and (first[half:] == 1).all())


def _patches_alone(weights: Weights) -> int | None:
    """How many positions there are, if they are those of the patches of a square grid alone."""
    positions = weights.get("pos_embed")
    count = positions.shape[1] if positions is not None and positions.ndim == 3 else 0
    is_square = [math.isqrt(n) ** 2 == n for n in (count, count - 1) if n >= 0]
    return count if is_square == [True, False] else None


def _grid_side(path: pathlib.Path, params: Tree) -> int:
    """Rows of a square grid of ``h * h`` patches, by its positions or its relative ones.

    Of the latter there are ``(2h - 1)^2``, and three more of the class token.
    """
    table = relative_table(params)
    if "positions" in params:
        count = len(params["positions"])
        side = math.isqrt(count)
        is_square = side > 0 and side**2 == count
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
