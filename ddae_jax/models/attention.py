"""Multi-head self-attention; the one place that chooses its form for the backend."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae_jax.models.dense import Dense

AttentionForm = Literal["auto", "batched_matmul", "dot_product"]


class SelfAttention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values.

    Attributes:
        num_heads: heads; divides the width.
        form: ``batched_matmul`` works on ``(batch * heads, tokens, head_width)``, several times
            faster than batched einsums on CPU; ``dot_product`` is ``jax.nn.dot_product_attention``;
            ``auto`` takes the former on CPU and the latter elsewhere.
        dtype: of the computation; parameters are float32.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    num_heads: int
    form: AttentionForm = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch tokens width"]:
        batch, length, width = tokens.shape
        qkv = Dense(3 * width, dtype=self.dtype, name="qkv")(tokens)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        mixed = _FORMS[_resolve(self.form)](qkv)
        mixed = mixed.reshape(batch, length, width)
        return Dense(width, dtype=self.dtype, name="projection")(mixed)


def _resolve(form: AttentionForm) -> AttentionForm:
    if form != "auto":
        return form
    return "batched_matmul" if jax.default_backend() == "cpu" else "dot_product"


def _batched_matmul(
    qkv: Float[Array, "batch tokens 3 heads head_width"],
) -> Float[Array, "batch tokens heads head_width"]:
    batch, length, _, heads, head_width = qkv.shape
    q, k, v = qkv.transpose(2, 0, 3, 1, 4).reshape(3, batch * heads, length, head_width)
    logits = (q * head_width**-0.5) @ k.swapaxes(-1, -2)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
    return (weights @ v).reshape(batch, heads, length, head_width).transpose(0, 2, 1, 3)


def _dot_product(
    qkv: Float[Array, "batch tokens 3 heads head_width"],
) -> Float[Array, "batch tokens heads head_width"]:
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    return jax.nn.dot_product_attention(q, k, v)


_FORMS = {"batched_matmul": _batched_matmul, "dot_product": _dot_product}
