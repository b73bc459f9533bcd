"""Published vision transformers: weights, architecture and pixel statistics.

They come in a folder or a file. A folder is as timm or transformers saves it:
``model.safetensors`` (or ``pytorch_model.bin``), whole or in parts, with ``config.json``, and for
transformers ``preprocessor_config.json``. A file holds weights alone, as authors publish them: its
arrays show most of the architecture, and the user must give the rest. Nothing in either is
executed.
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
_WIDTH_OF_MOCO = 384  # ViT-S has 12 heads in MoCo v3, with fixed positions, and 6 elsewhere
_EPSILON, _EPSILON_OF_CLIP = 1e-6, 1e-5
_IN_A_FOLDER = (
    "give a folder that holds the weights as model.safetensors or pytorch_model.bin, with the "
    "config.json of timm, or the config.json and preprocessor_config.json of transformers"
)


def read_backbone(path: str | os.PathLike, hints: WeightHints | None = None) -> Backbone:
    """Reads a published encoder.

    A file does not show heads, activation, epsilon and pixel statistics. The number of heads is
    taken from the width where all published encoders agree. Activation and epsilon are taken to be
    ``gelu`` and 1e-6, as in MAE, BEiT, DINO and timm's own models; Google's encoders have the
    approximate ``gelu`` and pixel values in [-1, 1]. The backbone's notes list such assumptions.

    Args:
        path: a folder, or a file (see :func:`ddae_jax.interop.weight_files.read_network`). For the
            weight file of a folder with a ``config.json``, the folder is read.
        hints: facts that a file does not show. They must not contradict the weights or the config.

    Returns:
        The encoder. From a file, ``preprocessing`` is None, and so are ``mean`` and ``std`` but for
        Google's.

    Raises:
        FileNotFoundError: if a file is missing.
        ReadFailed: if the disk or the network is at fault.
        ValueError: if weights, width, heads or pixel statistics are not known here. The message
            says what to do.
    """
    path, hints = pathlib.Path(path), hints or WeightHints()
    if not is_file(path):
        return read_folder(path, hints)
    if path == find_weights(path.parent) and _has_library_config(path.parent):
        return read_folder(path.parent, hints)  # its config knows more than the file alone
    return _from_file(path, hints)


def is_library_folder(folder: pathlib.Path) -> bool:
    """Tells whether a folder has weights or a config as timm or transformers saves them."""
    return is_file(find_weights(folder)) or _has_library_config(folder)


def _has_library_config(folder: pathlib.Path) -> bool:
    """Tells whether a folder has a ``config.json`` of timm or transformers."""
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


def _from_file(path: pathlib.Path, hints: WeightHints) -> Backbone:
    """Reads an encoder from weights alone, with the names of timm, Google, or OpenAI's CLIP."""
    network = read_network(path, hints.part)
    weights = network.weights
    is_google = "embedding/kernel" in weights
    is_openai = "class_embedding" in weights and "conv1.weight" in weights
    name = "embedding/kernel" if is_google else "patch_embed.proj.weight"
    name = "conv1.weight" if is_openai else name
    kernel = weights.get(name)
    _refuse_transformers(path, weights)
    if kernel is not None and is_unreadable(kernel):
        raise UnknownWeights(f"{path}: {unreadable_message(name, kernel)}")
    if kernel is None or kernel.ndim != 4:
        raise UnknownWeights(
            f"{path} is of no encoder known here: it has no patch_embed.proj.weight, as timm, MAE "
            "and BEiT have it, nor embedding/kernel, as Google has it, of four axes; found "
            f"{', '.join([*weights][:5])}"
        )
    try:
        if is_google:
            params, heads = augreg_encoder(weights)
        elif is_openai:
            params, heads = clip_encoder(weights)
        else:
            params, heads = timm_encoder(weights, _patches_alone(weights)), None
        options = describe_encoder(params, kernel.shape[2 if is_google else 1])
    except UnknownWeights as error:
        raise UnknownWeights(f"{path}: {error}") from error
    notes = () if hints.part else other_encoders_note(path, network)
    heads, notes_on_heads = _heads(path, params, heads, hints)
    activation, epsilon, notes_on_activation = _activation_and_epsilon(
        path, params, is_google, hints
    )
    side = _grid_side(path, params) * options["patch_size"]
    options |= {"num_heads": heads, "image_size": (side, side)}
    options |= {"activation": activation, "norm_epsilon": epsilon}
    half = (0.5,) * kernel.shape[2] if is_google else None
    pool = "class_token" if is_openai or ("class_token" in params and is_google) else None
    pool = "normed_mean" if "fc_norm.weight" in weights else pool
    notes = (*notes, *notes_on_heads, *notes_on_activation)
    return Backbone(options, params, half, half, notes, pool)


def _refuse_transformers(path: pathlib.Path, weights: Weights) -> None:
    """Raises ``ValueError`` for weights of transformers, whose config they need."""
    if any(re.match(r"((vit|beit)\.)?embeddings\.", name) for name in weights):
        raise ValueError(
            f"{path} is of transformers, and does not tell all of its architecture; {_IN_A_FOLDER}"
        )


def _heads(
    path: pathlib.Path, params: Tree, heads: int | None, hints: WeightHints
) -> tuple[int, tuple[str, ...]]:
    """Determines the number of heads.

    Args:
        path: the file, for messages.
        params: the encoder's parameters.
        heads: number of heads that the weights show; None if they do not.
        hints: given by the user; must agree.

    Returns:
        The number of heads, and a note if it is assumed from the width.

    Raises:
        ValueError: if it is unknown, or impossible for the encoder.
    """
    table, width = relative_table(params), params["patch_embedding"]["kernel"].shape[1]
    heads = heads or (None if table is None else table.shape[1])
    hints.check(path, heads, None)
    known = heads or hints.heads
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


def _activation_and_epsilon(
    path: pathlib.Path, params: Tree, is_google: bool, hints: WeightHints
) -> tuple[str, float, tuple[str, ...]]:
    """Determines activation and epsilon, with notes on those that are assumed.

    Raises ``ValueError`` for an encoder of CLIP whose activation is not given.
    """
    is_clip = "embedding_norm" in params
    if is_clip and not hints.activation:
        raise ValueError(
            f"{path} is of CLIP, and does not tell its activation: say it as "
            "--config.init_activation=quick_gelu, which is that of OpenAI's and of some others, or "
            f"as --config.init_activation=gelu; or {_IN_A_FOLDER}"
        )
    epsilon = _EPSILON_OF_CLIP if is_clip else _EPSILON
    epsilon_note = (
        f"{path} does not tell the epsilon of its norms: {epsilon:g} is taken; "
        "--config.model.norm_epsilon says otherwise"
    )
    if hints.activation or is_google:
        return hints.activation or "gelu_tanh", epsilon, () if is_google else (epsilon_note,)
    note = (
        f"{path} does not tell its activation: gelu is taken, which is that of MAE, BEiT, DINO, "
        "DeiT and MoCo v3; --config.init_activation says otherwise. Nor would it show rotary "
        "positions, or norms after each layer: an encoder with either computes other features here"
    )
    return "gelu", epsilon, (note, epsilon_note)


def _are_fixed(positions: np.ndarray | None) -> bool:
    """Tells whether positions look fixed: the first one has the sines and cosines of 0."""
    if positions is None:
        return False
    first = np.sort(np.round(positions[0], 5))
    half = len(first) // 2
    return bool((first[:half] == 0).all() and (first[half:] == 1).all())


def _patches_alone(weights: Weights) -> int | None:
    """Returns the number of positions if they are those of patches of a square grid alone.

    Otherwise, or if that is ambiguous, None.
    """
    positions = weights.get("pos_embed")
    count = positions.shape[1] if positions is not None and positions.ndim == 3 else 0
    is_square = [math.isqrt(n) ** 2 == n for n in (count, count - 1) if n >= 0]
    return count if is_square == [True, False] else None


def _grid_side(path: pathlib.Path, params: Tree) -> int:
    """Derives the rows ``h`` of a square grid of patches from its positions.

    There are ``h * h`` absolute positions, or ``(2h - 1)^2 + 3`` relative ones, the last three for
    the class token. Raises ``ValueError`` if there are neither, or the grid is not square.
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
