"""Parameters of :class:`ddae_jax.models.vit.ViT` as other libraries name and lay out arrays.

The inverse of :mod:`ddae_jax.interop.weights_to_params`, by the tables of
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
    """Each array by the name of the first rule that has its place; undoes ``convert``.

    Raises :class:`UnknownWeights`, naming what no rule has a place for.
    """
    by_path = {rule.path: rule for rule in reversed(rules)}
    weights = {}
    for path, array in _leaves(tree):
        block = re.search(r"_(\d+)/", path)
        rule = by_path.get(path if block is None else path.replace(block[0], "_{}/", 1))
        if rule is None:
            raise UnknownWeights(f"no array there is what is here called {path}")
        name = _spelled(rule.pattern, "" if block is None else str(int(block[1]) - 1))
        weights[name] = np.ascontiguousarray(_INVERSES.get(rule.change, np.asarray)(array))
    return weights


def timm_weights(params: Tree, channels: int, is_beit: bool) -> Weights:
    """An encoder as timm's ``Beit`` or ``VisionTransformer``; undoes ``timm_encoder``."""
    scales = SCALES_OF_TIMM_BEIT if is_beit else SCALES_OF_TIMM_VIT
    return unconvert(_take_apart(params, channels), (*scales, *TIMM))


def transformers_weights(params: Tree, channels: int, prefix: str = "") -> Weights:
    """An encoder as transformers has it; undoes ``transformers_encoder``."""
    apart = _take_apart(params, channels)
    weights = unconvert(_with_split_qkv(apart), TRANSFORMERS)
    return {prefix + name: array for name, array in weights.items()}


def transformers_mae_weights(params: Tree, channels: int) -> Weights:
    """A whole ``ViTMAEForPreTraining``, the decoder's ``positions`` too; undoes its reading."""
    decoder = dict(params["decoder"])
    positions = _with_class_position(decoder.pop("positions"))
    decoder = _with_split_qkv(decoder) | {"head": params["head"]}
    return {
        **transformers_weights(params["encoder"], channels, "vit."),
        **unconvert(decoder, MAE_DECODER),
        "decoder.decoder_pos_embed": positions[None],
    }


def _take_apart(params: Tree, channels: int) -> Tree:
    """Positions are those of all tokens, and patches get their axes; queries stay with keys."""
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
    """Positions of all tokens; that of the class token, which comes first, is 0."""
    return np.concatenate([np.zeros_like(positions[:1]), positions])


def _with_split_qkv(tree: Tree) -> Tree:
    return {
        name: part | {"attention": _split_qkv(part["attention"])}
        if name.startswith("block_")
        else part
        for name, part in tree.items()
    }


def _split_qkv(attention: Tree) -> Tree:
    """Queries, keys and values for themselves."""
    rest = dict(attention)
    qkv = rest.pop("qkv")
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
        parts["query"]["bias"] = rest.pop("query_bias")
        parts["value"]["bias"] = rest.pop("value_bias")
    return rest | parts


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", np.asarray(value)


def _spelled(pattern: str, block: str) -> str:
    """The name that is written of those that a pattern knows."""
    name = pattern.replace(r"(\d+)", block)
    name = re.sub(r"\(\?:(?:[^()]*\|)?([^()|]*)\)\??", r"\1", name)
    return name.replace(r"\.", ".")


_INVERSES: Mapping[Callable, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        flat: lambda array: array[None, None],
        transposed: transposed,
        from_convolution: lambda array: array.transpose(3, 2, 0, 1),  # has its four axes
        without_batch: lambda array: array[None],
    }
)
"""What undoes each change; all others leave arrays as they are."""
