"""Encoders of other libraries, as parameters of :class:`ddae_jax.models.vit.ViT`.

Each stores one flat dict of arrays, and has a table here: its names as patterns, and where and how
such an array lies in the tree. What no pattern knows is named in an error. By the same tables
:mod:`ddae_jax.interop.writing` writes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Weights = Mapping[str, np.ndarray]
Tree = dict[str, Any]


class UnknownWeights(ValueError):
    """Weights with names that belong to no network known here, or without some that belong."""


class Rule(NamedTuple):
    """Arrays whose names match ``pattern`` lie at ``path``, after ``change``.

    ``{}`` in the path is the pattern's group, a block's number, counted from 1. A path of None
    leaves the array out. Where a table is written by too, a pattern has names, groups of
    alternatives and optional parts, no more: written is the last alternative, and what is optional.
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
    """The encoder of a timm ``VisionTransformer`` or ``Beit``, or of the authors of MAE or BEiT.

    Classifiers, MAE's decoder, and what BEiT has only for pretraining are left out.

    Raises :class:`UnknownWeights`.
    """
    own = {name: a for name, a in weights.items() if name not in _of_official_decoder(weights)}
    return _finish(convert(own, TIMM))


def official_mae(weights: Weights) -> Tree:
    """All that MAE's authors trained: ``encoder``, ``decoder`` and ``head``.

    Position embeddings are kept as :func:`transformers_mae` keeps them.

    Raises :class:`UnknownWeights`, also for an encoder without a decoder.
    """
    tree = _finish(convert(_of_official_decoder(weights), _OFFICIAL_MAE_DECODER))
    if not tree:
        raise UnknownWeights("these weights are of an encoder only; MAE's decoder is not in them")
    head = tree.pop("head")
    return {"encoder": timm_encoder(weights), "decoder": tree, "head": head}


def augreg_encoder(weights: Weights) -> tuple[Tree, int]:
    """The encoder in Google's ``.npz`` files of vision transformers, and its number of heads.

    Its classifier, and the layer before that, are left out.

    Raises :class:`UnknownWeights`.

    Source: Steiner et al. 2021, "How to train your ViT?"; Dosovitskiy et al. 2021.
    """
    query = weights.get(f"{_AUGREG_ATTENTION.format(0)}/query/kernel")
    if query is None or query.ndim != 3:
        raise UnknownWeights("the weights do not tell the heads of encoderblock_0, as Google's do")
    return _finish(convert(weights, _AUGREG)), query.shape[1]


def transformers_encoder(weights: Weights, prefix: str) -> Tree:
    """The encoder of a transformers ``ViTMAE`` or ``Beit``: the names that begin with a prefix.

    Args:
        weights: of the whole model.
        prefix: ``"vit."`` or ``"beit."``; the final norm may lie beside it. Heads are left out.

    Raises :class:`UnknownWeights`.
    """
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    beside = {k: v for k, v in weights.items() if k.startswith("layernorm.")}
    return _finish(convert(own | beside, TRANSFORMERS))


def transformers_mae(weights: Weights) -> Tree:
    """A whole ``ViTMAEForPreTraining``: ``encoder``, ``decoder`` and ``head``.

    Position embeddings are kept as ``positions`` though they are not learned: whoever takes the
    tree compares them with those of the network that it is for.

    Raises :class:`UnknownWeights`.
    """
    decoder = {k: v for k, v in weights.items() if k.startswith("decoder.")}
    tree = _finish(convert(decoder, MAE_DECODER))
    head = tree.pop("head")
    return {"encoder": transformers_encoder(weights, "vit."), "decoder": tree, "head": head}


def _of_official_decoder(weights: Weights) -> Weights:
    """What belongs to MAE's decoder; so does the mask token beside it, whereas BEiT's does not."""
    found = {name: array for name, array in weights.items() if name.startswith("decoder_")}
    if found and "mask_token" in weights:
        found["mask_token"] = weights["mask_token"]
    return found


def _put(tree: Tree, path: str, array: np.ndarray) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = array


def _finish(tree: Tree) -> Tree:
    """Joins queries, keys and values, and gives the class token its position."""
    for name, block in tree.items():
        if name.startswith("block_") and "query" in block.get("attention", {}):
            _join_qkv(block["attention"])
    positions = tree.pop("all_positions", None)
    if positions is not None and "class_token" in tree:
        tree["class_token"] = tree["class_token"] + positions[0]
        positions = positions[1:]
    return tree if positions is None else tree | {"positions": positions}


def _join_qkv(attention: Tree) -> None:
    parts = [attention.pop(name, {}) for name in ("query", "key", "value")]
    kernels, biases = ([part.get(name) for part in parts] for name in ("kernel", "bias"))
    if any(kernel is None for kernel in kernels):
        raise UnknownWeights("a block has queries, but lacks keys or values to attend with")
    attention["qkv"] = {"kernel": np.concatenate(kernels, axis=1)}
    if all(bias is not None for bias in biases):
        attention["qkv"]["bias"] = np.concatenate(biases)
    elif biases[0] is not None:  # BEiT's: keys have none
        attention["query_bias"], _, attention["value_bias"] = biases


def flat(array: np.ndarray) -> np.ndarray:
    """A token without axes of one."""
    return array.reshape(array.shape[-1])


def transposed(array: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out), or back."""
    return np.ascontiguousarray(array.T)


def from_convolution(array: np.ndarray) -> np.ndarray:
    """(width, channels, rows, columns) -> (rows * columns * channels, width)."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]))


def without_batch(array: np.ndarray) -> np.ndarray:
    """What is alike for all images, without their axis."""
    return array[0]


def _rows_by_width(array: np.ndarray) -> np.ndarray:
    """(..., width) -> (rows, width): out of heads, or out of the pixels of a patch."""
    return array.reshape(-1, array.shape[-1])


def _to_heads(array: np.ndarray) -> np.ndarray:
    """(width, heads, head_width) -> (width, width)."""
    return array.reshape(len(array), -1)


def layer(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of an affine layer, by a pattern of its name there and its path here."""
    return (
        Rule(rf"{theirs}\.weight", f"{ours}/kernel", transposed),
        Rule(rf"{theirs}\.bias", f"{ours}/bias"),
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return (
        Rule(rf"{theirs}\.weight", f"{ours}/scale"),
        Rule(rf"{theirs}\.bias", f"{ours}/bias"),
    )


_TIMM_BLOCK = (
    *_norm(r"blocks\.(\d+)\.norm1", "block_{}/attention_norm"),
    *_norm(r"blocks\.(\d+)\.norm2", "block_{}/mlp_norm"),
    *layer(r"blocks\.(\d+)\.attn\.qkv", "block_{}/attention/qkv"),
    *layer(r"blocks\.(\d+)\.attn\.proj", "block_{}/attention/projection"),
    *layer(r"blocks\.(\d+)\.mlp\.fc1", "block_{}/mlp_in"),
    *layer(r"blocks\.(\d+)\.mlp\.fc2", "block_{}/mlp_out"),
)

SCALES_OF_TIMM_VIT, SCALES_OF_TIMM_BEIT = (
    (
        Rule(rf"blocks\.(\d+)\.{of_attention}", "block_{}/attention_scale"),
        Rule(rf"blocks\.(\d+)\.{of_mlp}", "block_{}/mlp_scale"),
    )
    for of_attention, of_mlp in ((r"ls1\.gamma", r"ls2\.gamma"), ("gamma_1", "gamma_2"))
)

TIMM = (
    Rule(r"cls_token", "class_token", flat),
    Rule(r"mask_token", "mask_token", flat),
    Rule(r"pos_embed", "all_positions", without_batch),
    Rule(r"patch_embed\.proj\.weight", "patch_embedding/kernel", from_convolution),
    Rule(r"patch_embed\.proj\.bias", "patch_embedding/bias"),
    *_TIMM_BLOCK,
    Rule(r"blocks\.(\d+)\.attn\.q_bias", "block_{}/attention/query_bias"),
    Rule(r"blocks\.(\d+)\.attn\.v_bias", "block_{}/attention/value_bias"),
    Rule(r"blocks\.\d+\.attn\.k_bias", None),  # always 0
    *SCALES_OF_TIMM_VIT,
    *SCALES_OF_TIMM_BEIT,
    Rule(r"blocks\.(\d+)\.attn\.relative_position_bias_table", "relative_positions_{}/table"),
    Rule(r"rel_pos_bias\.relative_position_bias_table", "shared_bias/table"),
    Rule(r".*relative_position_index", None),  # follows from the grid
    *_norm(r"norm_pre", "embedding_norm"),
    *_norm(r"(?:fc_norm|norm)", "norm"),
    Rule(r"(?:head|fc)\..*", None),
    Rule(r"(?:lm_head|cls_pt_layers)\..*", None),  # BEiT's, for pretraining only
)

_OFFICIAL_MAE_DECODER = (
    Rule(r"mask_token", "mask_token", flat),
    Rule(r"decoder_pos_embed", None),  # sine-cosine, as this package's decoder has it
    *layer(r"decoder_embed", "embedding"),
    *(rule._replace(pattern=f"decoder_{rule.pattern}") for rule in _TIMM_BLOCK),
    *_norm(r"decoder_norm", "norm"),
    *layer(r"decoder_pred", "head"),
)


def _transformers_block(block: str) -> tuple[Rule, ...]:
    """The rules of a block, by a pattern of where it lies."""
    layers = (  # in memory, and in files
        (r"attention\.(?:q_proj|attention\.query)", "attention/query"),
        (r"attention\.(?:k_proj|attention\.key)", "attention/key"),
        (r"attention\.(?:v_proj|attention\.value)", "attention/value"),
        (r"attention\.(?:o_proj|output\.dense)", "attention/projection"),
        (r"(?:mlp\.fc1|intermediate\.dense)", "mlp_in"),
        (r"(?:mlp\.fc2|output\.dense)", "mlp_out"),
    )
    return (
        *_norm(block + "layernorm_before", "block_{}/attention_norm"),
        *_norm(block + "layernorm_after", "block_{}/mlp_norm"),
        *(rule for theirs, ours in layers for rule in layer(block + theirs, f"block_{{}}/{ours}")),
    )


_BLOCK_OF_TRANSFORMERS = r"(?:layers|encoder\.layer)\.(\d+)\."
_BLOCK_OF_DECODER = r"(?:decoder_encoder\.layer|decoder_layers)\.(\d+)\."

TRANSFORMERS = (
    Rule(r"embeddings\.cls_token", "class_token", flat),
    Rule(r"embeddings\.mask_token", "mask_token", flat),
    Rule(r"embeddings\.position_embeddings", "all_positions", without_batch),
    Rule(
        r"embeddings\.patch_embeddings\.projection\.weight",
        "patch_embedding/kernel",
        from_convolution,
    ),
    Rule(r"embeddings\.patch_embeddings\.projection\.bias", "patch_embedding/bias"),
    *_transformers_block(_BLOCK_OF_TRANSFORMERS),
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

MAE_DECODER = tuple(
    rule._replace(pattern=r"decoder\." + rule.pattern)
    for rule in (
        Rule("mask_token", "mask_token", flat),
        Rule("decoder_pos_embed", None),  # sine-cosine, as this package's decoder has it
        *layer("decoder_embed", "embedding"),
        *_transformers_block(_BLOCK_OF_DECODER),
        *_norm("decoder_norm", "norm"),
        *layer("decoder_pred", "head"),
    )
)

_AUGREG_BLOCK = r"Transformer/encoderblock_{}"
_AUGREG_ATTENTION = _AUGREG_BLOCK + "/MultiHeadDotProductAttention_1"
_ANY = r"(\d+)"


def _flax_layer(theirs: str, ours: str, name: str = "kernel") -> tuple[Rule, Rule]:
    return Rule(f"{theirs}/{name}", f"{ours}/{name}"), Rule(f"{theirs}/bias", f"{ours}/bias")


_AUGREG = (
    Rule("cls", "class_token", flat),
    Rule("Transformer/posembed_input/pos_embedding", "all_positions", without_batch),
    Rule("embedding/kernel", "patch_embedding/kernel", _rows_by_width),
    Rule("embedding/bias", "patch_embedding/bias"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/LayerNorm_0", "block_{}/attention_norm", "scale"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/LayerNorm_2", "block_{}/mlp_norm", "scale"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/MlpBlock_3/Dense_0", "block_{}/mlp_in"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/MlpBlock_3/Dense_1", "block_{}/mlp_out"),
    *(
        Rule(f"{_AUGREG_ATTENTION.format(_ANY)}/{part}/{name}", path, change)
        for part in ("query", "key", "value")
        for name, path, change in (
            ("kernel", f"block_{{}}/attention/{part}/kernel", _to_heads),
            ("bias", f"block_{{}}/attention/{part}/bias", np.ravel),
        )
    ),
    Rule(
        f"{_AUGREG_ATTENTION.format(_ANY)}/out/kernel",
        "block_{}/attention/projection/kernel",
        _rows_by_width,
    ),
    Rule(f"{_AUGREG_ATTENTION.format(_ANY)}/out/bias", "block_{}/attention/projection/bias"),
    *_flax_layer("Transformer/encoder_norm", "norm", "scale"),
    Rule("(?:head|pre_logits)/.*", None),
)
