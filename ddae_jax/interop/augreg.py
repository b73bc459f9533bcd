"""Google's vision transformers (``.npz``), as parameters of :class:`ddae_jax.models.vit.ViT`."""

import numpy as np

from ddae_jax.interop.encoders import Rule, Tree, convert, finish, flat
from ddae_jax.interop.weights import Weights


def is_augreg(weights: Weights) -> bool:
    """Whether the names are those of such a file."""
    return "Transformer/encoder_norm/scale" in weights


def augreg_encoder(weights: Weights) -> tuple[Tree, int]:
    """The encoder, and its number of attention heads; a classifier is left out.

    Raises :class:`ddae_jax.interop.encoders.UnknownWeights`.
    Source: Steiner et al. 2021, "How to train your ViT?" (AugReg).
    """
    query = weights.get(f"{_ATTENTION.format(0)}/query/kernel")
    num_heads = query.shape[1] if query is not None and query.ndim == 3 else 0
    return finish(convert(weights, _RULES)), num_heads


_ATTENTION = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1"
_BLOCK = r"Transformer/encoderblock_(\d+)/"


def _to_matrix(array: np.ndarray) -> np.ndarray:
    """(width, heads, head_width) -> (width, width)."""
    return array.reshape(array.shape[0], -1)


def _from_heads(array: np.ndarray) -> np.ndarray:
    """(heads, head_width, width) -> (width, width)."""
    return array.reshape(-1, array.shape[-1])


_RULES = (
    Rule("cls", "class_token", flat),
    Rule("Transformer/posembed_input/pos_embedding", "all_positions", lambda array: array[0]),
    Rule("embedding/kernel", "patch_embedding/kernel", lambda a: a.reshape(-1, a.shape[-1])),
    Rule("embedding/bias", "patch_embedding/bias"),
    *(
        rule
        for theirs, ours in (("query", "query"), ("key", "key"), ("value", "value"))
        for rule in (
            Rule(
                rf"{_BLOCK}MultiHeadDotProductAttention_1/{theirs}/kernel",
                f"block_{{}}/attention/{ours}/kernel",
                _to_matrix,
            ),
            Rule(
                rf"{_BLOCK}MultiHeadDotProductAttention_1/{theirs}/bias",
                f"block_{{}}/attention/{ours}/bias",
                np.ravel,
            ),
        )
    ),
    Rule(
        rf"{_BLOCK}MultiHeadDotProductAttention_1/out/kernel",
        "block_{}/attention/projection/kernel",
        _from_heads,
    ),
    Rule(rf"{_BLOCK}MultiHeadDotProductAttention_1/out/bias", "block_{}/attention/projection/bias"),
    *(
        Rule(rf"{_BLOCK}{theirs}/{part}", f"block_{{}}/{ours}/{part}")
        for theirs, ours, parts in (
            ("LayerNorm_0", "attention_norm", ("scale", "bias")),
            ("LayerNorm_2", "mlp_norm", ("scale", "bias")),
            ("MlpBlock_3/Dense_0", "mlp_in", ("kernel", "bias")),
            ("MlpBlock_3/Dense_1", "mlp_out", ("kernel", "bias")),
        )
        for part in parts
    ),
    Rule("Transformer/encoder_norm/scale", "norm/scale"),
    Rule("Transformer/encoder_norm/bias", "norm/bias"),
    Rule(r"(?:head|pre_logits)/.*", None),
)
