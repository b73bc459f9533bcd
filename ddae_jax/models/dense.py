"""The affine layer that all networks here are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddae_jax.models.backend import platform


class Dense(nn.Module):
    """``inputs @ kernel + bias``; see :func:`matrix_product`.

    Attributes:
        features: values of an output.
        dtype: of the computation; parameters are float32.
        kernel_init: Xavier-uniform by default.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Applies the layer to the last axis."""
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        product = matrix_product(inputs.astype(self.dtype), kernel.astype(self.dtype))
        return product + bias.astype(self.dtype)


def matrix_product(
    inputs: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """``inputs @ kernel``. On a CPU, the inputs become one matrix first.

    The gradient of a batched product contracts two axes, for which XLA's CPU backend transposes
    the whole batch first, slowly; that of a matrix product does not
    (benchmarks/results/cpu_layers.json). On a TPU, whose tiles hold eight rows, flattening 197
    tokens an image moves every value.
    """
    if platform() != "cpu":
        return inputs @ kernel
    outputs = _product_on_cpu(inputs.reshape(-1, inputs.shape[-1]), kernel)
    return outputs.reshape(*inputs.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product_on_cpu(
    inputs: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """``inputs @ kernel``, whose gradient by the kernel copies a factor into its order first.

    XLA's CPU backend has its fast products for left factors that lie row by row only; what it takes
    for a transposed one is up to half as fast (benchmarks/results/cpu_layers.json).
    """
    return inputs @ kernel


def _forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return inputs @ kernel, (inputs, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    inputs, kernel = kept
    if inputs.size <= gradient.size + kernel.size:
        of_kernel = _transposed(inputs) @ gradient
    else:  # less is copied this way
        of_kernel = jax.lax.optimization_barrier(_transposed(gradient) @ inputs).T
    return gradient @ kernel.T, of_kernel


def _transposed(matrix: Array) -> Array:
    """A copy: without the barrier, the product would read the matrix as it lies."""
    return jax.lax.optimization_barrier(matrix.T)


_product_on_cpu.defvjp(_forward, _backward)
