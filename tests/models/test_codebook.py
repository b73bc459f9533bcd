"""The codebook: moving averages, revival and k-means, by hand; over several devices as over one."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ddae_jax.models.codebook import (
    Codebook,
    empty_codebook,
    nearest_codes,
    perplexity,
    start_codebook,
    unit_vectors,
    update_codebook,
)


def units(count, width=4, seed=0):
    return np.asarray(unit_vectors(np.random.default_rng(seed).normal(size=(count, width))))


def started(num_codes, width=4, seed=1):
    return Codebook(jnp.asarray(units(num_codes, width, seed)), jnp.full(num_codes, 1 / num_codes))


def test_unit_vectors_have_length_one_and_their_direction():
    values = np.array([[3.0, 4.0], [0.0, -2.0]])
    np.testing.assert_allclose(unit_vectors(values), [[0.6, 0.8], [0, -1]], atol=1e-6)
    assert np.isfinite(unit_vectors(np.zeros((1, 3)))).all()


def test_the_nearest_code_has_the_largest_cosine():
    vectors, codes = units(50), units(7, seed=1)
    squared_distance = ((vectors[:, None] - codes) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest_codes(vectors, codes), squared_distance.argmin(1))


def test_an_update_by_hand():
    codes = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    codebook = Codebook(jnp.asarray(codes), jnp.array([0.5, 0.3, 0.2]))
    vectors = np.array([[0.8, 0.6], [1.0, 0.0], [0.6, 0.8]])
    found = update_codebook(
        jax.random.key(0), codebook, vectors, jnp.array([0, 0, 1]), decay=0.75, revive_below=0.0
    )
    mean = vectors[:2].mean(0) / np.linalg.norm(vectors[:2].mean(0))
    first = 0.75 * codes[0] + 0.25 * mean
    second = 0.75 * codes[1] + 0.25 * vectors[2]
    expected = [first / np.linalg.norm(first), second / np.linalg.norm(second), codes[2]]
    np.testing.assert_allclose(found.codes, expected, atol=1e-6)
    usage = 0.75 * np.array([0.5, 0.3, 0.2]) + 0.25 * np.array([2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(found.usage, usage, atol=1e-6)


def test_a_dead_code_becomes_a_vector_of_the_batch():
    codebook = Codebook(jnp.asarray(units(4, seed=1)), jnp.array([0.5, 0.3, 0.198, 0.002]))
    vectors = units(30)
    indices = jnp.zeros(30, int)
    found = update_codebook(jax.random.key(3), codebook, vectors, indices, 0.9, revive_below=0.01)
    # 0.002 * 0.9 < 0.01 / 4; the others stay above it
    assert np.isclose(found.codes[3], vectors, atol=1e-6).all(axis=1).sum() == 1
    np.testing.assert_array_equal(found.codes[1:3], codebook.codes[1:3])
    np.testing.assert_allclose(found.usage.sum(), 1, atol=1e-6)
    assert found.usage[3] > 0.2  # it has time to be found
    left = update_codebook(jax.random.key(3), codebook, vectors, indices, 0.9, revive_below=0.0)
    np.testing.assert_array_equal(left.codes[3], codebook.codes[3])


def test_no_two_dead_codes_become_the_same_vector():
    vectors = unit_vectors(jax.random.normal(jax.random.key(0), (64, 4)))
    codes = -jnp.broadcast_to(vectors[0], (64, 4))  # none of which is nearest to anything
    codebook = Codebook(codes, jnp.full(64, 1e-6))
    indices = jnp.zeros(64, jnp.int32)
    found = update_codebook(
        jax.random.key(1), codebook, vectors, indices, decay=0.99, revive_below=0.1
    )
    revived = np.asarray(found.codes)[1:]
    assert len(np.unique(revived.round(5), axis=0)) == 63


def test_k_means_finds_clusters_that_are_there():
    centres = np.eye(5)[:4]
    noise = np.random.default_rng(0).normal(0, 0.05, (4, 60, 5))
    vectors = np.asarray(unit_vectors((centres[:, None] + noise).reshape(-1, 5)))
    # Starts with one vector of each cluster or not; more rounds must not spoil it.
    best = max(
        (start_codebook(jax.random.key(seed), vectors, 4) for seed in range(8)),
        key=lambda book: float((vectors @ np.asarray(book.codes).T).max(1).mean()),
    )
    assert ((np.asarray(best.codes) @ centres.T).max(axis=1) > 0.99).all()
    np.testing.assert_allclose(best.usage, 0.25, atol=1e-6)


def test_each_round_of_k_means_brings_codes_nearer():
    vectors = units(400, 6)
    cosines = []
    for rounds in (0, 1, 3, 10):
        codes = start_codebook(jax.random.key(0), vectors, 12, rounds).codes
        np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-5)
        cosines.append(float((vectors @ np.asarray(codes).T).max(axis=1).mean()))
    assert cosines == sorted(cosines)
    assert cosines[-1] > cosines[0] + 0.02


def test_more_codes_than_vectors_start_as_vectors():
    codebook = start_codebook(jax.random.key(0), units(3), 8)
    assert codebook.codes.shape == (8, 4)
    assert np.isfinite(codebook.codes).all()
    np.testing.assert_allclose(codebook.usage.sum(), 1, atol=1e-6)


def test_an_empty_codebook_says_so():
    codebook = empty_codebook(6, 3)
    assert codebook.codes.shape == (6, 3)
    assert float(codebook.usage.sum()) == 0


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20).filter(lambda x: sum(x) > 0.01))
@settings(max_examples=50, deadline=None)
def test_perplexity_lies_between_one_and_the_number_of_codes(usage):
    found = float(perplexity(jnp.asarray(usage)))
    assert 1 - 1e-4 <= found <= len(usage) * (1 + 1e-4)


def test_perplexity_by_hand():
    np.testing.assert_allclose(perplexity(jnp.full(8, 0.125)), 8, rtol=1e-5)
    np.testing.assert_allclose(perplexity(jnp.array([1.0, 0, 0])), 1, rtol=1e-5)
    share = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(perplexity(jnp.asarray(share)), 2**1.5, rtol=1e-5)


def test_over_four_devices_it_is_what_it_is_on_one():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_devices = NamedSharding(mesh, PartitionSpec("data"))
    vectors = units(64, 6)
    split = jax.device_put(vectors, over_devices)
    start = jax.jit(lambda v: start_codebook(jax.random.key(0), v, 10))
    one, four = start(vectors), start(split)
    np.testing.assert_allclose(four.codes, one.codes, atol=1e-6)

    @jax.jit
    def update(codebook, vectors):
        indices = nearest_codes(vectors, codebook.codes)
        return update_codebook(jax.random.key(1), codebook, vectors, indices, 0.9, 0.5)

    one, four = update(one, vectors), update(four, split)
    np.testing.assert_allclose(four.codes, one.codes, atol=1e-6)
    np.testing.assert_allclose(four.usage, one.usage, atol=1e-6)
