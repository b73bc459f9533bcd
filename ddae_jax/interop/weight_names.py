"""Tables of array names: what each library calls an array, and its path and layout here.

:mod:`ddae_jax.interop.weights_to_params` reads by these tables, and
:mod:`ddae_jax.interop.params_to_weights` writes by them. Some paths are intermediate, and the
former joins or splits them: ``all_positions`` holds the positions of all tokens, and
``attention/query``, ``key`` and ``value`` are parts of ``attention/qkv``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """One line of a table: the name of an array in a library, and its path and layout here.

    Attributes:
        pattern: regular expression that matches the library's whole name. Its group, if any, is the
            block's number, counted from 0. In tables that are also used for writing, patterns
            consist of names, alternatives and optional parts only; the last alternative and every
            optional part are written.
        path: where the array lies in the tree of parameters, keys joined by ``/``; ``{}`` stands
            for the block's number, counted from 1 and of two digits. None leaves the array out.
        change: converts the array from the library's layout. Raises ``ValueError``, ``TypeError``
            or ``IndexError`` for an array of another shape.
    """

    pattern: str
    path: str | None
    change: Callable[[np.ndarray], np.ndarray] = np.asarray


def flat(array: np.ndarray) -> np.ndarray:
    """Drops a token's leading axes of size 1. Raises ``ValueError`` for more than one token."""
    return array.reshape(array.shape[-1])


def transposed(array: np.ndarray) -> np.ndarray:
    """Transposes a kernel: (out, in) -> (in, out), or back."""
    return np.ascontiguousarray(array.T)


def from_convolution(array: np.ndarray) -> np.ndarray:
    """Converts a convolution's kernel to that of a layer on flattened patches.

    (width, channels, rows, columns) -> (rows * columns * channels, width). Raises ``ValueError``
    for patches that are not square.
    """
    _check_square(*array.shape[2:])
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]))


def without_batch(array: np.ndarray) -> np.ndarray:
    """Drops the leading batch axis. Raises ``ValueError`` unless its size is 1."""
    if array.shape[:1] != (1,):
        raise ValueError("its first axis, that of images, must be of size 1")
    return array[0]


def _rows_by_width(array: np.ndarray) -> np.ndarray:
    """Merges all axes but the last: (..., width) -> (rows, width)."""
    return array.reshape(-1, array.shape[-1])


def _flatten_patches(array: np.ndarray) -> np.ndarray:
    """Merges a patch's axes: (rows, columns, channels, width) -> (rows*columns*channels, width)."""
    _check_square(*array.shape[:2])
    return _rows_by_width(array)


def _check_square(rows: int, columns: int) -> None:
    if rows != columns:
        raise ValueError(f"patches of {rows} x {columns} pixels; an encoder here has square ones")


def _merge_heads(array: np.ndarray) -> np.ndarray:
    """Merges the heads of a kernel: (width, heads, head_width) -> (width, width)."""
    return array.reshape(len(array), -1)


def layer(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Returns the rules of an affine layer, given a pattern of its name and its path here."""
    return (
        Rule(rf"{theirs}\.weight", f"{ours}/kernel", transposed),
        Rule(rf"{theirs}\.bias", f"{ours}/bias"),
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return (
        Rule(rf"{theirs}\.weight", f"{ours}/scale"),
        Rule(rf"{theirs}\.bias", f"{ours}/bias"),
    )


UNSUPPORTED = (
    (
        r"\.(?:w12|w3|w1|w2|fc1_g|fc1_x|weights_in|weights_out|gate_proj)\.|mlp\.fc3\.",
        "gated MLPs (SwiGLU)",
    ),
    (
        r"(?:^|\.)(?:rope\w*|rot_pos_embed|rotary\w*)\.|"
        r"(?:^|\.)(?:freqs(?:_\w+)?|inv_freq|(?:cos|sin)_cached|rope_\w+)\b",
        "rotary positions",
    ),
    (
        r"(?:weight|input|output)_scale(?:_inv)?\b|\bscale_(?:inv|weight|input)\b|"
        r"\.(?:SCB|absmax|quant_map|quant_state\w*|qweight|qzeros|g_idx|zero_point|scales)\b|"
        r"_packed_params|scaled_fp8",
        "quantised weights",
    ),
    (r"(?:^|\.)(?:reg_token|register_tokens|storage_tokens)\b", "register tokens"),
    (r"(?:^|\.)(?:dist_token|distillation_token)\b", "a distillation token"),
    (r"attn\.(?:q_norm|k_norm)\.", "norms of queries and keys"),
    (r"(?:attn\.(?:norm|inner_attn_ln)|mlp\.(?:norm|ffn_ln))\.", "norms within its layers"),
)
"""Features that an encoder here cannot have, by patterns of array names that reveal them."""

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
"""Layer scales of timm's ``VisionTransformer`` and ``Beit``, whose names differ."""

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
    Rule(r"(?:head|fc|attn_pool)\..*", None),
    Rule(r"(?:lm_head|cls_pt_layers)\..*", None),  # BEiT's, for pretraining only
)
"""timm's ``VisionTransformer`` and ``Beit``, and the files of the authors of MAE and BEiT."""

OFFICIAL_MAE_DECODER = (
    Rule(r"mask_token", "mask_token", flat),
    Rule(r"decoder_pos_embed", None),  # sine-cosine, as this package's decoder has it
    *layer(r"decoder_embed", "embedding"),
    *(rule._replace(pattern=f"decoder_{rule.pattern}") for rule in _TIMM_BLOCK),
    *_norm(r"decoder_norm", "norm"),
    *layer(r"decoder_pred", "head"),
)
"""Decoder and head in the files of MAE's authors."""


def _transformers_block(block: str) -> tuple[Rule, ...]:
    """Returns the rules of a block, given a pattern of the prefix before its arrays' names."""
    layers = (  # alternatives: the names in memory, and those in files
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
"""transformers' ``ViT``, ``ViTMAE``, ``ViTMSN``, ``IJepa`` and ``Beit``."""

TRANSFORMERS_ALL = (
    *TRANSFORMERS,
    *_norm(_BLOCK_OF_TRANSFORMERS + "norm1", "block_{}/attention_norm"),
    *_norm(_BLOCK_OF_TRANSFORMERS + "norm2", "block_{}/mlp_norm"),
    Rule(_BLOCK_OF_TRANSFORMERS + r"layer_scale1\.lambda1", "block_{}/attention_scale"),
    Rule(_BLOCK_OF_TRANSFORMERS + r"layer_scale2\.lambda1", "block_{}/mlp_scale"),
)
""":data:`TRANSFORMERS` and the names of ``Dinov2``, which are read but not written."""

_BLOCK_OF_CLIP = r"encoder\.layers\.(\d+)\."
_BLOCK_OF_OPENAI = r"transformer\.resblocks\.(\d+)\."

CLIP = (
    Rule(r"embeddings\.class_embedding", "class_token", flat),
    Rule(r"embeddings\.position_embedding\.weight", "all_positions"),
    Rule(r"embeddings\.position_ids", None),
    Rule(r"embeddings\.patch_embedding\.weight", "patch_embedding/kernel", from_convolution),
    Rule(r"embeddings\.patch_embedding\.bias", "patch_embedding/bias"),
    *_norm("pre_layrnorm", "embedding_norm"),  # transformers' spelling
    *_norm("post_layernorm", "norm"),
    *_norm(_BLOCK_OF_CLIP + "layer_norm1", "block_{}/attention_norm"),
    *_norm(_BLOCK_OF_CLIP + "layer_norm2", "block_{}/mlp_norm"),
    *layer(_BLOCK_OF_CLIP + r"self_attn\.q_proj", "block_{}/attention/query"),
    *layer(_BLOCK_OF_CLIP + r"self_attn\.k_proj", "block_{}/attention/key"),
    *layer(_BLOCK_OF_CLIP + r"self_attn\.v_proj", "block_{}/attention/value"),
    *layer(_BLOCK_OF_CLIP + r"self_attn\.out_proj", "block_{}/attention/projection"),
    *layer(_BLOCK_OF_CLIP + r"mlp\.fc1", "block_{}/mlp_in"),
    *layer(_BLOCK_OF_CLIP + r"mlp\.fc2", "block_{}/mlp_out"),
    Rule(r"head\..*", None),  # SigLIP's, which pools
)
"""transformers' image encoders of CLIP, and of SigLIP, which has no class token."""

OPENAI_CLIP = (
    Rule("class_embedding", "class_token", flat),
    Rule("positional_embedding", "all_positions"),
    Rule(r"conv1\.weight", "patch_embedding/kernel", from_convolution),
    *_norm("ln_pre", "embedding_norm"),
    *_norm("ln_post", "norm"),
    *_norm(_BLOCK_OF_OPENAI + "ln_1", "block_{}/attention_norm"),
    *_norm(_BLOCK_OF_OPENAI + "ln_2", "block_{}/mlp_norm"),
    *layer(_BLOCK_OF_OPENAI + r"attn\.in_proj", "block_{}/attention/qkv"),
    *layer(_BLOCK_OF_OPENAI + r"attn\.out_proj", "block_{}/attention/projection"),
    *layer(_BLOCK_OF_OPENAI + r"mlp\.c_fc", "block_{}/mlp_in"),
    *layer(_BLOCK_OF_OPENAI + r"mlp\.c_proj", "block_{}/mlp_out"),
    Rule("proj", None),
)
"""OpenAI's image encoder of CLIP, its ``in_proj_weight`` renamed to ``in_proj.weight``."""

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
"""Decoder and head of transformers' ``ViTMAEForPreTraining``."""

_AUGREG_BLOCK = r"Transformer/encoderblock_{}"
AUGREG_ATTENTION = _AUGREG_BLOCK + "/MultiHeadDotProductAttention_1"
_ANY = r"(\d+)"


def _flax_layer(theirs: str, ours: str, name: str = "kernel") -> tuple[Rule, Rule]:
    return Rule(f"{theirs}/{name}", f"{ours}/{name}"), Rule(f"{theirs}/bias", f"{ours}/bias")


AUGREG = (
    Rule("cls", "class_token", flat),
    Rule("Transformer/posembed_input/pos_embedding", "all_positions", without_batch),
    Rule("embedding/kernel", "patch_embedding/kernel", _flatten_patches),
    Rule("embedding/bias", "patch_embedding/bias"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/LayerNorm_0", "block_{}/attention_norm", "scale"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/LayerNorm_2", "block_{}/mlp_norm", "scale"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/MlpBlock_3/Dense_0", "block_{}/mlp_in"),
    *_flax_layer(f"{_AUGREG_BLOCK.format(_ANY)}/MlpBlock_3/Dense_1", "block_{}/mlp_out"),
    *(
        Rule(f"{AUGREG_ATTENTION.format(_ANY)}/{part}/{name}", path, change)
        for part in ("query", "key", "value")
        for name, path, change in (
            ("kernel", f"block_{{}}/attention/{part}/kernel", _merge_heads),
            ("bias", f"block_{{}}/attention/{part}/bias", np.ravel),
        )
    ),
    Rule(
        f"{AUGREG_ATTENTION.format(_ANY)}/out/kernel",
        "block_{}/attention/projection/kernel",
        _rows_by_width,
    ),
    Rule(f"{AUGREG_ATTENTION.format(_ANY)}/out/bias", "block_{}/attention/projection/bias"),
    *_flax_layer("Transformer/encoder_norm", "norm", "scale"),
    Rule("(?:head|pre_logits)/.*", None),
)
"""Google's ``.npz`` files of vision transformers, from a Flax module."""
