"""Multi-head attention. The form that suits the backend is chosen here and nowhere else."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from ddae_jax.models.backend import platform
from ddae_jax.models.dense import Dense, matrix_product
from ddae_jax.models.positions import relative_positions
from ddae_jax.patches import Grid

AttentionForm = Literal["auto", "batched_matmul", "dot_product", "cudnn", "einsum"]

Queries = Float[ArrayLike, "batch queries heads head_width"]
"""A query of each head for each token that attends."""

Keys = Float[ArrayLike, "batch keys heads head_width"]
"""A key, or a value, of each head for each token that is attended to."""

Bias = Float[ArrayLike, "heads queries keys"]
"""A summand of the attention logits, the same for all images."""

Mixed = Float[Array, "batch queries heads head_width"]
"""The values that each head mixes for each query."""

ATTENTION = "attention"
"""The collection that :class:`SelfAttention` sows its ``weights`` into if it is mutable."""


class SelfAttention(nn.Module):
    """Self-attention whose queries, keys and values of all heads come from one kernel.

    Attributes:
        num_heads: number of heads; divides the width.
        form: ``auto`` chooses the form that suits the platform:

            - ``batched_matmul``, on CPU: products of ``(batch * heads, tokens, head_width)``,
              several times faster there than batched einsums;
            - ``cudnn``, on GPU in 16 bits if cuDNN's fused kernel accepts the shapes: a third of
              the memory traffic of ``dot_product``, apart from cuDNN's workspace;
            - ``einsum``, on TPU, and on GPU in 16 bits otherwise: einsums over batch and heads, and
              a backward pass of its own, with two thirds of that traffic on a TPU and four fifths
              on a GPU;
            - ``dot_product``, on GPU in float32: ``jax.nn.dot_product_attention`` by XLA, which
              needs less memory there (benchmarks/results/compile_attention_forms.json).

            While the weights are read (:func:`ddae_jax.models.vit.attention_by_block`), the form is
            always ``batched_matmul``, as the others do not expose their weights.
        has_key_bias: whether keys have a bias. Softmax cancels it, and BEiT leaves it out.
        dtype: dtype of the computation; parameters are float32.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    num_heads: int
    form: AttentionForm = "auto"
    has_key_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[ArrayLike, "batch tokens features"],
        bias: Float[ArrayLike, "heads tokens tokens"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """Mixes the tokens. ``bias`` is added to the logits; its rows are queries."""
        width = tokens.shape[-1]
        projection_bias = None
        if not self.has_key_bias:
            query_bias, value_bias = (
                self.param(name, nn.initializers.zeros, (width,))
                for name in ("query_bias", "value_bias")
            )
            projection_bias = jnp.concatenate([query_bias, jnp.zeros_like(query_bias), value_bias])
        are_weights_read = self.is_mutable_collection(ATTENTION) and not self.is_initializing()
        form = "batched_matmul" if are_weights_read else self.form
        if form == "auto":
            form = best_form(tokens.shape[1], width // self.num_heads, bias is not None, self.dtype)
        project = _Projections(self.num_heads, form == "einsum", self.dtype, name="qkv")
        q, k, v = project(tokens, projection_bias)
        if form == "batched_matmul":
            mixed, weights = _mixed_and_weights(q, k, v, bias)
            if are_weights_read:
                self.sow(ATTENTION, "weights", weights)
        else:
            mixed = _FORMS[form](q, k, v, bias)
        return Dense(width, dtype=self.dtype, name="projection")(mixed.reshape(tokens.shape))


class CrossAttention(nn.Module):
    """Attention of some tokens to others, which provide the keys and values.

    Attributes:
        num_heads: number of heads; divides the width.
        form: see :class:`SelfAttention`.
        dtype: dtype of the computation; parameters are float32.

    Source: Vaswani et al. 2017, section 3.2.3 ("encoder-decoder attention").
    """

    num_heads: int
    form: AttentionForm = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[ArrayLike, "batch queries features"],
        memory: Float[ArrayLike, "batch keys memory_features"],
    ) -> Float[Array, "batch queries features"]:
        """Mixes ``memory``, whose width may differ, for each of ``tokens``."""
        width = tokens.shape[-1]
        parts = (self.num_heads, width // self.num_heads)
        q = Dense(width, dtype=self.dtype, name="query")(tokens)
        kv = Dense(2 * width, dtype=self.dtype, name="key_value")(memory)
        q = q.reshape(*q.shape[:2], *parts)
        k, v = jnp.moveaxis(kv.reshape(*kv.shape[:2], 2, *parts), 2, 0)
        form = self.form
        if form == "auto":
            form = best_form(tokens.shape[1], parts[1], False, self.dtype)
        if form == "batched_matmul":
            mixed, _ = _mixed_and_weights(q, k, v, None)
        else:
            mixed = _FORMS[form](q, k, v, None)
        return Dense(width, dtype=self.dtype, name="projection")(mixed.reshape(tokens.shape))


class _Projections(nn.Module):
    """Projections to the queries, keys and values of each head, from one kernel.

    Attributes:
        num_heads: number of heads; divides the width.
        is_split: whether to compute three products with parts of the kernel, each directly in the
            layout of the heads, instead of one product that is split afterwards.
        dtype: dtype of the computation.
    """

    num_heads: int
    is_split: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        tokens: Float[ArrayLike, "batch tokens features"],
        bias: Float[ArrayLike, " 3*features"] | None = None,
    ) -> tuple[Float[Array, "batch tokens heads head_width"], ...]:
        """Returns all three. ``bias``, if given, replaces this layer's own parameter."""
        batch, length, width = tokens.shape
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (width, 3 * width))
        if bias is None:
            bias = self.param("bias", nn.initializers.zeros, (3 * width,))
        tokens, kernel, bias = (array.astype(self.dtype) for array in (tokens, kernel, bias))
        parts = (3, self.num_heads, width // self.num_heads)
        if self.is_split:
            kernel, bias = kernel.reshape(width, *parts), bias.reshape(parts)
            return tuple(
                jnp.einsum("btc,chd->bthd", tokens, kernel[:, part]) + bias[part]
                for part in range(3)
            )
        qkv = matrix_product(tokens, kernel) + bias
        return tuple(jnp.moveaxis(qkv.reshape(batch, length, *parts), 2, 0))


class RelativePositionBias(nn.Module):
    """A learned summand of attention logits for each relative position of two tokens, by head.

    Attributes:
        grid: ``(h, w)``, the grid of patches.
        has_class_token: whether a class token comes before the patches.
        num_heads: number of heads.

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


def best_form(length: int, head_width: int, has_bias: bool, dtype: DTypeLike) -> AttentionForm:
    """Returns the form that ``auto`` means here; cuDNN's limits are those that JAX documents."""
    if platform() == "gpu":
        if jnp.dtype(dtype).itemsize != 2:
            return "dot_product"
        takes_shapes = head_width <= 128 and head_width % 8 == 0 and not (has_bias and length % 2)
        return "cudnn" if takes_shapes else "einsum"
    return "batched_matmul" if platform() == "cpu" else "einsum"


def _mixed_and_weights(
    q: Queries, k: Keys, v: Keys, bias: Bias | None
) -> tuple[Mixed, Float[Array, "batch heads queries keys"]]:
    """Returns the mixed values, and each query's float32 weights over the keys."""
    batch, num_queries, heads, head_width = q.shape
    num_keys = k.shape[1]
    q, k, v = (x.swapaxes(1, 2).reshape(batch * heads, -1, head_width) for x in (q, k, v))
    logits = ((q * head_width**-0.5) @ k.swapaxes(-1, -2)).astype(jnp.float32)
    if bias is not None:
        logits = (logits.reshape(batch, heads, num_queries, num_keys) + bias).reshape(logits.shape)
    weights = jax.nn.softmax(logits)
    mixed = weights.astype(v.dtype) @ v
    mixed = mixed.reshape(batch, heads, num_queries, head_width).swapaxes(1, 2)
    return mixed, weights.reshape(batch, heads, num_queries, num_keys)


def _dot_product(
    q: Queries,
    k: Keys,
    v: Keys,
    bias: Bias | None,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Mixed:
    bias = None if bias is None else bias[None].astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)


def _cudnn(
    q: Queries,
    k: Keys,
    v: Keys,
    bias: Bias | None,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Mixed:
    """Calls cuDNN's attention; an odd number of tokens is padded by one, which is masked.

    JAX refuses to differentiate cuDNN's attention over an odd number of tokens, though only a bias
    needs an even one.
    """
    num_queries, num_keys = q.shape[1], k.shape[1]
    if (num_queries % 2 == 0 and num_keys % 2 == 0) or bias is not None:
        return _dot_product(q, k, v, bias, implementation)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = functools.partial(jnp.full, len(q), dtype=jnp.int32)  # the same on every device
    mixed = jax.nn.dot_product_attention(
        *(q, k, v),
        query_seq_lengths=lengths(num_queries),
        key_value_seq_lengths=lengths(num_keys),
        implementation=implementation,
    )
    return mixed[:, :num_queries]


@jax.custom_vjp
def _einsum(q: Queries, k: Keys, v: Keys, bias: Bias | None) -> Mixed:
    """Computes attention with a backward pass that is written out.

    Automatic differentiation of softmax would keep its float32 values. This backward pass takes the
    weights in the computation's dtype, and gets the sum in softmax's derivative from the mixed
    values: ``sum_k weights_qk d_weights_qk = sum_d mixed_qd d_mixed_qd``.

    Source: Dao et al. 2022, FlashAttention, appendix B.2 (the backward pass).
    """
    return _einsum_forward(q, k, v, bias)[0]


def _einsum_forward(q, k, v, bias):
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
    if bias is not None:
        logits += bias
    weights = jax.nn.softmax(logits).astype(v.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return mixed, (q, k, v, bias, weights, mixed)


def _einsum_backward(residuals, d_mixed):
    q, k, v, bias, weights, mixed = residuals
    d_v = jnp.einsum("bhqk,bqhd->bkhd", weights, d_mixed)
    d_weights = jnp.einsum("bqhd,bkhd->bhqk", d_mixed, v, preferred_element_type=jnp.float32)
    mean = (d_mixed.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1)
    d_logits = weights.astype(jnp.float32) * (d_weights - mean.swapaxes(1, 2)[..., None])
    d_bias = None if bias is None else d_logits.sum(axis=0).astype(bias.dtype)
    d_logits = d_logits.astype(q.dtype)
    d_q = jnp.einsum("bhqk,bkhd->bqhd", d_logits, k) * q.shape[-1] ** -0.5
    d_k = jnp.einsum("bhqk,bqhd->bkhd", d_logits, q)
    return d_q, d_k, d_v, d_bias


_einsum.defvjp(_einsum_forward, _einsum_backward)

_FORMS = {
    "dot_product": _dot_product,
    "cudnn": _cudnn,
    "einsum": _einsum,
}
