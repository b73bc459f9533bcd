"""The choice of patches, in the form that suits the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from ddae_jax.models.backend import platform


def at_patches(
    values: Num[Array, "depths batch patches *values"], indices: Int[Array, "batch chosen"]
) -> Num[Array, "depths batch chosen *values"]:
    """The values of each image's chosen patches.

    On a TPU, vectors are chosen by a product with zeros and ones, which is exact, and whose
    gradient is another one: gathering and scattering rows there takes several times as long.
    """
    if platform() == "tpu" and values.ndim == 4 and jnp.issubdtype(values.dtype, jnp.floating):
        is_chosen = jax.nn.one_hot(indices, values.shape[2], dtype=values.dtype)
        return jnp.einsum("bcn,dbnv->dbcv", is_chosen, values, precision="highest")
    choose = jax.vmap(lambda of_image, chosen: of_image[:, chosen], in_axes=(1, 0), out_axes=1)
    return choose(values, indices)
