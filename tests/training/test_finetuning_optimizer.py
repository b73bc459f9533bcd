"""Tests of layer-wise learning rates, LARS, and a frozen encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddae_jax.training.optimizer import layer_of, make_finetuning_optimizer

PARAMS = {
    "encoder": {
        "patch_embedding": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "class_token": jnp.ones(2),
        "shared_bias": {"table": jnp.ones((3, 1))},
        "block_01": {"mlp_in": {"kernel": jnp.ones((2, 2))}},
        "relative_positions_02": {"table": jnp.ones((3, 1))},
        "block_02": {"mlp_in": {"kernel": jnp.ones((2, 2))}},
        "norm": {"scale": jnp.ones(2)},
    },
    "classifier": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
}
LAYERS = {
    ("encoder", "patch_embedding", "kernel"): 0,
    ("encoder", "class_token"): 0,
    ("encoder", "positions"): 0,
    ("encoder", "mask_token"): 0,
    ("encoder", "embedding_norm", "scale"): 0,
    ("encoder", "block_01", "mlp_in", "kernel"): 1,
    ("encoder", "relative_positions_02", "table"): 2,
    ("encoder", "shared_bias", "table"): 3,
    ("encoder", "norm", "scale"): 3,
    ("classifier", "kernel"): 3,
    ("norm", "scale"): 3,
}


def first_update(**options):
    optimizer = make_finetuning_optimizer(optax.constant_schedule(0.1), depth=2, **options)

    @jax.jit
    def update(params):
        gradient = jax.tree.map(jnp.ones_like, params)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    return update(PARAMS)


@pytest.mark.parametrize(("path", "layer"), LAYERS.items())
def test_every_parameter_has_its_layer(path, layer):
    assert layer_of(path, depth=2) == layer


def test_each_layer_learns_slower_than_the_next():
    found = first_update(layer_decay=0.5, weight_decay=0.0)
    # Adam's first step has the size of the learning rate, whatever the gradient.
    for path, layer in LAYERS.items():
        node = found
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if node is not None:
            np.testing.assert_allclose(node, -0.1 * 0.5 ** (3 - layer), rtol=1e-4)


def test_weight_decay_is_of_kernels_and_scaled_alike():
    found = first_update(layer_decay=0.5, weight_decay=0.5)
    np.testing.assert_allclose(found["classifier"]["kernel"], -0.1 * 1.5, rtol=1e-4)
    np.testing.assert_allclose(found["classifier"]["bias"], -0.1, rtol=1e-4)
    kernel = found["encoder"]["block_01"]["mlp_in"]["kernel"]
    np.testing.assert_allclose(kernel, -0.1 * 1.5 * 0.25, rtol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "lars"])
def test_a_frozen_encoder_does_not_move(kind):
    found = first_update(kind=kind, is_frozen=True, weight_decay=0.5)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(found["encoder"]))
    assert all(np.all(leaf < 0) for leaf in jax.tree.leaves(found["classifier"]))


def test_lars_by_hand():
    found = first_update(kind="lars", weight_decay=0.5, decay_also="class_token")
    # trust = 0.001 |w| / |g + decay * w| for kernels; biases take the plain gradient.
    trust = 0.001 * 2 / (1.5 * 2)
    np.testing.assert_allclose(found["encoder"]["class_token"], -0.1 * 1.5, rtol=1e-4)
    np.testing.assert_allclose(found["classifier"]["kernel"], -0.1 * trust * 1.5, rtol=1e-4)
    np.testing.assert_allclose(found["classifier"]["bias"], -0.1, rtol=1e-4)
