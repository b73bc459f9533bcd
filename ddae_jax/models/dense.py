"""The affine layer that all networks here are made of."""

import flax.linen as nn
from jaxtyping import Array, Float

from ddae_jax.models.platform import platform


class Dense(nn.Dense):
    """``inputs @ kernel + bias``; Xavier-uniform kernel. On a CPU, inputs become a matrix first.

    The gradient of a batched product contracts two axes, for which XLA's CPU backend transposes
    the whole batch first, slowly; that of a matrix product does not
    (benchmarks/results/cpu_layers.json). On a TPU, whose tiles hold eight rows, flattening 197
    tokens an image moves every value.
    """

    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    def __call__(self, inputs: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        """Applies the layer to the last axis."""
        if platform() != "cpu":
            return super().__call__(inputs)
        outputs = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return outputs.reshape(*inputs.shape[:-1], self.features)
