"""Digests of arrays, computed on the devices that hold them, alike for every sharding."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32


def leaves_by_name(tree: PyTree) -> dict[str, Array]:
    """Lists a tree's leaves by names such as ``params/encoder/norm/scale``.

    The names do not tell dicts, tuples and dataclasses apart.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(_key_name(key) for key in path): leaf for path, leaf in leaves}


def array_digests(tree: PyTree) -> dict[str, str]:
    """Computes a digest of each array of a tree, by its name: dtype, shape and 64 bits in hex.

    Two arrays of one shape that differ in a single element never have the same digest; others
    have it with a chance of some 2**-32. Digests find damage; they are no protection against
    somebody who forges them. All processes that hold a part of the arrays must call it.

    Raises:
        TypeError: for arrays of complex numbers or of random keys.
    """
    leaves = {name: jnp.asarray(leaf) for name, leaf in leaves_by_name(tree).items()}
    words = dict(zip(leaves, _digests(list(leaves.values())), strict=True))
    return {
        name: f"{leaf.dtype}{list(leaf.shape)} {words[name][0]:08x}{words[name][1]:08x}"
        for name, leaf in leaves.items()
    }


def _digests(arrays: list[Array]) -> list[tuple[np.uint32, np.uint32]]:
    """The two words of each array."""
    found = []
    for array in arrays:
        found.append(_digest(array))
        if len(array.sharding.device_set) > 1:
            # On CPUs, sums over devices that are under way together may wait for each other.
            jax.block_until_ready(found[-1])
    return jax.device_get(found)


@jax.jit
def _digest(array: Array) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """Sums an array's bits, axis by axis, modulo 2**32, each times an odd number of its place.

    Sums of whole numbers are the same in every order, and so on any number of devices. Neither
    mixing a word nor an odd factor loses a bit: what changes one element changes the first sum.
    The last axis is summed twice, differently.
    """
    words = _mixed(_words(array))
    while words.ndim > 1:
        words = jnp.sum(words * _odd(words, 2), axis=0, dtype=jnp.uint32)
    words = words.reshape(-1)  # of a scalar, one
    second = _mixed(words * np.uint32(0x85EBCA6B)) * _odd(words, 0x9E3779B2)
    # Scalars, since whatever the devices of an array are, each of them has those whole.
    return jnp.sum(words * _odd(words, 2), dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)


def _mixed(words: UInt32[Array, "*words"]) -> UInt32[Array, "*words"]:
    """Adds high bits to the low ones, which are all 0 in floats of few digits."""
    return words ^ (words >> 16)


def _odd(words: UInt32[Array, "*words"], step: int) -> UInt32[Array, "*words"]:
    """An odd number for each place along the first axis."""
    return jax.lax.broadcasted_iota(jnp.uint32, words.shape, 0) * np.uint32(step) + 1


def _words(array: Array) -> UInt32[Array, "*words"]:
    """An array's bits as 32-bit words: at least one for each element."""
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"no digest of an array of {array.dtype}")
    width = min(8 * array.dtype.itemsize, 32)  # an element of 64 bits gives two words
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)


def _key_name(key) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
