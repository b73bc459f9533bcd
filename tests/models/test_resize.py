"""An encoder for images of another size: the positions follow, and nothing else changes."""

import jax
import numpy as np
import pytest

import golden_arrays
import stand_ins
from ddae_jax.models.resize import adapt_encoder, resize_positions, resize_relative_positions
from ddae_jax.models.vit import ViT


def encoder(image_size=(16, 24), **options):
    return ViT(image_size, 4, width=16, depth=1, num_heads=2, **options)


def params_of(module, **options):
    images = np.zeros((1, *module.image_size, 3))
    return stand_ins.parameters(lambda: module.init(jax.random.key(1), images, **options)["params"])


def test_on_the_same_grid_sincos_positions_become_learned_ones_of_the_same_features():
    old, new = encoder(), encoder(positions="learned")
    params = params_of(old)
    images = jax.random.normal(jax.random.key(3), (2, 16, 24, 3))
    adapted = adapt_encoder(params, old, new)
    found = jax.jit(new.apply)({"params": adapted}, images).tokens
    expected = jax.jit(old.apply)({"params": params}, images).tokens
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "learned"},
        {"positions": "none", "relative_positions": "shared"},
        {"positions": "none", "relative_positions": "per_block"},
        {"positions": "learned", "use_class_token": False},
    ],
)
def test_for_larger_images_it_has_what_that_encoder_has(options):
    old, new = encoder(**options), encoder((32, 24), **options)
    adapted = adapt_encoder(params_of(old), old, new)
    assert jax.tree.map(np.shape, adapted) == jax.tree.map(np.shape, params_of(new))
    same = adapt_encoder(params_of(old), old, old)
    jax.tree.map(np.testing.assert_array_equal, same, params_of(old))


def test_the_mask_token_is_left_out():
    old = encoder()
    params = params_of(old, mask=np.ones((1, 24), bool))
    assert "mask_token" in params
    assert "mask_token" not in adapt_encoder(params, old, old)


RESIZE = {"absolute": resize_positions, "relative": resize_relative_positions}
GOLDEN, _ = golden_arrays.load("positions")


@pytest.mark.parametrize("name", sorted({name.rpartition("/")[0] for name in GOLDEN} - {""}))
def test_positions_are_resized_as_those_who_published_them_do(name):
    kind, *grids = name.split("/")
    old, new = (tuple(map(int, grid.split("x"))) for grid in grids)
    found = RESIZE[kind](GOLDEN[f"{name}/given"], old, new)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, GOLDEN[f"{name}/resized"], atol=1e-5)


@pytest.mark.parametrize("new", [(6, 9), (12, 12), (4, 5)])
def test_patches_side_by_side_keep_what_their_relative_position_adds(new):
    table = np.random.default_rng(0).normal(size=(11 * 11 + 3, 2)).astype(np.float32)
    found = resize_relative_positions(table, (6, 6), new)
    np.testing.assert_allclose(nearest(found, new), nearest(table, (6, 6)), atol=1e-5)


def nearest(table, grid):
    """Entries of patches that are at most one row and one column apart."""
    h, w = grid
    on_grid = np.asarray(table)[:-3].reshape(2 * h - 1, 2 * w - 1, -1)
    return on_grid[h - 2 : h + 1, w - 2 : w + 1]


@pytest.mark.parametrize("old", [(1, 1), (2, 2), (1, 3)])
def test_tables_too_small_for_a_cubic_spline_are_resized_too(old):
    count = (2 * old[0] - 1) * (2 * old[1] - 1) + 3
    found = resize_relative_positions(np.full((count, 2), 0.7, np.float32), old, (5, 4))
    np.testing.assert_allclose(found, np.full((9 * 7 + 3, 2), 0.7), rtol=1e-5)


def test_relative_positions_keep_the_middle_and_the_class_tokens():
    old, new = (3, 4), (6, 8)
    table = np.random.default_rng(0).normal(size=(5 * 7 + 3, 2)).astype(np.float32)
    found = np.asarray(resize_relative_positions(table, old, new))
    assert found.shape == (11 * 15 + 3, 2)
    np.testing.assert_array_equal(found[-3:], table[-3:])
    np.testing.assert_allclose(found[5 * 15 + 7], table[2 * 7 + 3], atol=1e-5)  # no way apart
