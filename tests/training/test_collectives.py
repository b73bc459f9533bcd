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
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.sharding import make_mesh


@pytest.mark.slow
@pytest.mark.parametrize("has_decoder", [False, True])
def test_no_device_gathers_the_activations_of_others(has_decoder):
    encoder = ViT((16, 16), 4, width=16, depth=2, num_heads=2)
    decoder = Decoder(encoder.grid, 8, 1, 2) if has_decoder else None
    method = find_method("ddae").build(
        encoder,
        decoder,
        sample_mask=functools.partial(random_mask, grid=encoder.grid, num_masked=8),
        num_masked=8,
        depths=(1, 2),
    )
    rate = lambda step: 1e-3  # noqa: E731
    optimizer = make_optimizer(rate, total_steps=10)
    train = TrainProgram(
        method, lambda key, x: x / 255.0, optimizer, rate, rate, channels=3, seed=0
    )
    images = jax.ShapeDtypeStruct((32, 16, 16, 3), "uint8")
    lowered = train.jit(make_mesh()).lower(train.state_shapes(), images)
    program = lowered.compile().as_text()
    assert "all-reduce" in program  # of gradients
    assert not re.findall(r"f32\[[^\]]*\][^=]* all-gather", program)
