"""Encoders of other libraries, as parameters of :class:`ddae_jax.models.vit.ViT`.

Each stores one flat dict of arrays, and has a table in :mod:`ddae_jax.interop.weight_names`. What
no pattern knows is named in an error.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ddae_jax.interop.weight_names import (
    AUGREG,
    AUGREG_ATTENTION,
    CLIP,
    MAE_DECODER,
    OFFICIAL_MAE_DECODER,
    OPENAI_CLIP,
    TIMM,
    TRANSFORMERS_ALL,
    UNSUPPORTED,
    Rule,
)

_HEAD_WIDTH_OF_CLIP = 64
_OF_TWO_AXES = ("kernel", "table", "all_positions", "codes")  # all others have one
_OTHER_FLOATS = (
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
)
_IN_FLOAT = "give a file that is not quantised, or save the model's state_dict() in float32"

Weights = Mapping[str, np.ndarray]
Tree = dict[str, Any]


class UnknownWeights(ValueError):
    """Weights with names that belong to no network known here, or without some that belong."""


def convert(weights: Weights, rules: Sequence[Rule]) -> Tree:
    """The parameters that the rules make of the weights, as nested dicts.

    Raises :class:`UnknownWeights`, naming what no rule knows, two arrays for one place, or one of
    another shape than it can have, or of what is no real, finite numbers.
    """
    tree: Tree = {}
    unknown, placed, not_finite = [], {}, []
    for name, array in weights.items():
        found = ((rule, re.fullmatch(rule.pattern, name)) for rule in rules)
        rule, match = next(((r, m) for r, m in found if m), (None, None))
        if rule is None:
            unknown += [] if is_unreadable(array) else [f"{name} {tuple(array.shape)}"]
        elif rule.path is not None:
            block = f"{int(match[1]) + 1:02d}" if match.groups() else ""
            path = rule.path.format(block)
            if path in placed:
                raise UnknownWeights(
                    f"{placed[path]} and {name} are both for what is here called {path}; which of "
                    "the two is meant is not known. Leave one of them out"
                )
            placed[path] = name
            _check_is_real(name, array)
            count = array.size - np.count_nonzero(np.isfinite(array))
            not_finite += [f"{name} ({count:,} of {array.size:,})"] if count else []
            _put(tree, path, _changed(name, array, rule, path))
    if unknown:
        raise UnknownWeights(_unknown(unknown, len(weights)))
    if not_finite:
        raise UnknownWeights(
            f"{len(not_finite)} of {len(weights)} arrays have values that are NaN or infinite: "
            f"{', '.join(not_finite[:5])}{', ...' if len(not_finite) > 5 else ''}. The training "
            "that they are of may have diverged, or they were saved in too few bits; take an "
            "earlier checkpoint, or one of float32"
        )
    return tree


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array in float32, if it is one of real numbers; any other as it is."""
    is_float = array.dtype.kind == "f" or array.dtype in _OTHER_FLOATS
    return np.asarray(array, np.float32) if is_float else np.asarray(array)


def is_unreadable(array: np.ndarray) -> bool:
    """Whether it only says by what it was made: see
    :func:`ddae_jax.interop.pickle_objects.unreadable_array`."""
    return array.dtype == object


def unreadable_message(name: str, array: np.ndarray) -> str:
    """Says so of an array by whose kind it is not."""
    return (
        f"{name} is no tensor that is read here ({array.item()}): quantised, sparse and "
        f"distributed ones are not; {_IN_FLOAT}"
    )


def _check_is_real(name: str, array: np.ndarray) -> None:
    """Raises :class:`UnknownWeights` for what no weights are: numbers that stand for others."""
    if is_unreadable(array):
        raise UnknownWeights(unreadable_message(name, array))
    if array.dtype.kind in "biu":
        raise UnknownWeights(
            f"{name} is of {array.dtype}: the weights are quantised, and what their numbers stand "
            f"for is not known here; {_IN_FLOAT}"
        )
    if array.dtype.kind != "f":
        raise UnknownWeights(f"{name} is of {array.dtype}; weights are real numbers")


def _changed(name: str, array: np.ndarray, rule: Rule, path: str) -> np.ndarray:
    """The array as it lies at its path. Raises :class:`UnknownWeights` for another shape."""
    shape = tuple(array.shape)
    try:
        changed = rule.change(array)
    except (ValueError, TypeError, IndexError) as error:  # the latter two for other axes
        raise UnknownWeights(f"{name}, of shape {shape}: {error}") from error
    axes = 2 if path.rpartition("/")[2] in _OF_TWO_AXES else 1
    if changed.ndim != axes or not changed.size:
        expected = f"{axes} {'axis' if axes == 1 else 'axes'} beside those of one value"
        raise UnknownWeights(
            f"{name} is of shape {shape}; expected are {expected if changed.size else 'values'}"
        )
    return changed


def _unknown(names: Sequence[str], count: int) -> str:
    told = (
        f"{len(names)} of {count} arrays are none of a network known here: "
        f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    )
    has = {what for name in names for pattern, what in UNSUPPORTED if re.search(pattern, name)}
    if not has:
        return told
    return f"{told}. The network has {' and '.join(sorted(has))}, which an encoder here has not"


def timm_encoder(weights: Weights, num_patches: int | None = None) -> Tree:
    """The encoder of a timm ``VisionTransformer`` or ``Beit``, or of the authors of MAE or BEiT.

    Classifiers, MAE's decoder, and what BEiT has only for pretraining are left out.

    Args:
        weights: of the whole network.
        num_patches: of an image. As many positions are those of the patches alone; one more, and
            by default, the first one is the class token's.

    Raises :class:`UnknownWeights`.
    """
    decoder = _of_official_decoder(weights)
    own = {name: array for name, array in weights.items() if name not in decoder}
    return _finish(convert(own, TIMM), num_patches)


def official_mae(weights: Weights) -> Tree:
    """All that MAE's authors trained: ``encoder``, ``decoder`` and ``head``.

    Position embeddings are kept as :func:`transformers_mae` keeps them.

    Raises :class:`UnknownWeights`, also for an encoder without a decoder.
    """
    tree = _finish(convert(_of_official_decoder(weights), OFFICIAL_MAE_DECODER))
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
    query = weights.get(f"{AUGREG_ATTENTION.format(0)}/query/kernel")
    if query is None or query.ndim != 3:
        raise UnknownWeights("the weights do not tell the heads of encoderblock_0, as Google's do")
    return _finish(convert(weights, AUGREG)), query.shape[1]


def transformers_encoder(weights: Weights, prefix: str, num_patches: int | None = None) -> Tree:
    """The encoder of a transformers ``ViTMAE`` or ``Beit``: the names that begin with a prefix.

    Args:
        weights: of the whole model; of DINOv2, I-JEPA, MSN, CLIP or SigLIP too.
        prefix: such as ``"vit."``; the final norm may lie beside it. Heads are left out.
        num_patches: see :func:`timm_encoder`.

    Raises :class:`UnknownWeights`.
    """
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    beside = {k: v for k, v in weights.items() if prefix and k.startswith("layernorm.")}
    twice = own.keys() & beside.keys()
    if twice:
        name = min(twice)
        raise UnknownWeights(
            f"{prefix}{name} and {name} are both the encoder's last norm; leave one of them out"
        )
    is_clip = "embeddings.patch_embedding.weight" in own
    rules = CLIP if is_clip else TRANSFORMERS_ALL
    return _finish(convert(own | beside, rules), num_patches)


def clip_encoder(weights: Weights) -> tuple[Tree, int]:
    """The image encoder of CLIP as OpenAI published it, and its number of heads, of 64 values each.

    What projects its features to those of texts is left out.

    Raises :class:`UnknownWeights`.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision".
    """
    split = {}
    for name, array in weights.items():
        found = re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", name)
        split[f"{found[1]}in_proj.{found[2]}" if found else name] = array
    tree = _finish(convert(split, OPENAI_CLIP))
    return tree, tree["class_token"].shape[0] // _HEAD_WIDTH_OF_CLIP


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


def _finish(tree: Tree, num_patches: int | None = None) -> Tree:
    """Joins queries, keys and values, and gives the class token its position, if it has one."""
    attentions = [
        block.get("attention", {}) for name, block in tree.items() if name.startswith("block_")
    ]
    for attention in attentions:
        if "query" in attention:
            _join_qkv(attention)
    if not any("query_bias" in a or "bias" in a.get("qkv", {}) for a in attentions):
        for attention in attentions:  # trained without: as with one of 0
            if "qkv" in attention:
                width = attention["qkv"]["kernel"].shape[1]
                attention["qkv"]["bias"] = np.zeros(width, np.float32)
    positions = tree.pop("all_positions", None)
    is_of_patches = positions is not None and len(positions) == num_patches
    if positions is not None and "class_token" in tree and not is_of_patches:
        if tree["class_token"].shape != positions[0].shape:
            raise UnknownWeights(
                f"the class token has {len(tree['class_token'])} values, and each position "
                f"{len(positions[0])}; they are added, and must be alike"
            )
        tree["class_token"] = tree["class_token"] + positions[0]
        positions = positions[1:]
    return tree if positions is None else tree | {"positions": positions}


def _join_qkv(attention: Tree) -> None:
    parts = [attention.pop(name, {}) for name in ("query", "key", "value")]
    kernels, biases = ([part.get(name) for part in parts] for name in ("kernel", "bias"))
    if any(kernel is None for kernel in kernels):
        raise UnknownWeights("a block has queries, but lacks keys or values to attend with")
    if len({kernel.shape for kernel in kernels}) > 1:
        shapes = ", ".join(str(kernel.shape) for kernel in kernels)
        raise UnknownWeights(f"queries, keys and values of a block differ in shape: {shapes}")
    attention["qkv"] = {"kernel": np.concatenate(kernels, axis=1)}
    if all(bias is not None for bias in biases):
        attention["qkv"]["bias"] = np.concatenate(biases)
    elif biases[0] is not None:  # BEiT's: keys have none
        attention["query_bias"], _, attention["value_bias"] = biases
