import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddae_jax.masking import random_mask
from ddae_jax.methods.ddae import ddae
from ddae_jax.models.vit import ViT
from ddae_jax.models.weight_decay import DECAYED_ON_DEMAND, check_decay_also, is_decayed
from ddae_jax.training.optimizer import (
    keep_in_range,
    make_finetuning_optimizer,
    make_optimizer,
    parameter_groups,
)

B1, B2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 0.9, 0.95, 1e-8, 0.1, 1.0
TOTAL_STEPS, BETA_STEP = 50, 5.0


def learning_rate(step):
    return 0.01 * (step + 1)


def small_params():
    rng = np.random.default_rng(0)
    return {
        "encoder": {
            "layer": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)},
            "norm": {"scale": rng.normal(size=4)},
            "mask_token": rng.normal(size=4),
        },
        "supervision": {"beta": np.full((2, 3), -0.5)},
    }


def as_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def take_steps(optimizer, params, gradients):
    params = as_float32(params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(as_float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


def adamw_by_hand(params, gradients):
    """Applies Loshchilov & Hutter 2019, algorithm 2, in float64 to a dict of arrays."""
    params = {name: param.copy() for name, param in params.items()}
    first = {name: np.zeros_like(param) for name, param in params.items()}
    second = {name: np.zeros_like(param) for name, param in params.items()}
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
        for name, param in params.items():
            g = gradient[name] * min(1, CLIP_NORM / norm)
            first[name] = B1 * first[name] + (1 - B1) * g
            second[name] = B2 * second[name] + (1 - B2) * g**2
            m = first[name] / (1 - B1 ** (step + 1))
            v = second[name] / (1 - B2 ** (step + 1))
            decay = WEIGHT_DECAY * param if name == "kernel" else 0
            params[name] = param - learning_rate(step) * (m / (np.sqrt(v) + EPSILON) + decay)
    return params


def test_network_follows_adamw_with_its_own_clipping_and_beta_plain_descent():
    rng = np.random.default_rng(1)
    params = small_params()
    # Gradient norms around the clipping norm, and a gradient of beta that would dwarf them.
    gradients = [
        jax.tree.map(lambda p, s=scale: rng.normal(size=p.shape) * s, params)
        for scale in (0.05, 3.0, 0.2, 0.6)
    ]
    for gradient in gradients:
        gradient["supervision"]["beta"] *= 1e-2 / np.abs(gradient["supervision"]["beta"]).max()
    gradients[2]["supervision"]["beta"][0, 0] = 1e3
    optimizer = make_optimizer(
        learning_rate,
        total_steps=TOTAL_STEPS,
        weight_decay=WEIGHT_DECAY,
        b1=B1,
        b2=B2,
        clip_norm=CLIP_NORM,
        beta_step=BETA_STEP,
    )
    found = take_steps(optimizer, params, gradients)

    def network(tree):
        encoder = tree["encoder"]
        return encoder["layer"] | encoder["norm"] | {"mask_token": encoder["mask_token"]}

    expected = adamw_by_hand(network(params), [network(gradient) for gradient in gradients])
    for name, param in network(found).items():
        np.testing.assert_allclose(param, expected[name], rtol=2e-6, atol=2e-7, err_msg=name)
    beta = params["supervision"]["beta"]
    for gradient in gradients:
        beta = beta - BETA_STEP / TOTAL_STEPS * gradient["supervision"]["beta"]
    np.testing.assert_allclose(found["supervision"]["beta"], beta.clip(-2, 2), rtol=1e-6)
    assert found["supervision"]["beta"][0, 0] == -2


def test_without_a_clipping_norm_nothing_is_clipped():
    params = {"layer": {"kernel": np.ones((2, 2))}}
    gradients = [{"layer": {"kernel": np.full((2, 2), size)}} for size in (1e-3, 1e3)]
    found = take_steps(make_optimizer(learning_rate, total_steps=10), params, gradients)
    clipped = take_steps(
        make_optimizer(learning_rate, total_steps=10, clip_norm=1e-3), params, gradients
    )
    # In the second step without clipping, the large gradient dominates m: 0.1 / 0.19 over
    # sqrt(0.05 / 0.0975). With clipping, both gradients are of similar size: Adam takes a whole
    # step.
    steps = [0.01, 0.02 * (0.1 / 0.19) / np.sqrt(0.05 / 0.0975)]
    decay = np.prod([1 - 0.01 * 0.05, 1 - 0.02 * 0.05])
    expected = decay - steps[0] * (1 - 0.02 * 0.05) - steps[1]
    np.testing.assert_allclose(found["layer"]["kernel"], expected, rtol=1e-5)
    assert (found["layer"]["kernel"] > clipped["layer"]["kernel"] + 1e-3).all()


@pytest.fixture(scope="module")
def model_params():
    """Returns the shapes of a model with every kind of parameter."""
    encoder = ViT(
        (8, 8),
        4,
        width=8,
        depth=1,
        num_heads=1,
        positions="learned",
        relative_positions="per_block",
        layer_scale=0.1,
        has_key_bias=False,
        norms_embedding=True,
    )
    method = ddae(
        encoder,
        None,
        sample_mask=functools.partial(random_mask, grid=(2, 2), num_masked=2),
        num_masked=2,
        depths=(1,),
    )
    return jax.eval_shape(functools.partial(method.init, channels=3), jax.random.key(0))


def test_only_kernels_decay(model_params):
    flags = jax.tree.leaves_with_path(is_decayed(model_params))
    decayed = {path[-1].key for path, flag in flags if flag}
    spared = {path[-1].key for path, flag in flags if not flag}
    assert decayed == {"kernel"}
    branches = {"query_bias", "value_bias", "attention_scale", "mlp_scale"}
    assert spared == {"bias", "scale", "beta", *branches, *DECAYED_ON_DEMAND.values()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("also", "names"),
    [
        ("class_token,mask_token", {"class_token", "mask_token"}),
        (" relative_positions , mask_token,", {"table", "mask_token"}),
        (",".join(DECAYED_ON_DEMAND), set(DECAYED_ON_DEMAND.values())),
    ],
)
def test_tokens_and_positions_decay_where_they_are_named(model_params, also, names):
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), model_params)
    gradient = jax.tree.map(jnp.zeros_like, params)
    options = {"weight_decay": 0.25, "decay_also": also}
    optimizers = (
        make_optimizer(lambda step: 0.5, total_steps=10, **options),
        make_finetuning_optimizer(optax.constant_schedule(0.5), depth=1, **options),
    )
    for optimizer in optimizers:
        after = jax.tree.leaves_with_path(take_steps(optimizer, params, [gradient]))
        shrunk = {path[-1].key for path, leaf in after if np.all(leaf == 1 - 0.5 * 0.25)}
        kept = {path[-1].key for path, leaf in after if np.all(leaf == 1)}
        assert shrunk == {"kernel", *names}
        assert shrunk | kept == {path[-1].key for path, _ in after}
        assert not shrunk & kept


def test_what_weight_decay_cannot_include_is_told_with_what_it_can():
    told = (
        "decay_also='mask_token,cls_token': 'cls_token' is nothing that weight decay may include "
        "beside kernels; known, separated by commas: 'class_token', 'mask_token', 'positions', "
        "'relative_positions'; did you mean 'class_token'?"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        check_decay_also("mask_token,cls_token")
    check_decay_also("")


def test_without_a_gradient_only_kernels_shrink(model_params):
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), model_params)
    gradient = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(lambda step: 0.5, total_steps=10, weight_decay=0.25)
    after = take_steps(optimizer, params, [gradient])
    for path, leaf in jax.tree.leaves_with_path(after):
        np.testing.assert_array_equal(leaf, 1 - 0.5 * 0.25 if path[-1].key == "kernel" else 1)


def test_beta_is_a_group_of_its_own(model_params):
    groups = jax.tree.leaves_with_path(parameter_groups(model_params))
    assert {path[-1].key for path, group in groups if group == "beta"} == {"beta"}
    assert {group for _, group in groups} == {"beta", "network"}


@pytest.mark.parametrize("gradient", [-0.1, -0.35, 0.2])
def test_beta_against_progress_does_not_depend_on_the_length_of_the_run(gradient):
    def trajectory(total_steps):
        optimizer = make_optimizer(learning_rate, total_steps=total_steps, beta_step=5.0)
        params = {"beta": jnp.array([-0.5])}

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update({"beta": jnp.array([gradient])}, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params["beta"][0]

        carry = (params, optimizer.init(params))
        return jax.jit(lambda c: jax.lax.scan(step, c, length=total_steps)[1])(carry)

    progress = np.arange(1, 21) / 20
    expected = np.clip(-0.5 - 5.0 * gradient * progress, -2, 2)
    # Each step rounds beta, whose magnitude is up to 2, once.
    np.testing.assert_allclose(trajectory(20), expected, atol=20 * 1.2e-7)
    np.testing.assert_allclose(trajectory(200)[9::10], expected, atol=200 * 1.2e-7)


@given(
    param=st.floats(-3, 3, width=32),
    update=st.floats(-10, 10, width=32),
    bounds=st.tuples(st.floats(-2, 0, width=32), st.floats(0, 2, width=32)),
)
def test_updates_end_in_the_range(param, update, bounds):
    transform = keep_in_range(*bounds)
    updates, _ = transform.update({"b": jnp.float32(update)}, optax.EmptyState(), {"b": param})
    ended = np.float32(param) + np.float32(updates["b"])
    expected = np.clip(np.float32(param) + np.float32(update), *np.float32(bounds))
    np.testing.assert_allclose(ended, expected, atol=3 * 2**-23, rtol=0)


def test_beta_that_starts_outside_the_range_is_brought_into_it():
    optimizer = make_optimizer(learning_rate, total_steps=10, beta_range=(-0.25, 1.0))
    found = take_steps(optimizer, {"beta": np.array([-2.0, 3.0])}, [{"beta": np.zeros(2)}])
    np.testing.assert_array_equal(found["beta"], [-0.25, 1.0])


def test_a_range_the_wrong_way_round_is_refused():
    with pytest.raises(ValueError, match=r"beta_range=\(1.0, -1.0\).*start must not exceed"):
        make_optimizer(learning_rate, total_steps=10, beta_range=(1.0, -1.0))
