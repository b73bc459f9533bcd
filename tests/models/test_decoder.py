"""The light decoder: visible tokens at their places, mask tokens elsewhere, one set of weights."""

import jax
import numpy as np
import pytest

from ddae_jax.models.decoder import Decoder
from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.vit import Features

GRID = (2, 3)
MASK = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
NUM_VISIBLE = 2


def decoder_of(depth: int, **options) -> Decoder:
    return Decoder(grid=GRID, width=8, depth=depth, num_heads=2, **options)


def features_of(num_depths: int, has_class_token: bool, seed: int = 0) -> Features:
    shape = (num_depths, len(MASK), NUM_VISIBLE + has_class_token, 12)
    tokens = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Features(tokens=tokens, has_class_token=has_class_token)


def params_of(decoder: Decoder, features: Features):
    """Parameters of which none is at a special value."""
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), features, MASK))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def decode(decoder, params, features, mask=MASK):
    return np.asarray(jax.jit(decoder.apply)({"params": params}, features, mask))


@pytest.mark.parametrize("has_class_token", [True, False])
def test_visible_tokens_stand_at_their_own_places_and_mask_tokens_elsewhere(has_class_token):
    decoder = decoder_of(depth=0)  # what the blocks would see, normalised
    features = features_of(2, has_class_token)
    params = params_of(decoder, features)
    for depth, tokens in enumerate(np.asarray(features.patches, np.float64)):
        for image, mask in enumerate(MASK):
            full = np.tile(params["mask_token"].astype(np.float64), (6, 1))
            embedding = params["embedding"]
            full[np.flatnonzero(~mask)] = tokens[image] @ embedding["kernel"] + embedding["bias"]
            full += sincos_positions(GRID, 8)
            full -= full.mean(-1, keepdims=True)
            full /= np.sqrt(full.var(-1, keepdims=True) + 1e-6)
            expected = full * params["norm"]["scale"] + params["norm"]["bias"]
            found = decode(decoder, params, features)[depth, image]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_class_token", [True, False])
def test_every_depth_goes_through_the_same_parameters(has_class_token):
    decoder = decoder_of(depth=2)
    features = features_of(3, has_class_token)
    params = params_of(decoder, features)
    together = decode(decoder, params, features)
    assert together.shape == (3, 3, 6, 8)
    for depth in range(3):
        one = features.replace(tokens=features.tokens[depth : depth + 1])
        alone = decode(decoder, params, one)[0]
        np.testing.assert_allclose(together[depth], alone, rtol=1e-5, atol=1e-5)
    of_one = params_of(decoder, features_of(1, has_class_token))
    assert jax.tree.map(np.shape, of_one) == jax.tree.map(np.shape, params)


def test_the_class_token_is_attended_to_but_not_decoded():
    decoder = decoder_of(depth=1)
    features = features_of(1, has_class_token=True)
    params = params_of(decoder, features)
    decoded = decode(decoder, params, features)
    assert decoded.shape == (1, 3, 6, 8)
    tokens = features.tokens.copy()
    tokens[:, 0, 0] += np.arange(12)
    changed = decode(decoder, params, features.replace(tokens=tokens))
    assert (np.abs(changed - decoded)[:, 0] > 1e-6).any(axis=-1).all()
    np.testing.assert_array_equal(changed[:, 1:], decoded[:, 1:])


def test_images_do_not_mix():
    decoder = decoder_of(depth=1)
    features = features_of(2, has_class_token=True)
    params = params_of(decoder, features)
    other = features.replace(tokens=features.tokens[:, ::-1])
    np.testing.assert_allclose(
        decode(decoder, params, other, MASK[::-1]),
        decode(decoder, params, features)[:, ::-1],
        rtol=1e-5,
        atol=1e-5,
    )


def test_bfloat16_decodes_in_bfloat16_from_float32_parameters():
    decoder = decoder_of(depth=1, dtype="bfloat16")
    features = features_of(1, has_class_token=True)
    variables = jax.jit(decoder.init)(jax.random.key(0), features, MASK)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert decode(decoder, variables["params"], features).dtype == "bfloat16"


def test_rematerialization_changes_no_result():
    features = features_of(1, has_class_token=True)
    params = params_of(decoder_of(depth=1), features)
    plain = decode(decoder_of(depth=1), params, features)
    found = decode(decoder_of(depth=1, rematerialization="full"), params, features)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def test_fewer_blocks_may_decode_the_depths_before_the_last():
    features = features_of(3, has_class_token=True)
    cheap, whole = decoder_of(depth=3, intermediate_blocks=2), decoder_of(depth=3)
    params = params_of(whole, features)
    assert jax.tree.map(np.shape, params_of(cheap, features)) == jax.tree.map(np.shape, params)
    found = decode(cheap, params, features)
    np.testing.assert_allclose(found[-1], decode(whole, params, features)[-1], rtol=1e-5, atol=1e-5)
    first_blocks = {name: value for name, value in params.items() if name != "block_03"}
    expected = decode(decoder_of(depth=2), first_blocks, features)[:-1]
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-5, atol=1e-5)


def test_without_a_mask_all_patches_are_decoded_and_none_is_filled_in():
    decoder = decoder_of(depth=1)
    tokens = np.random.default_rng(2).normal(size=(1, 3, 6, 12)).astype(np.float32)
    features = Features(tokens=tokens, has_class_token=False)
    params = params_of(decoder, features_of(1, has_class_token=False))
    without = {name: value for name, value in params.items() if name != "mask_token"}
    found = decode(decoder, without, features, None)
    expected = decode(decoder, params, features, np.zeros((3, 6), bool))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
