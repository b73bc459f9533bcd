"""An encoder for images of another size: the positions follow, and nothing else changes."""

import jax
import numpy as np
import pytest

from ddae_jax.models.resize import adapt_encoder, resize_positions, resize_relative_positions
from ddae_jax.models.vit import ViT


def encoder(image_size=(16, 24), **options):
    return ViT(image_size, 4, width=16, depth=1, num_heads=2, **options)


def params_of(module, **options):
    images = jax.random.normal(jax.random.key(0), (1, *module.image_size, 3))
    params = jax.jit(lambda: module.init(jax.random.key(1), images, **options))()["params"]
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), params
    )


def test_on_the_same_grid_sincos_positions_become_learned_ones_of_the_same_features():
    old, new = encoder(), encoder(positions="learned")
    params = params_of(old)
    images = jax.random.normal(jax.random.key(3), (2, 16, 24, 3))
    adapted = adapt_encoder(params, old, new)
    np.testing.assert_allclose(
        new.apply({"params": adapted}, images).tokens,
        old.apply({"params": params}, images).tokens,
        atol=1e-5,
    )


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
    wanted = jax.eval_shape(lambda: params_of(new))
    assert jax.tree.map(np.shape, adapted) == jax.tree.map(np.shape, wanted)
    same = adapt_encoder(params_of(old), old, old)
    jax.tree.map(np.testing.assert_array_equal, same, params_of(old))


def test_the_mask_token_is_left_out():
    old = encoder()
    params = params_of(old, mask=np.ones((1, 24), bool))
    assert "mask_token" in params
    assert "mask_token" not in adapt_encoder(params, old, old)


def test_positions_that_rise_over_the_grid_still_do_where_it_is_finer():
    rising = np.stack(np.meshgrid(np.arange(6.0), np.arange(4.0)), -1).reshape(24, 2)
    found = resize_positions(rising.astype(np.float32), (4, 6), (8, 12)).reshape(8, 12, 2)
    inner = np.asarray(found)[3:-3, 3:-3]  # a cubic kernel reproduces lines away from the edge
    np.testing.assert_allclose(np.diff(inner[..., 0], axis=1), 0.5, atol=1e-5)
    np.testing.assert_allclose(np.diff(inner[..., 1], axis=0), 0.5, atol=1e-5)
    np.testing.assert_allclose(found[3, 3], [(3 + 0.5) / 2 - 0.5, (3 + 0.5) / 2 - 0.5], atol=1e-5)


def test_relative_positions_keep_the_middle_and_the_class_tokens():
    old, new = (3, 4), (6, 8)
    table = np.random.default_rng(0).normal(size=(5 * 7 + 3, 2)).astype(np.float32)
    found = np.asarray(resize_relative_positions(table, old, new))
    assert found.shape == (11 * 15 + 3, 2)
    np.testing.assert_array_equal(found[-3:], table[-3:])
    np.testing.assert_allclose(found[5 * 15 + 7], table[2 * 7 + 3], atol=1e-5)  # no way apart
