"""Digests of arrays, computed on the devices that hold them and the same for every sharding."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32


def leaves_by_name(tree: PyTree) -> dict[str, Array]:
    """Returns a tree's leaves by names such as ``params/encoder/norm/scale``.

    A name does not show whether it leads through dicts, tuples or dataclasses.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(_key_name(key) for key in path): leaf for path, leaf in leaves}


def array_digests(tree: PyTree) -> dict[str, str]:
    """Returns a digest of each array of a tree, by its name: dtype, shape and 64 bits in hex.

    Two arrays of the same shape that differ in a single element never have the same digest; if
    they differ in more, they have the same one with a probability of about 2**-32. Digests detect
    damage; they do not protect against forgery. All processes that hold a part of the arrays must
    call this function.

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
    """Returns the two words of each array."""
    digests = []
    for array in arrays:
        digests.append(_digest(array))
        if len(array.sharding.device_set) > 1:
            # On CPUs, several sums over devices may wait for each other if they run concurrently.
            jax.block_until_ready(digests[-1])
    return jax.device_get(digests)


@jax.jit
def _digest(array: Array) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """Returns two sums of an array's words modulo 2**32, each word times an odd factor.

    The factor depends on the word's place along the axis that is summed. Sums of integers do not
    depend on the order, and so not on the number of devices. Neither mixing a word nor an odd
    factor loses a bit, so a change of one element changes the first sum. The last axis is summed
    twice, with different mixing and factors.
    """
    words = _mixed(_words(array))
    while words.ndim > 1:
        words = jnp.sum(words * _odd(words, 2), axis=0, dtype=jnp.uint32)
    words = words.reshape(-1)  # a scalar has one word and no axis
    second = _mixed(words * np.uint32(0x85EBCA6B)) * _odd(words, 0x9E3779B2)
    # Scalars, which are whole on each of the array's devices, however the array is laid out.
    return jnp.sum(words * _odd(words, 2), dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)


def _mixed(words: UInt32[Array, "*words"]) -> UInt32[Array, "*words"]:
    """Mixes the high bits into the low ones, which are all 0 in floats with few digits."""
    return words ^ (words >> 16)


def _odd(words: UInt32[Array, "*words"], step: int) -> UInt32[Array, "*words"]:
    """Returns an odd number for each place along the first axis."""
    return jax.lax.broadcasted_iota(jnp.uint32, words.shape, 0) * np.uint32(step) + 1


def _words(array: Array) -> UInt32[Array, "*words"]:
    """Returns an array's bits as 32-bit words, at least one for each element."""
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"no digest of an array of {array.dtype}")
    width = min(8 * array.dtype.itemsize, 32)  # a 64-bit element gives two words
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)


def _key_name(key) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
