"""Tests of attention distance: cases with results by hand, and a whole dataset."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.images import CorruptImage
from ddae_jax.evaluation.attention_distance import (
    Locality,
    attention_distance,
    mass_within,
    measure_locality,
    patch_distances,
    uniform_distance,
    uniform_mass,
)
from ddae_jax.models.vit import ViT, attention_by_block
from ddae_jax.training.sharding import make_mesh

GRIDS = [(1, 1), (4, 4), (3, 5)]
COUNT = 37
ENCODER = ViT((8, 12), patch_size=4, width=8, depth=2, num_heads=2, mlp_ratio=2.0)


def centres(grid):
    return np.array([(row, column) for row in range(grid[0]) for column in range(grid[1])], float)


def random_weights(num_tokens, batch=3, heads=2, seed=0):
    weights = np.random.default_rng(seed).exponential(size=(batch, heads, num_tokens, num_tokens))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def of_one_head(weights):
    return jnp.asarray(weights, jnp.float32)[None, None]


def with_class_token(weights, to_class):
    """Adds a class token, which gets a share of the attention and itself attends at random."""
    batch, heads, patches, _ = weights.shape
    found = random_weights(1 + patches, batch, heads, seed=1)
    found[..., 1:, 1:] = (1 - to_class) * weights
    found[..., 1:, 0] = to_class
    return found


@pytest.mark.parametrize("grid", GRIDS)
def test_distances_are_scipys(grid):
    expected = cdist(centres(grid), centres(grid))
    np.testing.assert_allclose(patch_distances(grid), expected, rtol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_attention_to_oneself_has_distance_0_and_is_all_near(grid):
    weights = of_one_head(np.eye(grid[0] * grid[1]))
    assert attention_distance(weights, grid, False).tolist() == [0]
    assert mass_within(weights, grid, False, 0).tolist() == [1]


@pytest.mark.parametrize("grid", GRIDS)
def test_uniform_attention_has_the_mean_distance_of_all_pairs(grid):
    apart = cdist(centres(grid), centres(grid))
    weights = of_one_head(np.full(apart.shape, 1 / len(apart)))
    np.testing.assert_allclose(attention_distance(weights, grid, False), [apart.mean()], rtol=1e-6)
    assert uniform_distance(grid) == pytest.approx(apart.mean(), rel=1e-12)
    for radius in (0, 1, 2, 2.5):
        expected = (apart <= radius).mean()
        np.testing.assert_allclose(mass_within(weights, grid, False, radius), expected, rtol=1e-6)
        assert uniform_mass(grid, radius) == pytest.approx(expected, rel=1e-12)


def test_uniform_mass_by_hand():
    # Among nine keys, each corner has three within 1 patch, each edge four, and the centre five.
    assert uniform_mass((3, 3), 1) == pytest.approx((4 * 3 + 4 * 4 + 5) / 81)
    assert uniform_mass((3, 3), 2**0.5) == pytest.approx((4 * 4 + 4 * 6 + 9) / 81)


@pytest.mark.parametrize(
    ("rows", "columns", "distance"), [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 2**0.5), (2, 1, 5**0.5)]
)
def test_attention_to_one_neighbour_gives_its_distance(rows, columns, distance):
    grid = (4, 6)
    index = np.arange(24).reshape(grid)
    # Keys are the given distance down and right, or up and left if the border is nearer.
    r, c = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    r = np.where(r + rows < 4, r + rows, r - rows)
    c = np.where(c + columns < 6, c + columns, c - columns)
    weights = of_one_head(np.eye(24)[index[r, c].ravel()])
    np.testing.assert_allclose(attention_distance(weights, grid, False), [distance], rtol=1e-6)
    assert mass_within(weights, grid, False, distance).tolist() == [1]
    assert mass_within(weights, grid, False, distance - 0.01).tolist() == [0]


def test_heads_are_told_apart_and_images_and_queries_averaged():
    grid = (2, 3)
    weights, apart = random_weights(6), cdist(centres(grid), centres(grid))
    for head, (found, near) in enumerate(
        zip(
            attention_distance(weights, grid, False),
            mass_within(weights, grid, False, 1),
            strict=True,
        )
    ):
        reached, within = [], []
        for image in range(3):
            for query in range(6):
                row = weights[image, head, query].astype(np.float64)
                reached.append(sum(row[key] * apart[query, key] for key in range(6)))
                within.append(sum(row[key] for key in range(6) if apart[query, key] <= 1))
        assert float(found) == pytest.approx(np.mean(reached), rel=1e-5)
        assert float(near) == pytest.approx(np.mean(within), rel=1e-5)


@pytest.mark.parametrize("to_class", [0.0, 0.3, 0.99])
def test_the_class_token_counts_neither_as_query_nor_as_key(to_class):
    grid, weights = (3, 4), random_weights(12)
    seen = with_class_token(weights, to_class)
    np.testing.assert_allclose(
        attention_distance(seen, grid, True), attention_distance(weights, grid, False), rtol=1e-5
    )
    np.testing.assert_allclose(
        mass_within(seen, grid, True, 2), mass_within(weights, grid, False, 2), rtol=1e-5
    )


def test_attention_that_is_all_on_the_class_token_is_no_nan():
    weights = with_class_token(random_weights(6), 1.0)
    assert np.isfinite(attention_distance(weights, (2, 3), True)).all()


@pytest.mark.parametrize(("has_class_token", "num_tokens"), [(True, 6), (False, 7), (True, 8)])
def test_weights_of_another_grid_are_refused(has_class_token, num_tokens):
    with pytest.raises(ValueError, match=rf"of {num_tokens} tokens.* grid has 6 patches"):
        attention_distance(random_weights(num_tokens), (2, 3), has_class_token)


def normalize(images):
    return images / 127.5 - 1


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 12, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def params():
    """Parameters with which attention is neither uniform nor on a single key."""
    shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def weights(images, params):
    """Measures all images in one batch on one device."""
    found = jax.jit(functools.partial(attention_by_block, ENCODER))(
        params, normalize(images.astype(np.float32))
    )
    return np.asarray(found)


def batches(images, batch_size, corrupt=None):
    labels = np.full(COUNT, -1, np.int32)
    errors = {index: CorruptImage(error) for index, error in (corrupt or {}).items()}
    return eval_batches(ArraySource(images, labels, corrupt=errors), (8, 12), batch_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "batch_size", "corrupt"),
    [((8, 1), 8, {}), ((4, 2), 16, {3: "torn", 36: "torn"}), ((1, 1), 64, {})],
)
def test_every_valid_image_counts_once_whatever_the_devices(
    images, params, weights, devices, batch_size, corrupt
):
    mesh = make_mesh(*devices, jax.devices()[: devices[0] * devices[1]])
    locality = measure_locality(
        ENCODER, params, normalize, batches(images, batch_size, corrupt), mesh, radii=(1, 1.5)
    )
    is_valid = [index not in corrupt for index in range(COUNT)]
    assert locality.num_images == sum(is_valid)
    assert (locality.grid, locality.patch_size) == ((2, 3), 4)
    assert list(locality.mass) == [1, 1.5]
    for depth, of_block in enumerate(weights[:, is_valid]):
        expected = attention_distance(of_block, (2, 3), True)
        np.testing.assert_allclose(locality.distance[depth], expected, rtol=1e-5)
        for radius, mass in locality.mass.items():
            expected = mass_within(of_block, (2, 3), True, radius)
            np.testing.assert_allclose(mass[depth], expected, rtol=1e-5)
    assert locality.distance.std() > 0.01


def test_no_image_at_all_is_refused(images, params):
    torn = dict.fromkeys(range(COUNT), "torn")
    with pytest.raises(ValueError, match="no image to look at"):
        measure_locality(ENCODER, params, normalize, batches(images, 64, torn), make_mesh())


def test_pixels_are_patches_times_their_size():
    locality = Locality(np.array([[0.5, 2.0]]), {}, 1, (2, 3), patch_size=16)
    np.testing.assert_array_equal(locality.distance_in_pixels, [[8, 32]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        locality.num_images = 2
