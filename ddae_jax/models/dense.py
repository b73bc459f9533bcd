"""The affine layer that all networks are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from ddae_jax.models.backend import platform


class Dense(nn.Module):
    """An affine layer: ``inputs @ kernel + bias``, see :func:`matrix_product`.

    Attributes:
        features: number of values of an output.
        dtype: dtype of the computation; parameters are float32.
        kernel_init: Xavier-uniform by default.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, inputs: Float[ArrayLike, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Applies the layer to the last axis."""
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        product = matrix_product(inputs.astype(self.dtype), kernel.astype(self.dtype))
        return product + bias.astype(self.dtype)


def matrix_product(
    inputs: Float[ArrayLike, "*batch inputs"], kernel: Float[ArrayLike, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """Computes ``inputs @ kernel``; on a CPU the inputs are flattened to one matrix first.

    The gradient of a batched product contracts two axes. For this, XLA's CPU backend first
    transposes the whole batch, which is slow; the gradient of a matrix product avoids it
    (benchmarks/results/cpu_layers.json). On a TPU, whose tiles hold eight rows, flattening 197
    tokens per image would move every value.
    """
    # NumPy's own product of bfloat16 is float32.
    inputs, kernel = jnp.asarray(inputs), jnp.asarray(kernel)
    if platform() != "cpu":
        return inputs @ kernel
    outputs = _product_on_cpu(inputs.reshape(-1, inputs.shape[-1]), kernel)
    return outputs.reshape(*inputs.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product_on_cpu(
    inputs: Float[ArrayLike, "rows inputs"], kernel: Float[ArrayLike, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """Computes ``inputs @ kernel``; its gradient by the kernel first copies a factor row by row.

    XLA's CPU backend has fast products only for left factors stored row by row. For a transposed
    one it can be half as fast (benchmarks/results/cpu_layers.json).
    """
    return inputs @ kernel


def _forward(inputs: ArrayLike, kernel: ArrayLike) -> tuple[Array, tuple[Array, Array]]:
    return inputs @ kernel, (inputs, kernel)


def _backward(residuals: tuple[ArrayLike, ArrayLike], gradient: ArrayLike) -> tuple[Array, Array]:
    inputs, kernel = residuals
    if inputs.size <= gradient.size + kernel.size:
        of_kernel = _transposed(inputs) @ gradient
    else:  # copies less
        of_kernel = jax.lax.optimization_barrier(_transposed(gradient) @ inputs).T
    return gradient @ kernel.T, of_kernel


def _transposed(matrix: ArrayLike) -> Array:
    """Copies the transpose; without the barrier, the product would read the original matrix."""
    return jax.lax.optimization_barrier(matrix.T)


_product_on_cpu.defvjp(_forward, _backward)
