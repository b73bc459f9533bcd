"""The pre-norm transformer block, of which encoder and decoder are stacks."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from ddae_jax.models.attention import AttentionForm, CrossAttention, SelfAttention
from ddae_jax.models.dense import Dense

Rematerialization = Literal["none", "dots", "full"]
Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}


class Block(nn.Module):
    """A block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``, with stochastic depth.

    Given a memory, tokens attend to it instead of to each other.

    Attributes:
        num_heads: number of attention heads.
        mlp_width: hidden width of the MLP.
        drop_path_rate: probability that an image skips a branch in training (needs the random
            stream ``drop_path``).
        attention_form, has_key_bias: see :class:`SelfAttention`.
        activation: activation of the MLP: ``gelu``; ``quick_gelu`` (Radford et al. 2021, CLIP); or
            ``gelu_tanh``, the approximation by tanh (Steiner et al. 2021, AugReg).
        norm_epsilon: term that layer norms add to the variance.
        layer_scale: initial value of the learned factors of each branch's values; None for no
            factors (Touvron et al. 2021, CaiT, section 3).
        dtype: dtype of the computation.

    Source: Dosovitskiy et al. 2021, equations 2 and 3; Huang et al. 2016 (stochastic depth).
    """

    num_heads: int
    mlp_width: int
    drop_path_rate: float = 0.0
    attention_form: AttentionForm = "auto"
    has_key_bias: bool = True
    layer_scale: float | None = None
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[ArrayLike, "batch tokens features"],
        is_training: bool = False,
        attention_bias: Float[ArrayLike, "heads tokens tokens"] | None = None,
        memory: Float[ArrayLike, "batch keys memory_features"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        drop_path = nn.Dropout(
            self.drop_path_rate,
            broadcast_dims=(1, 2),
            rng_collection="drop_path",
            deterministic=not is_training,
        )
        normed = layer_norm(self.dtype, self.norm_epsilon, name="attention_norm")(tokens)
        if memory is None:
            attention = SelfAttention(
                self.num_heads, self.attention_form, self.has_key_bias, self.dtype, name="attention"
            )
            mixed = attention(normed, attention_bias)
        else:
            attention = CrossAttention(
                self.num_heads, self.attention_form, self.dtype, name="attention"
            )
            mixed = attention(normed, memory)
        tokens = tokens + drop_path(self._scale("attention_scale", mixed))
        hidden = layer_norm(self.dtype, self.norm_epsilon, name="mlp_norm")(tokens)
        hidden = Dense(self.mlp_width, dtype=self.dtype, name="mlp_in")(hidden)
        hidden = _ACTIVATIONS[self.activation](hidden)
        hidden = Dense(tokens.shape[-1], dtype=self.dtype, name="mlp_out")(hidden)
        return tokens + drop_path(self._scale("mlp_scale", hidden))

    def _scale(
        self, name: str, values: Float[Array, "batch tokens features"]
    ) -> Float[Array, "batch tokens features"]:
        if self.layer_scale is None:
            return values
        factors = self.param(name, nn.initializers.constant(self.layer_scale), values.shape[-1:])
        return values * factors.astype(self.dtype)


def block_class(rematerialization: Rematerialization) -> type[Block]:
    """Returns :class:`Block`, made to recompute its activations in the backward pass as asked.

    ``none`` recomputes nothing, ``dots`` keeps the results of matrix products with parameters, and
    ``full`` keeps only the block's input.

    Raises:
        ValueError: for any other word.
    """
    if rematerialization == "none":
        return Block
    if rematerialization not in _REMAT_POLICIES:
        raise ValueError(
            f"rematerialization={rematerialization!r}; known: 'none', {list(_REMAT_POLICIES)}"
        )
    return nn.remat(Block, static_argnums=(2,), policy=_REMAT_POLICIES[rematerialization])


@jax.custom_jvp
def gelu(values: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Computes ``x / 2 * (1 + erf(x / sqrt 2))``, the exact form.

    ``jax.nn.gelu`` uses ``erfc``, which has two branches that are both evaluated; ``erf`` avoids
    them (benchmarks/results/cpu_layers.json). It is computed in float32: in bfloat16, ``1 + erf``
    would keep only two digits of a small tail. The backward pass needs only the derivative, which
    is stored in the dtype of the values instead of three float32 arrays.

    Source: Hendrycks & Gimpel 2016, section 2.
    """
    exact = values.astype(jnp.float32)
    return (exact * _normal_distribution(exact)).astype(values.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[ArrayLike], tangents: tuple[ArrayLike]) -> tuple[Array, Array]:
    (values,), (tangent,) = primals, tangents
    exact = values.astype(jnp.float32)
    distribution = _normal_distribution(exact)
    density = jnp.exp(-0.5 * exact * exact) * (2 * jnp.pi) ** -0.5
    derivative = (distribution + exact * density).astype(values.dtype)
    return (exact * distribution).astype(values.dtype), derivative * tangent


def _normal_distribution(values: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    return 0.5 * (1 + jax.lax.erf(values * 0.5**0.5))


def quick_gelu(values: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Computes ``x * sigmoid(1.702 x)`` (Hendrycks & Gimpel 2016, section 2)."""
    return values * jax.nn.sigmoid(1.702 * values)


def gelu_tanh(values: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Computes ``x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.

    Source: Hendrycks & Gimpel 2016.
    """
    return jax.nn.gelu(values, approximate=True)


_ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "gelu_tanh": gelu_tanh}


def layer_norm(dtype: DTypeLike, epsilon: float = 1e-6, name: str | None = None) -> nn.LayerNorm:
    """Returns a layer norm with the vision transformer's epsilon and float32 statistics."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=name)


def token_initializer() -> nn.initializers.Initializer:
    """Returns the initializer of class and mask tokens: normal, standard deviation 0.02.

    Source: Devlin et al. 2019.
    """
    return nn.initializers.normal(0.02)
