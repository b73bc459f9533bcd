"""Small train states, and checkpoints of them, for tests of saving and restoring."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.program import TrainState
from ddae_jax.training.sharding import abstract, make_mesh, state_sharding


def make_state(seed=0, width=16):
    """Makes a state with everything that one may hold, with floats that text would not preserve."""
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"layer": {"kernel": rng.normal(size=(8, width)), "bias": rng.normal(size=8)}},
        "supervision": {"beta": rng.normal(size=(2, 3))},
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    special = jnp.asarray([1e-42, -0.0, 3.4e38, 1 / 3, 0, 0, 0, 0], jnp.float32)
    params["encoder"]["layer"]["bias"] += special
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.update(params, optimizer.init(params), params)[1]
    teacher = jax.tree.map(lambda leaf: leaf * 0.5, params["encoder"])
    return TrainState(jnp.int32(seed), params, teacher, opt_state)


def target(state, data=1, fsdp=1):
    mesh = make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    return abstract(state, state_sharding(mesh, state))


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(folder, *steps, **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), step, {"step": step})
        checkpoints.wait()
        return checkpoints.steps()


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
