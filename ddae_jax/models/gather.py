"""The choice of patches, in the form that suits the platform."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Num

from ddae_jax.models.backend import platform


def at_patches(
    values: Num[ArrayLike, "depths batch patches *values"], indices: Int[ArrayLike, "batch chosen"]
) -> Num[Array, "depths batch chosen *values"]:
    """Returns the values of each image's chosen patches.

    On a TPU, vectors are chosen by a product with zeros and ones. It is exact, and its gradient is
    such a product too; gathering and scattering rows takes several times as long there.
    """
    values = jnp.asarray(values)
    if platform() == "tpu" and values.ndim == 4 and jnp.issubdtype(values.dtype, jnp.floating):
        is_chosen = jax.nn.one_hot(indices, values.shape[2], dtype=values.dtype)
        return jnp.einsum("bcn,dbnv->dbcv", is_chosen, values, precision="highest")
    choose = jax.vmap(lambda of_image, chosen: of_image[:, chosen], in_axes=(1, 0), out_axes=1)
    return choose(values, indices)
