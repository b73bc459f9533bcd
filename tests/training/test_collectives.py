"""Tests of what devices send each other in a step, read from the compiled program."""

import functools
import re

import jax
import pytest

from ddae_jax.masking import random_mask
from ddae_jax.methods import find_method
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT
from ddae_jax.training.optimizer import make_optimizer
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.state import init_state
from ddae_jax.training.step import jit_train_step, make_train_step


@pytest.mark.parametrize("has_decoder", [False, True])
def test_no_device_gathers_the_activations_of_others(has_decoder):
    encoder = ViT((16, 16), 4, width=16, depth=2, num_heads=2)
    decoder = Decoder(encoder.grid, 8, 1, 2) if has_decoder else None
    method = find_method("ddae")(
        encoder,
        decoder,
        sample_mask=functools.partial(random_mask, grid=encoder.grid, num_masked=8),
        num_masked=8,
        depths=(1, 2),
    )
    rate = lambda step: 1e-3  # noqa: E731
    optimizer = make_optimizer(rate, total_steps=10)
    make = functools.partial(init_state, method=method, optimizer=optimizer, channels=3)
    state = jax.eval_shape(make, jax.random.key(0))
    step = make_train_step(
        method, optimizer, lambda key, x: x / 255.0, learning_rate=rate, momentum=rate, seed=0
    )
    images = jax.ShapeDtypeStruct((32, 16, 16, 3), "uint8")
    program = jit_train_step(step, make_mesh(), state).lower(state, images).compile().as_text()
    assert "all-reduce" in program  # it sums gradients
    assert not re.findall(r"f32\[[^\]]*\][^=]* all-gather", program)
