"""Tests of a model's operations against formulas by hand and the compiler's own count."""

import functools

import jax
import jax.numpy as jnp
import pytest

import tiny
from ddae_jax.aot.flops import model_flops
from ddae_jax.builders.methods import build_method
from ddae_jax.jobs.cli import load_config
from ddae_jax.masking import random_mask
from ddae_jax.methods import find_method
from ddae_jax.models.vit import ViT


def products_of_blocks(tokens, width, depth, mlp_ratio=4):
    """Counts a forward pass by hand: qkv, projection and MLP; attention logits and mixing."""
    dense = 2 * tokens * width * width * (3 + 1 + 2 * mlp_ratio)
    attention = 2 * 2 * tokens * tokens * width
    return depth * (dense + attention)


def test_a_vision_transformer_by_hand():
    encoder = ViT((32, 48), 8, width=24, depth=3, num_heads=2)
    images = jnp.zeros((5, 32, 48, 3))
    params = jax.eval_shape(encoder.init, jax.random.key(0), images)

    def loss(params, images):
        return encoder.apply(params, images).tokens.sum()

    patches = 4 * 6
    embedding = 2 * patches * (8 * 8 * 3) * 24
    blocks = products_of_blocks(patches + 1, 24, 3)
    # Each product of a block has two factors with a gradient; the input of the first layer has no
    # gradient.
    assert model_flops(loss, params, images) == 5 * (3 * blocks + 2 * embedding)


def test_a_teacher_counts_once_and_hidden_patches_alone_meet_the_head():
    encoder = ViT((32, 32), 8, width=24, depth=2, num_heads=2)
    method = find_method("ddae").build(
        encoder,
        None,
        sample_mask=functools.partial(random_mask, grid=(4, 4), num_masked=10),
        num_masked=10,
        depths=(1, 2),
    )
    params = jax.eval_shape(lambda: method.init(jax.random.key(0), 3))
    found = model_flops(
        method.loss,
        params,
        params["encoder"],
        jnp.zeros((3, 32, 32, 3)),
        jax.random.key(0),
    )
    embedding = 2 * 16 * 192 * 24
    blocks = products_of_blocks(17, 24, 2)
    head = 2 * 2 * 10 * 24 * (192 + 24)
    assert found == 3 * ((3 + 1) * blocks + (2 + 1) * embedding + 3 * head)


@pytest.mark.slow
def test_deep_dynamic_supervision_of_vit_b_costs_no_more_than_it_may():
    """Returns the operations of a step; a compiler's own count is a little higher."""

    def operations(cell):
        config = load_config(f"{tiny.ROOT / 'configs' / 'imagenet.py'}:{cell}")
        method = build_method(config)
        params = jax.eval_shape(lambda: method.init(jax.random.key(0), 3))
        teacher = jax.eval_shape(method.init_teacher, params)
        images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)

        def loss(params, teacher, images):
            return method.loss(params, teacher, images, jax.random.key(0), progress=0.5)

        return model_flops(loss, params, teacher, images) / 2

    mae = operations("mae,last")
    assert operations("mae,deep_dynamic") < 1.25 * mae
    ddae = operations("ddae,deep_dynamic")
    assert 1.5 * mae < ddae < 2.0 * mae
    assert 100e9 < ddae < 110e9  # 144e9 with full input


def test_stopped_gradients_loops_and_branches():
    square = jnp.ones((4, 4))
    product = 2 * 4**3

    def stopped(p, x):
        return (jax.lax.stop_gradient(p @ x) @ x).sum()

    def looped(p, x):
        return jax.lax.scan(lambda c, _: (c @ p, None), x, None, length=5)[0].sum()

    def branched(p, x):
        return jax.lax.cond(x[0, 0] > 0, lambda: p @ x, lambda: (p @ x) @ p).sum()

    assert model_flops(stopped, square, square) == 2 * product + product
    # The carry depends on the parameters after the first iteration.
    assert model_flops(looped, square, square) == 5 * 3 * product
    assert model_flops(branched, square, square) == 2 * product + 3 * product
    assert model_flops(jax.jit(looped), square, square) == 5 * 3 * product
    assert model_flops(jax.checkpoint(stopped), square, square) == 3 * product


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_a_convolution_by_hand(strides):
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def convolve(kernel, image):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, strides, "SAME", dimension_numbers=dimensions
        ).sum()

    side = 8 // strides[0]
    assert model_flops(convolve, kernel, image) == 2 * (2 * 2 * side * side * 5 * 3 * 3 * 3)


def test_the_compiler_counts_the_same_products():
    """XLA also counts element-wise operations, which are few if tokens are wide."""
    encoder = ViT((32, 32), 8, width=256, depth=2, num_heads=2)
    images = jnp.zeros((2, 32, 32, 3))
    params = jax.eval_shape(encoder.init, jax.random.key(0), images)

    def loss(params, images):
        return jnp.square(encoder.apply(params, images).tokens).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, images).compile()
    ratio = compiled.cost_analysis()["flops"] / model_flops(loss, params, images)
    assert 1 < ratio < 1.03
