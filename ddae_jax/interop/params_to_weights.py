"""Conversion of parameters of :class:`ddae_jax.models.vit.ViT` to other libraries' weights.

The inverse of :mod:`ddae_jax.interop.weights_to_params`, by the same tables of
:mod:`ddae_jax.interop.weight_names`.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ddae_jax.interop.weight_names import (
    MAE_DECODER,
    SCALES_OF_TIMM_BEIT,
    SCALES_OF_TIMM_VIT,
    TIMM,
    TRANSFORMERS,
    Rule,
    flat,
    from_convolution,
    transposed,
    without_batch,
)
from ddae_jax.interop.weights_to_params import Tree, UnknownWeights, Weights


def unconvert(tree: Tree, rules: Sequence[Rule]) -> Weights:
    """Converts parameters to weights by a table; the first rule that has an array's path applies.

    The inverse of :func:`ddae_jax.interop.weights_to_params.convert`.

    Args:
        tree: nested dicts of arrays.
        rules: a table of :mod:`ddae_jax.interop.weight_names` that is used for writing.

    Returns:
        Arrays by the library's names.

    Raises:
        UnknownWeights: if no rule has an array's path, which the message names.
    """
    by_path = {rule.path: rule for rule in reversed(rules)}
    weights = {}
    for path, array in _leaves(tree):
        block = re.search(r"_(\d+)/", path)
        rule = by_path.get(path if block is None else path.replace(block[0], "_{}/", 1))
        if rule is None:
            raise UnknownWeights(f"no array there is what is here called {path}")
        name = _write_name(rule.pattern, "" if block is None else str(int(block[1]) - 1))
        weights[name] = np.ascontiguousarray(_INVERSES.get(rule.change, np.asarray)(array))
    return weights


def timm_weights(params: Tree, channels: int, is_beit: bool) -> Weights:
    """Converts an encoder to timm's weights; the inverse of ``timm_encoder``.

    Args:
        params: the encoder's parameters.
        channels: number of channels of the images.
        is_beit: whether they are for timm's ``Beit``, not its ``VisionTransformer``.

    Raises:
        UnknownWeights: if the network has no such array.
    """
    scales = SCALES_OF_TIMM_BEIT if is_beit else SCALES_OF_TIMM_VIT
    return unconvert(_to_intermediate(params, channels), (*scales, *TIMM))


def transformers_weights(params: Tree, channels: int, prefix: str = "") -> Weights:
    """Converts an encoder to transformers' weights; the inverse of ``transformers_encoder``.

    Args:
        params: the encoder's parameters.
        channels: number of channels of the images.
        prefix: put before each name, such as ``"vit."``.

    Raises:
        UnknownWeights: if the network has no such array.
    """
    tree = _to_intermediate(params, channels)
    weights = unconvert(_with_split_qkv(tree), TRANSFORMERS)
    return {prefix + name: array for name, array in weights.items()}


def transformers_mae_weights(params: Tree, channels: int) -> Weights:
    """Converts encoder, decoder and head to the weights of ``ViTMAEForPreTraining``.

    The inverse of ``transformers_mae``, but the decoder has its fixed ``positions`` too, which are
    written.

    Args:
        params: ``encoder``, ``decoder`` and ``head``.
        channels: number of channels of the images.

    Raises:
        UnknownWeights: if the network has no such array.
    """
    decoder = dict(params["decoder"])
    positions = _with_class_position(decoder.pop("positions"))
    decoder = _with_split_qkv(decoder) | {"head": params["head"]}
    return {
        **transformers_weights(params["encoder"], channels, "vit."),
        **unconvert(decoder, MAE_DECODER),
        "decoder.decoder_pos_embed": positions[None],
    }


def _to_intermediate(params: Tree, channels: int) -> Tree:
    """Returns the parameters with the intermediate paths of the tables, but ``qkv`` unsplit.

    ``positions`` become ``all_positions``, and the patch embedding's kernel gets the axes (rows,
    columns, channels, width).
    """
    tree = dict(params)
    kernel = tree["patch_embedding"]["kernel"]
    side = math.isqrt(kernel.shape[0] // channels)
    kernel = kernel.reshape(side, side, channels, -1)
    tree["patch_embedding"] = tree["patch_embedding"] | {"kernel": kernel}
    positions = tree.pop("positions", None)
    if positions is not None:
        has_class_token = "class_token" in tree
        tree["all_positions"] = _with_class_position(positions) if has_class_token else positions
    return tree


def _with_class_position(positions: np.ndarray) -> np.ndarray:
    """Returns the positions of all tokens: that of the class token, 0, before those of patches."""
    return np.concatenate([np.zeros_like(positions[:1]), positions])


def _with_split_qkv(tree: Tree) -> Tree:
    """Returns the tree with queries, keys and values split in each block."""
    return {
        name: part | {"attention": _split_qkv(part["attention"])}
        if name.startswith("block_")
        else part
        for name, part in tree.items()
    }


def _split_qkv(attention: Tree) -> Tree:
    """Replaces ``qkv`` by ``query``, ``key`` and ``value``, each with its part of the bias.

    If ``qkv`` has no bias, those of queries and values lie beside it, and keys get none.
    """
    others = dict(attention)
    qkv = others.pop("qkv")
    parts = {
        name: {"kernel": kernel}
        for name, kernel in zip(
            ("query", "key", "value"), np.split(qkv["kernel"], 3, axis=1), strict=True
        )
    }
    if "bias" in qkv:
        for part, bias in zip(parts.values(), np.split(qkv["bias"], 3), strict=True):
            part["bias"] = bias
    else:
        parts["query"]["bias"] = others.pop("query_bias")
        parts["value"]["bias"] = others.pop("value_bias")
    return others | parts


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields each array with its path, keys joined by ``/``."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", np.asarray(value)


def _write_name(pattern: str, block: str) -> str:
    """Returns the name that a pattern writes: its last alternatives, and all optional parts."""
    name = pattern.replace(r"(\d+)", block)
    name = re.sub(r"\(\?:(?:[^()]*\|)?([^()|]*)\)\??", r"\1", name)
    return name.replace(r"\.", ".")


_INVERSES: Mapping[Callable, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        flat: lambda array: array[None, None],
        transposed: transposed,
        from_convolution: lambda array: array.transpose(3, 2, 0, 1),  # given four axes
        without_batch: lambda array: array[None],
    }
)
"""Inverses of the changes that rules make; a change without one leaves arrays as they are."""
