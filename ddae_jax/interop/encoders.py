"""Encoders of timm and transformers, as parameters of :class:`ddae_jax.models.vit.ViT`.

Both libraries store one flat dict of arrays. Each has a table here: its names as patterns, and
where and how such an array lies in the tree. What no pattern knows is named in an error.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddae_jax.interop.weights import Weights

Tree = dict[str, Any]


class UnknownWeights(ValueError):
    """Weights with names that belong to no network known here, or without some that belong."""


class Rule(NamedTuple):
    """Arrays whose names match ``pattern`` lie at ``path``, after ``change``.

    ``{}`` in the path is the pattern's group, a block's number, counted from 1. A path of None
    leaves the array out.
    """

    pattern: str
    path: str | None
    change: Callable[[np.ndarray], np.ndarray] = np.asarray


def convert(weights: Weights, rules: Sequence[Rule]) -> Tree:
    """The parameters that the rules make of the weights, as nested dicts.

    Raises :class:`UnknownWeights`, naming what no rule knows.
    """
    tree: Tree = {}
    unknown = []
    for name, array in weights.items():
        found = ((rule, re.fullmatch(rule.pattern, name)) for rule in rules)
        rule, match = next(((r, m) for r, m in found if m), (None, None))
        if rule is None:
            unknown.append(f"{name} {tuple(array.shape)}")
        elif rule.path is not None:
            block = f"{int(match[1]) + 1:02d}" if match.groups() else ""
            _put(tree, rule.path.format(block), rule.change(np.asarray(array)))
    if unknown:
        raise UnknownWeights(
            f"{len(unknown)} of {len(weights)} arrays are none of a network known here: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}"
        )
    return tree


def timm_encoder(weights: Weights) -> Tree:
    """The encoder of a timm ``VisionTransformer`` or ``Beit``; its classifier is left out.

    Raises :class:`UnknownWeights`.
    """
    return finish(convert(weights, _TIMM))


def transformers_encoder(weights: Weights, prefix: str) -> Tree:
    """The encoder of a transformers ``ViTMAE`` or ``Beit``: the names that begin with a prefix.

    Args:
        weights: of the whole model.
        prefix: ``"vit."`` or ``"beit."``; the final norm may lie beside it. Heads are left out.

    Raises :class:`UnknownWeights`.
    """
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    beside = {k: v for k, v in weights.items() if k.startswith("layernorm.")}
    return finish(convert(own | beside, _TRANSFORMERS))


def transformers_mae(weights: Weights) -> Tree:
    """A whole ``ViTMAEForPreTraining``: ``encoder``, ``decoder`` and ``head``.

    Position embeddings are kept as ``positions`` though they are not learned: whoever takes the
    tree compares them with those of the network that it is for.

    Raises :class:`UnknownWeights`.
    """
    decoder = {k: v for k, v in weights.items() if k.startswith("decoder.")}
    tree = finish(convert(decoder, _MAE_DECODER))
    head = tree.pop("head")
    return {"encoder": transformers_encoder(weights, "vit."), "decoder": tree, "head": head}


def _put(tree: Tree, path: str, array: np.ndarray) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = array


def finish(tree: Tree) -> Tree:
    """Joins queries, keys and values, and gives the class token its position."""
    for name, block in tree.items():
        if name.startswith("block_"):
            _join_qkv(block["attention"])
    positions = tree.pop("all_positions", None)
    if positions is not None and "class_token" in tree:
        tree["class_token"] = tree["class_token"] + positions[0]
        positions = positions[1:]
    return tree if positions is None else tree | {"positions": positions}


def _join_qkv(attention: Tree) -> None:
    if "query" in attention:
        parts = [attention.pop(name) for name in ("query", "key", "value")]
        attention["qkv"] = {"kernel": np.concatenate([p["kernel"] for p in parts], axis=1)}
        biases = [part.get("bias") for part in parts]
        if all(bias is not None for bias in biases):
            attention["qkv"]["bias"] = np.concatenate(biases)
        elif biases[0] is not None:  # BEiT's: keys have none
            attention["query_bias"], _, attention["value_bias"] = biases


def flat(array: np.ndarray) -> np.ndarray:
    """A token, without axes of one."""
    return array.reshape(array.shape[-1])


def _transposed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T)


def _from_convolution(array: np.ndarray) -> np.ndarray:
    """(width, channels, rows, columns) -> (rows * columns * channels, width)."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]))


def layer(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of an affine layer, by a pattern of its name there and its path here."""
    return (
        Rule(rf"{theirs}\.weight", f"{ours}/kernel", _transposed),
        Rule(rf"{theirs}\.bias", f"{ours}/bias"),
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return (
        Rule(rf"{theirs}\.weight", f"{ours}/scale"),
        Rule(rf"{theirs}\.bias", f"{ours}/bias"),
    )


_TIMM = (
    Rule(r"cls_token", "class_token", flat),
    Rule(r"pos_embed", "all_positions", lambda array: array[0]),
    Rule(r"patch_embed\.proj\.weight", "patch_embedding/kernel", _from_convolution),
    Rule(r"patch_embed\.proj\.bias", "patch_embedding/bias"),
    *_norm(r"blocks\.(\d+)\.norm1", "block_{}/attention_norm"),
    *_norm(r"blocks\.(\d+)\.norm2", "block_{}/mlp_norm"),
    *layer(r"blocks\.(\d+)\.attn\.qkv", "block_{}/attention/qkv"),
    Rule(r"blocks\.(\d+)\.attn\.q_bias", "block_{}/attention/query_bias"),
    Rule(r"blocks\.(\d+)\.attn\.v_bias", "block_{}/attention/value_bias"),
    Rule(r"blocks\.\d+\.attn\.k_bias", None),  # always 0
    *layer(r"blocks\.(\d+)\.attn\.proj", "block_{}/attention/projection"),
    *layer(r"blocks\.(\d+)\.mlp\.fc1", "block_{}/mlp_in"),
    *layer(r"blocks\.(\d+)\.mlp\.fc2", "block_{}/mlp_out"),
    Rule(r"blocks\.(\d+)\.(?:gamma_1|ls1\.gamma)", "block_{}/attention_scale"),
    Rule(r"blocks\.(\d+)\.(?:gamma_2|ls2\.gamma)", "block_{}/mlp_scale"),
    Rule(r"blocks\.(\d+)\.attn\.relative_position_bias_table", "relative_positions_{}/table"),
    Rule(r"rel_pos_bias\.relative_position_bias_table", "shared_bias/table"),
    Rule(r".*relative_position_index", None),  # follows from the grid
    *_norm(r"norm_pre", "embedding_norm"),
    *_norm(r"(?:fc_)?norm", "norm"),
    Rule(r"(?:head|fc|lm_head|cls_pt_layers|cls_pt_lm_head)\..*", None),
    Rule("mask_token", "mask_token", flat),
    Rule(r"decoder_.*", None),  # MAE's
)

_BLOCK_OF_TRANSFORMERS = r"(?:encoder\.layer|layers|decoder_layers|decoder_encoder\.layer)\.(\d+)\."

_TRANSFORMERS_BLOCK = (
    *_norm(_BLOCK_OF_TRANSFORMERS + "layernorm_before", "block_{}/attention_norm"),
    *_norm(_BLOCK_OF_TRANSFORMERS + "layernorm_after", "block_{}/mlp_norm"),
    *(
        rule
        for theirs, ours in (  # in memory, and in files
            (r"attention\.(?:q_proj|attention\.query)", "attention/query"),
            (r"attention\.(?:k_proj|attention\.key)", "attention/key"),
            (r"attention\.(?:v_proj|attention\.value)", "attention/value"),
            (r"attention\.(?:o_proj|output\.dense)", "attention/projection"),
            (r"(?:mlp\.fc1|intermediate\.dense)", "mlp_in"),
            (r"(?:mlp\.fc2|output\.dense)", "mlp_out"),
        )
        for rule in layer(_BLOCK_OF_TRANSFORMERS + theirs, f"block_{{}}/{ours}")
    ),
)

_TRANSFORMERS = (
    Rule(r"embeddings\.cls_token", "class_token", flat),
    Rule(r"embeddings\.mask_token", "mask_token", flat),
    Rule(r"embeddings\.position_embeddings", "all_positions", lambda array: array[0]),
    Rule(
        r"embeddings\.patch_embeddings\.projection\.weight",
        "patch_embedding/kernel",
        _from_convolution,
    ),
    Rule(r"embeddings\.patch_embeddings\.projection\.bias", "patch_embedding/bias"),
    *_TRANSFORMERS_BLOCK,
    Rule(_BLOCK_OF_TRANSFORMERS + "lambda_1", "block_{}/attention_scale"),
    Rule(_BLOCK_OF_TRANSFORMERS + "lambda_2", "block_{}/mlp_scale"),
    Rule(
        _BLOCK_OF_TRANSFORMERS
        + r"(?:attention\.attention\.)?relative_position_bias\.relative_position_bias_table",
        "relative_positions_{}/table",
    ),
    Rule(
        r"(?:encoder\.)?relative_position_bias\.relative_position_bias_table", "shared_bias/table"
    ),
    Rule(r".*relative_position_index", None),  # follows from the grid
    *_norm("layernorm", "norm"),
    *_norm(r"pooler\.layernorm", "norm"),  # BEiT's, of the mean of the patches
    Rule(r"pooler\.dense\..*", None),
)

_MAE_DECODER = tuple(
    rule._replace(pattern=r"decoder\." + rule.pattern)
    for rule in (
        Rule("mask_token", "mask_token", flat),
        Rule("decoder_pos_embed", None),  # sine-cosine, as this package's decoder has it
        *layer("decoder_embed", "embedding"),
        *_TRANSFORMERS_BLOCK,
        *_norm("decoder_norm", "norm"),
        *layer("decoder_pred", "head"),
    )
)
