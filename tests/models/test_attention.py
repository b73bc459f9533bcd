"""The attention weights that can be read, against the equations in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from ddae_jax.evaluation.attention_distance import attention_distance
from ddae_jax.models.attention import ATTENTION, CrossAttention, SelfAttention, _cudnn, best_form
from ddae_jax.models.backend import compiled_for
from ddae_jax.models.vit import ViT, attention_by_block

SMALL = {"image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 3, "num_heads": 2}
FORMS = ("batched_matmul", "dot_product", "einsum")
WIDTH, HEADS, TOKENS = 16, 2, 7


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def params_of(module, *shape):
    """Parameters of which none is at a special value, as biases are at first."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape)))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def by_block(encoder, params, images):
    return attention_by_block(encoder, params, images)


def numpy_weights_and_output(params, tokens, bias):
    """softmax(q k' / sqrt(d) + bias), and what it makes of the values; float64."""
    qkv = tokens.astype(np.float64) @ params["qkv"]["kernel"]
    if "bias" in params["qkv"]:
        qkv = qkv + params["qkv"]["bias"]
    q, k, v = np.split(qkv, 3, axis=-1)
    q, v = q + params.get("query_bias", 0), v + params.get("value_bias", 0)
    q, k, v = (part.reshape(*part.shape[:2], HEADS, WIDTH // HEADS) for part in (q, k, v))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(WIDTH / HEADS)
    weights = softmax(logits if bias is None else logits + bias, axis=-1)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(tokens.shape)
    return weights, mixed @ params["projection"]["kernel"] + params["projection"]["bias"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_key_bias", [True, False])
@pytest.mark.parametrize("bias", [None, normal(3, HEADS, TOKENS, TOKENS)], ids=["plain", "biased"])
def test_weights_are_those_that_mix_the_values_whatever_the_form(form, has_key_bias, bias):
    module = SelfAttention(HEADS, form, has_key_bias)
    tokens = normal(2, 3, TOKENS, WIDTH)
    params = params_of(module, *tokens.shape)
    expected_weights, expected = numpy_weights_and_output(params, tokens, bias)

    @functools.partial(jax.jit, static_argnames="mutable")
    def apply(params, mutable=False):
        return module.apply({"params": params}, tokens, bias, mutable=mutable)

    output, sown = apply(params, mutable=(ATTENTION,))
    (weights,) = sown[ATTENTION]["weights"]
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    for found in (output, apply(params)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("relative_positions", ["none", "shared", "per_block"])
def test_the_weights_of_all_blocks_are_read_first_to_last(relative_positions):
    encoder = ViT(**SMALL, relative_positions=relative_positions, positions="none")
    images = normal(0, 2, 8, 12, 3)
    params = params_of(encoder, *images.shape)
    found = by_block(encoder, params, images)
    assert [weights.shape for weights in found] == [(2, 2, 7, 7)] * 3
    # A shallower encoder has the same first blocks.
    first = by_block(encoder.clone(depth=2), params, images)
    np.testing.assert_allclose(found[1], first[1], rtol=1e-5, atol=1e-7)
    assert not np.allclose(found[0], found[1], atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("word", ["dots", "full"])
def test_rematerialization_and_form_do_not_change_what_is_read(word, form):
    encoder = ViT(**SMALL)
    images = normal(0, 2, 8, 12, 3)
    params = params_of(encoder, *images.shape)
    expected = by_block(encoder, params, images)
    found = by_block(encoder.clone(rematerialization=word, attention_form=form), params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_weights_of_a_bfloat16_encoder_still_sum_to_one():
    encoder = ViT(**SMALL, dtype=jnp.bfloat16)
    images = normal(0, 2, 8, 12, 3)
    found = jnp.stack(by_block(encoder, params_of(encoder, *images.shape), images))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_sown_unless_it_is_asked_for(form):
    encoder = ViT(**SMALL, attention_form=form)
    images = jnp.zeros((1, 8, 12, 3))
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images))
    assert set(variables) == {"params"}
    _, state = jax.eval_shape(lambda v: encoder.apply(v, images, mutable=["cache"]), variables)
    assert not jax.tree.leaves(state)


@pytest.mark.slow
def test_reading_all_blocks_takes_no_more_memory_than_reading_some():
    def peak(depth):
        encoder = ViT((64, 64), patch_size=4, width=16, depth=depth, num_heads=2)
        images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
        params = jax.eval_shape(encoder.init, jax.random.key(0), images)["params"]

        def distances(params, images):
            weights = attention_by_block(encoder, params, images)
            return [attention_distance(of_block, encoder.grid, True) for of_block in weights]

        compiled = jax.jit(distances).lower(params, images).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    of_one_block = 4 * 8 * 2 * 257**2
    assert peak(9) - peak(3) < of_one_block


@pytest.mark.parametrize("form", ["dot_product", "einsum"])
@pytest.mark.parametrize("bias", [None, normal(3, HEADS, TOKENS, TOKENS)], ids=["plain", "biased"])
def test_every_form_has_the_same_gradients(form, bias):
    tokens = normal(2, 3, TOKENS, WIDTH)
    params = params_of(SelfAttention(HEADS), *tokens.shape)

    def gradients(form):
        def loss(params, tokens, bias):
            mixed = SelfAttention(HEADS, form).apply({"params": params}, tokens, bias)
            return jnp.sin(mixed).sum()

        wanted = (0, 1) if bias is None else (0, 1, 2)
        return jax.jit(jax.grad(loss, argnums=wanted))(params, tokens, bias)

    expected = gradients("batched_matmul")
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.1
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3),
        gradients(form),
        expected,
    )


@pytest.mark.slow
def test_a_token_more_for_cudnn_changes_nothing():
    heads = normal(0, 3, 2, 7, HEADS, 8)  # queries, keys and values

    def mixed_and_gradients(mix):
        return mix(*heads), jax.grad(lambda *heads: jnp.sin(mix(*heads)).sum(), (0, 1, 2))(*heads)

    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5),
        mixed_and_gradients(lambda *heads: _cudnn(*heads, None, implementation="xla")),
        mixed_and_gradients(jax.nn.dot_product_attention),
    )


@pytest.mark.slow
def test_the_form_of_tpus_loses_no_more_in_bfloat16_than_others():
    tokens = normal(2, 3, TOKENS, WIDTH)
    params = params_of(SelfAttention(HEADS), *tokens.shape)

    def mixed(form, dtype=jnp.bfloat16):
        module = SelfAttention(HEADS, form, dtype=dtype)
        return np.asarray(module.apply({"params": params}, tokens), np.float32)

    exact = mixed("batched_matmul", jnp.float32)
    errors = {form: np.abs(mixed(form) - exact).mean() for form in ("dot_product", "einsum")}
    assert 0 < errors["einsum"] < 1.5 * errors["dot_product"]


@pytest.mark.parametrize(
    ("platform", "dtype", "head_width", "length", "has_bias", "expected"),
    [
        ("cpu", "bfloat16", 64, 197, False, "batched_matmul"),
        ("tpu", "bfloat16", 64, 197, True, "einsum"),
        ("gpu", "bfloat16", 64, 197, False, "cudnn"),
        ("gpu", "float16", 80, 197, False, "cudnn"),
        ("gpu", "bfloat16", 64, 196, True, "cudnn"),
        ("gpu", "bfloat16", 64, 197, True, "einsum"),
        ("gpu", "float32", 64, 197, False, "dot_product"),
        ("gpu", "bfloat16", 20, 197, False, "einsum"),
    ],
)
def test_auto_takes_what_suits_the_platform(
    platform, dtype, head_width, length, has_bias, expected
):
    with compiled_for(platform):
        assert best_form(length, head_width, has_bias, dtype) == expected


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_attends_from_some_tokens_to_others(form):
    tokens, memory = normal(4, 3, 5, WIDTH), normal(5, 3, 8, WIDTH + 4)
    variables = CrossAttention(HEADS).init(jax.random.key(0), tokens, memory)

    def mixed_and_gradients(form):
        def loss(variables, tokens, memory):
            mixed = CrossAttention(HEADS, form).apply(variables, tokens, memory)
            return jnp.sin(mixed).sum(), mixed

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(variables, tokens, memory)

    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4),
        mixed_and_gradients(form),
        mixed_and_gradients("batched_matmul"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 8), (6, 7), (5, 7)])
def test_an_odd_number_of_queries_or_keys_is_padded_for_cudnn(num_queries, num_keys):
    q = normal(0, 2, num_queries, HEADS, 8)
    k, v = normal(1, 2, 2, num_keys, HEADS, 8)
    expected = jax.nn.dot_product_attention(q, k, v)
    found = _cudnn(q, k, v, None, implementation="xla")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
