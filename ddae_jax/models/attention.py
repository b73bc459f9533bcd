"""Multi-head self-attention; the one place that chooses its form for the backend."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae_jax.models.dense import Dense
from ddae_jax.models.platform import platform
from ddae_jax.models.positions import relative_positions
from ddae_jax.patches import Grid

AttentionForm = Literal["auto", "batched_matmul", "dot_product"]

ATTENTION = "attention"
"""The collection that :class:`SelfAttention` sows its ``weights`` into, where it is mutable."""


class SelfAttention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values.

    Attributes:
        num_heads: heads; divides the width.
        form: ``batched_matmul`` works on ``(batch * heads, tokens, head_width)``, several times
            faster than batched einsums on CPU; ``dot_product`` is ``jax.nn.dot_product_attention``;
            ``auto`` takes the former on CPU and the latter elsewhere. Where the weights are read
            (:func:`ddae_jax.models.vit.attention_by_block`), the former mixes the tokens too, as
            the latter has no weights to show.
        has_key_bias: whether keys have a bias; softmax does not see it, BEiT leaves it out.
        dtype: of the computation; parameters are float32.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    num_heads: int
    form: AttentionForm = "auto"
    has_key_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch tokens width"],
        bias: Float[Array, "heads tokens tokens"] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """Mixes the tokens; ``bias`` is added to the logits, queries in its rows."""
        batch, length, width = tokens.shape
        project = Dense(3 * width, use_bias=self.has_key_bias, dtype=self.dtype, name="qkv")
        qkv = project(tokens)
        if not self.has_key_bias:
            query_bias, value_bias = (
                self.param(name, nn.initializers.zeros, (width,))
                for name in ("query_bias", "value_bias")
            )
            no_bias = jnp.zeros_like(query_bias)
            qkv += jnp.concatenate([query_bias, no_bias, value_bias]).astype(self.dtype)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        if self.is_mutable_collection(ATTENTION) and not self.is_initializing():
            mixed, weights = _mixed_and_weights(qkv, bias)
            self.sow(ATTENTION, "weights", weights)
        else:
            form = _best_form() if self.form == "auto" else self.form
            mixed = _FORMS[form](qkv, bias)
        mixed = mixed.reshape(batch, length, width)
        return Dense(width, dtype=self.dtype, name="projection")(mixed)


class RelativePositionBias(nn.Module):
    """What the relative position of two tokens adds to their attention logit, in each head.

    Attributes:
        grid: ``(h, w)`` of patches.
        has_class_token: whether a class token comes before the patches.
        num_heads: heads.

    Source: Bao et al. 2021, BEiT; Raffel et al. 2020, T5. See :func:`relative_positions`.
    """

    grid: Grid
    has_class_token: bool
    num_heads: int

    @nn.compact
    def __call__(self) -> Float[Array, "heads tokens tokens"]:
        index, count = relative_positions(self.grid, self.has_class_token)
        table = self.param("table", nn.initializers.zeros, (count, self.num_heads))
        return jnp.moveaxis(table[index], -1, 0)


def _best_form() -> AttentionForm:
    """What ``auto`` means."""
    return "batched_matmul" if platform() == "cpu" else "dot_product"


def _mixed_and_weights(
    qkv: Float[Array, "batch tokens 3 heads head_width"],
    bias: Float[Array, "heads tokens tokens"] | None,
) -> tuple[
    Float[Array, "batch tokens heads head_width"], Float[Array, "batch heads tokens tokens"]
]:
    """The mixed values, and the float32 weights that mixed them: of each query, over the keys."""
    batch, length, _, heads, head_width = qkv.shape
    q, k, v = qkv.transpose(2, 0, 3, 1, 4).reshape(3, batch * heads, length, head_width)
    logits = ((q * head_width**-0.5) @ k.swapaxes(-1, -2)).astype(jnp.float32)
    if bias is not None:
        logits = (logits.reshape(batch, heads, length, length) + bias).reshape(logits.shape)
    weights = jax.nn.softmax(logits)
    mixed = weights.astype(v.dtype) @ v
    mixed = mixed.reshape(batch, heads, length, head_width).transpose(0, 2, 1, 3)
    return mixed, weights.reshape(batch, heads, length, length)


def _batched_matmul(
    qkv: Float[Array, "batch tokens 3 heads head_width"],
    bias: Float[Array, "heads tokens tokens"] | None,
) -> Float[Array, "batch tokens heads head_width"]:
    return _mixed_and_weights(qkv, bias)[0]


def _dot_product(
    qkv: Float[Array, "batch tokens 3 heads head_width"],
    bias: Float[Array, "heads tokens tokens"] | None,
) -> Float[Array, "batch tokens heads head_width"]:
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    bias = None if bias is None else bias[None].astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias=bias)


_FORMS = {"batched_matmul": _batched_matmul, "dot_product": _dot_product}
