"""Tests of digests: they distinguish arrays, and are the same on any number of devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.training.digests import array_digests, leaves_by_name
from ddae_jax.training.sharding import make_mesh, state_sharding


def digest(array) -> str:
    (found,) = array_digests({"array": array}).values()
    return found


def numpy_digest(array: np.ndarray) -> str:
    """Computes the same sums word by word, with Python's integers."""

    def mixed(word):
        return word ^ word >> 16

    width = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
    words = np.vectorize(mixed, otypes=[object])(array.view(width).astype(object))
    while words.ndim > 1:
        words = sum(row * (2 * place + 1) for place, row in enumerate(words)) % 2**32
    words = [int(word) for word in words.reshape(-1)]
    first = sum(word * (2 * place + 1) for place, word in enumerate(words))
    second = sum(
        mixed(word * 0x85EBCA6B % 2**32) * ((place * 0x9E3779B2 + 1) % 2**32)
        for place, word in enumerate(words)
    )
    return f"{array.dtype}{list(array.shape)} {first % 2**32:08x}{second % 2**32:08x}"


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_digests_agree_with_sums_by_hand(shape, dtype):
    array = np.random.default_rng(0).normal(size=shape) * 100
    array = np.asarray(jnp.asarray(array).astype(dtype))
    assert digest(array) == numpy_digest(array)


def test_a_flip_of_any_bit_shows():
    array = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    found = {digest(array)}
    for place, bit in itertools.product(range(array.size), range(32)):
        flipped = array.copy()
        flipped.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
        found.add(digest(flipped))
    assert len(found) == 1 + 32 * array.size


@pytest.mark.parametrize("low_bits_are_zero", [False, True])
def test_rearranged_and_overwritten_arrays_show(low_bits_are_zero):
    array = np.random.default_rng(0).normal(size=(32, 48)).astype(np.float32)
    if low_bits_are_zero:  # as in weights that were bfloat16 once
        array = np.asarray(jnp.asarray(array).astype(jnp.bfloat16).astype(jnp.float32))
    changed = [array[::-1], array[:, ::-1], np.roll(array, 1), np.roll(array, 48)]
    for start in range(0, array.size - 64, 32):
        zeroed = array.copy()
        zeroed.reshape(-1)[start : start + 64] = 0
        changed.append(zeroed)
    found = {digest(np.ascontiguousarray(other)) for other in changed}
    assert len(found) == len(changed)
    assert digest(array) not in found


def test_shape_and_dtype_are_in_the_digest():
    zeros = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32)]
    assert [digest(array).split()[0] for array in zeros] == ["float32[4]", "float32[2,", "int32[4]"]
    assert digest(np.zeros((0, 3), np.float32)) == "float32[0, 3] 0000000000000000"
    assert digest(np.float32(-0.0)) != digest(np.float32(0))
    assert digest(np.array([True, False])) != digest(np.array([False, True]))


@pytest.mark.parametrize("shape", [(16, 24), (24,), ()])
def test_the_sharding_does_not_show(shape):
    array = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)}
    expected = array_digests(array)
    for data, fsdp in ((1, 8), (8, 1), (2, 4)):
        mesh = make_mesh(data, fsdp, jax.devices())
        placed = jax.device_put(array, state_sharding(mesh, array))
        assert array_digests(placed) == expected


def test_random_keys_are_refused():
    with pytest.raises(TypeError, match="no digest of an array of key"):
        digest(jax.random.key(0))


def test_names_do_not_tell_containers_apart():
    tree = {"a": [jnp.zeros(1), {"b": jnp.ones(1)}], "c": (jnp.zeros(2),)}
    assert list(leaves_by_name(tree)) == ["a/0", "a/1/b", "c/0"]
