"""The light decoder: visible tokens at their places, mask tokens elsewhere, one set of weights."""

import functools

import jax
import numpy as np
import pytest
from scipy import special

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


def decode(decoder, params, features, mask=MASK, **options):
    apply = jax.jit(functools.partial(decoder.apply, **options))
    return np.asarray(apply({"params": params}, features, mask))


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


@pytest.mark.slow
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


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def numpy_layer(values, params):
    mean, variance = values.mean(-1, keepdims=True), values.var(-1, keepdims=True)
    return (values - mean) / np.sqrt(variance + 1e-6) * params["scale"] + params["bias"]


def numpy_dense(values, params):
    return values @ params["kernel"].astype(np.float64) + params["bias"]


def numpy_cross_block(queries, memory, params, num_heads=2):
    """``x + attention(norm(x), memory)``, then ``x + mlp(norm(x))``, of one image."""
    width, attention = queries.shape[-1], params["attention"]
    q = numpy_dense(numpy_layer(queries, params["attention_norm"]), attention["query"])
    k, v = np.split(numpy_dense(memory, attention["key_value"]), 2, axis=-1)
    mixed = []
    for part in np.split(np.arange(width), num_heads):
        weights = softmax(q[:, part] @ k[:, part].T / np.sqrt(len(part)))
        mixed.append(weights @ v[:, part])
    queries = queries + numpy_dense(np.concatenate(mixed, axis=-1), attention["projection"])
    hidden = numpy_dense(numpy_layer(queries, params["mlp_norm"]), params["mlp_in"])
    hidden = hidden * special.ndtr(hidden)
    return queries + numpy_dense(hidden, params["mlp_out"])


@pytest.mark.parametrize("has_class_token", [True, False])
def test_cross_attention_decodes_hidden_places_from_visible_features(has_class_token):
    decoder = decoder_of(depth=2, kind="cross")
    features = features_of(2, has_class_token)
    params = params_of(decoder, features)
    assert "embedding" not in params
    found = decode(decoder, params, features)
    queries = params["mask_token"].astype(np.float64) + sincos_positions(GRID, 8)
    for depth, image in np.ndindex(2, 3):
        memory = features.tokens[depth, image].astype(np.float64)
        expected = queries
        for name in ("block_01", "block_02"):
            expected = numpy_cross_block(expected, memory, params[name])
        expected = numpy_layer(expected, params["norm"])
        np.testing.assert_allclose(found[depth, image], expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_decodes_each_place_by_itself():
    decoder = decoder_of(depth=1, kind="cross")
    features = features_of(2, has_class_token=True)
    params = params_of(decoder, features)
    everywhere = decode(decoder, params, features)
    places = np.array([[5, 0], [1, 3], [2, 0]])
    found = decode(decoder, params, features, places=places)
    for image, chosen in enumerate(places):
        expected = everywhere[:, image, chosen]
        np.testing.assert_allclose(found[:, image], expected, rtol=1e-5, atol=1e-6)


def test_cross_attention_may_decode_earlier_depths_by_fewer_blocks():
    features = features_of(3, has_class_token=True)
    cheap = decoder_of(depth=2, kind="cross", intermediate_blocks=1)
    whole = decoder_of(depth=2, kind="cross")
    params = params_of(whole, features)
    found = decode(cheap, params, features)
    np.testing.assert_allclose(found[-1], decode(whole, params, features)[-1], rtol=1e-5, atol=1e-6)
    first = {name: value for name, value in params.items() if name != "block_02"}
    one = decode(decoder_of(depth=1, kind="cross"), first, features)
    np.testing.assert_allclose(found[:-1], one[:-1], rtol=1e-5, atol=1e-6)
    earlier = features.replace(tokens=features.tokens[:-1])
    alone = decode(cheap, params, earlier, holds_last=False)
    np.testing.assert_allclose(alone, one[:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("has_class_token", [True, False])
def test_self_attention_decodes_some_hidden_places_as_if_there_were_no_others(has_class_token):
    """The same as a decoder of a smaller image, whose places have the positions of these."""
    decoder = decoder_of(depth=1)
    features = features_of(2, has_class_token)
    params = params_of(decoder, features)
    places = np.array([[5, 0], [1, 3], [2, 0]])
    found = decode(decoder, params, features, places=places)
    swapped = decode(decoder, params, features, places=places[:, ::-1])
    np.testing.assert_allclose(found, swapped[:, :, ::-1], rtol=1e-5, atol=1e-6)
    all_places = np.stack([np.flatnonzero(row) for row in MASK])
    whole = decode(decoder, params, features, places=all_places)
    everywhere = decode(decoder, params, features)
    for image, chosen in enumerate(all_places):
        expected = everywhere[:, image, chosen]
        np.testing.assert_allclose(whole[:, image], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found[:, 0, 1] - whole[:, 0, 0]).max() > 1e-3  # fewer tokens to attend to


def test_a_decoder_of_no_known_kind_or_without_a_mask_is_refused():
    features = features_of(1, has_class_token=False)
    with pytest.raises(ValueError, match="decoder.kind='both'; known: 'self', 'cross'"):
        decoder_of(depth=1, kind="both").init(jax.random.key(0), features, MASK)
    with pytest.raises(ValueError, match="needs a mask"):
        decoder_of(depth=1, kind="cross").init(jax.random.key(0), features)
