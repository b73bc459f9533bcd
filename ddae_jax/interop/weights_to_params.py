"""Conversion of other libraries' weights to parameters of :class:`ddae_jax.models.vit.ViT`.

A library's weights are a flat dict of arrays, converted by its table in
:mod:`ddae_jax.interop.weight_names`. Arrays that no rule of the table matches are an error.
:mod:`ddae_jax.interop.params_to_weights` is the inverse.
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
_TWO_AXES = ("kernel", "table", "all_positions", "codes")  # arrays with other names have one axis
_OTHER_FLOATS = (
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
)
_IN_FLOAT = "give a file that is not quantised, or save the model's state_dict() in float32"

Weights = Mapping[str, np.ndarray]
"""Arrays by a library's names."""

Tree = dict[str, Any]
"""Parameters of this package's networks: nested dicts of arrays."""


class UnknownWeights(ValueError):
    """Error for weights of an unknown network, or with missing, unexpected or unusable arrays."""


def convert(weights: Weights, rules: Sequence[Rule]) -> Tree:
    """Converts weights to parameters by a table; the first rule that matches a name applies.

    Args:
        weights: arrays by a library's names. Those that are unreadable may have unknown names.
        rules: a table of :mod:`ddae_jax.interop.weight_names`.

    Returns:
        Nested dicts of arrays at the paths of the rules.

    Raises:
        UnknownWeights: if no rule matches a name, if two arrays have the same path, or if an array
            has the wrong number of axes, no values, or values that are not real and finite. The
            message names the arrays.
    """
    tree: Tree = {}
    unknown, placed, not_finite = [], {}, []
    for name, array in weights.items():
        matches = ((rule, re.fullmatch(rule.pattern, name)) for rule in rules)
        rule, match = next(((r, m) for r, m in matches if m), (None, None))
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
            _put(tree, path, _apply_change(name, array, rule, path))
    if unknown:
        raise UnknownWeights(_unknown_message(unknown, len(weights)))
    if not_finite:
        raise UnknownWeights(
            f"{len(not_finite)} of {len(weights)} arrays have values that are NaN or infinite: "
            f"{', '.join(not_finite[:5])}{', ...' if len(not_finite) > 5 else ''}. The training "
            "that they are of may have diverged, or they were saved in too few bits; take an "
            "earlier checkpoint, or one of float32"
        )
    return tree


def as_float32(array: np.ndarray) -> np.ndarray:
    """Casts a floating-point array to float32 and returns any other array unchanged."""
    is_float = array.dtype.kind == "f" or array.dtype in _OTHER_FLOATS
    return np.asarray(array, np.float32) if is_float else np.asarray(array)


def is_unreadable(array: np.ndarray) -> bool:
    """Tells whether an array is a stand-in without values.

    See :func:`ddae_jax.interop.pickle_objects.unreadable_array`.
    """
    return array.dtype == object


def unreadable_message(name: str, array: np.ndarray) -> str:
    """Returns the message for an array that :func:`is_unreadable`: a tensor of another kind."""
    return (
        f"{name} is no tensor that is read here ({array.item()}): quantised, sparse and "
        f"distributed ones are not; {_IN_FLOAT}"
    )


def _check_is_real(name: str, array: np.ndarray) -> None:
    """Raises :class:`UnknownWeights` unless an array holds real numbers, not quantised ones."""
    if is_unreadable(array):
        raise UnknownWeights(unreadable_message(name, array))
    if array.dtype.kind in "biu":
        raise UnknownWeights(
            f"{name} is of {array.dtype}: the weights are quantised, and what their numbers stand "
            f"for is not known here; {_IN_FLOAT}"
        )
    if array.dtype.kind != "f":
        raise UnknownWeights(f"{name} is of {array.dtype}; weights are real numbers")


def _apply_change(name: str, array: np.ndarray, rule: Rule, path: str) -> np.ndarray:
    """Returns the array in the layout of its path.

    Raises :class:`UnknownWeights` if its shape does not allow that.
    """
    shape = tuple(array.shape)
    try:
        changed = rule.change(array)
    except (ValueError, TypeError, IndexError) as error:  # the latter two: too few axes
        raise UnknownWeights(f"{name}, of shape {shape}: {error}") from error
    axes = 2 if path.rpartition("/")[2] in _TWO_AXES else 1
    if changed.ndim != axes or not changed.size:
        count = "1 axis" if axes == 1 else f"{axes} axes"
        fault = f"expected: {count}, not counting those of size 1"
        raise UnknownWeights(
            f"{name} is of shape {shape}; {fault if changed.size else 'it holds no values'}"
        )
    return changed


def _unknown_message(names: Sequence[str], count: int) -> str:
    """Returns the message for names that no rule matches, with the features that they reveal."""
    message = (
        f"{len(names)} of {count} arrays are none of a network known here: "
        f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    )
    features = {what for name in names for pattern, what in UNSUPPORTED if re.search(pattern, name)}
    if not features:
        return message
    listed = " and ".join(sorted(features))
    return f"{message}. The network has {listed}, which an encoder here has not"


def timm_encoder(weights: Weights, num_patches: int | None = None) -> Tree:
    """Converts the encoder of timm's ``VisionTransformer`` or ``Beit``.

    The files of MAE's and BEiT's authors have the same names. Classifiers, MAE's decoder, and
    BEiT's layers for pretraining are left out.

    Args:
        weights: arrays of the whole network.
        num_patches: number of patches of an image. If there are exactly as many positions, all are
            those of patches; otherwise, or if None, the first one is the class token's.

    Returns:
        The encoder's parameters.

    Raises:
        UnknownWeights: as :func:`convert` does, or if parts of a block or of the positions do not
            fit together.
    """
    decoder = _official_decoder(weights)
    own = {name: array for name, array in weights.items() if name not in decoder}
    return _finish(convert(own, TIMM), num_patches)


def official_mae(weights: Weights) -> Tree:
    """Converts a whole masked autoencoder of MAE's authors.

    Returns:
        ``encoder``, ``decoder`` and ``head``, as in :func:`transformers_mae`.

    Raises:
        UnknownWeights: as :func:`timm_encoder` does, and if there is no decoder.
    """
    tree = _finish(convert(_official_decoder(weights), OFFICIAL_MAE_DECODER))
    if not tree:
        raise UnknownWeights("these weights are of an encoder only; MAE's decoder is not in them")
    head = tree.pop("head")
    return {"encoder": timm_encoder(weights), "decoder": tree, "head": head}


def augreg_encoder(weights: Weights) -> tuple[Tree, int]:
    """Converts the encoder of Google's ``.npz`` files of vision transformers.

    The classifier, and the layer before it, are left out.

    Returns:
        The encoder's parameters, and its number of heads.

    Raises:
        UnknownWeights: as :func:`timm_encoder` does, and if the weights do not show the heads.

    Source: Steiner et al. 2021, "How to train your ViT?"; Dosovitskiy et al. 2021.
    """
    query = weights.get(f"{AUGREG_ATTENTION.format(0)}/query/kernel")
    if query is None or query.ndim != 3:
        raise UnknownWeights("the weights do not tell the heads of encoderblock_0, as Google's do")
    return _finish(convert(weights, AUGREG)), query.shape[1]


def transformers_encoder(weights: Weights, prefix: str, num_patches: int | None = None) -> Tree:
    """Converts the encoder of a model of transformers: the arrays whose names begin with a prefix.

    Args:
        weights: arrays of the whole model: ViT, MAE, MSN, I-JEPA, BEiT, DINOv2, or the image
            encoder of CLIP or SigLIP. Heads are left out.
        prefix: such as ``"vit."``. The final norm may also lie outside it.
        num_patches: as in :func:`timm_encoder`.

    Returns:
        The encoder's parameters.

    Raises:
        UnknownWeights: as :func:`timm_encoder` does, and if there are two final norms.
    """
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    final_norm = {k: v for k, v in weights.items() if prefix and k.startswith("layernorm.")}
    duplicates = own.keys() & final_norm.keys()
    if duplicates:
        name = min(duplicates)
        raise UnknownWeights(
            f"{prefix}{name} and {name} are both the encoder's last norm; leave one of them out"
        )
    is_clip = "embeddings.patch_embedding.weight" in own
    rules = CLIP if is_clip else TRANSFORMERS_ALL
    return _finish(convert(own | final_norm, rules), num_patches)


def clip_encoder(weights: Weights) -> tuple[Tree, int]:
    """Converts the image encoder of CLIP as OpenAI published it.

    The projection of its features into the space shared with texts is left out.

    Returns:
        The encoder's parameters, and its number of heads, which have 64 values each.

    Raises:
        UnknownWeights: as :func:`timm_encoder` does.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision".
    """
    renamed = {}
    for name, array in weights.items():
        match = re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", name)
        renamed[f"{match[1]}in_proj.{match[2]}" if match else name] = array
    tree = _finish(convert(renamed, OPENAI_CLIP))
    return tree, tree["class_token"].shape[0] // _HEAD_WIDTH_OF_CLIP


def transformers_mae(weights: Weights) -> Tree:
    """Converts a whole ``ViTMAEForPreTraining`` of transformers.

    Returns:
        ``encoder``, ``decoder`` and ``head``. The encoder has ``positions`` although they are not
        learned, so that the caller can compare them with those of its own network.

    Raises:
        UnknownWeights: as :func:`timm_encoder` does.
    """
    decoder = {k: v for k, v in weights.items() if k.startswith("decoder.")}
    tree = _finish(convert(decoder, MAE_DECODER))
    head = tree.pop("head")
    return {"encoder": transformers_encoder(weights, "vit."), "decoder": tree, "head": head}


def _official_decoder(weights: Weights) -> Weights:
    """Returns the arrays of MAE's decoder, if any.

    ``mask_token`` belongs to the decoder if there is one. BEiT's, without one, is the encoder's.
    """
    decoder = {name: array for name, array in weights.items() if name.startswith("decoder_")}
    if decoder and "mask_token" in weights:
        decoder["mask_token"] = weights["mask_token"]
    return decoder


def _put(tree: Tree, path: str, array: np.ndarray) -> None:
    """Puts an array into nested dicts, at keys joined by ``/``."""
    *keys, leaf = path.split("/")
    for key in keys:
        tree = tree.setdefault(key, {})
    tree[leaf] = array


def _finish(tree: Tree, num_patches: int | None = None) -> Tree:
    """Resolves intermediate paths: joins queries, keys and values, and splits ``all_positions``.

    The class token's position, if it has one, is added to the class token. Blocks get biases of 0
    if none has any.
    """
    attentions = [
        block.get("attention", {}) for name, block in tree.items() if name.startswith("block_")
    ]
    for attention in attentions:
        if "query" in attention:
            _join_qkv(attention)
    if not any("query_bias" in a or "bias" in a.get("qkv", {}) for a in attentions):
        for attention in attentions:  # trained without biases, which is the same as with 0
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
    """Replaces ``query``, ``key`` and ``value`` by ``qkv``, in place.

    Raises :class:`UnknownWeights` if a kernel is missing or the three differ in shape.
    """
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
    elif biases[0] is not None:  # BEiT's, whose keys have no bias
        attention["query_bias"], _, attention["value_bias"] = biases
