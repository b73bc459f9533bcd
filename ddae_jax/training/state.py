"""The train state: everything that a step changes, and all that a checkpoint of it holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ddae_jax.methods.method import Method


@flax.struct.dataclass
class TrainState:
    """State between two steps. Randomness is no part of it: step k draws from fold_in(seed, k).

    Attributes:
        step: steps taken so far.
        params: the student's parameters, float32, beta among them.
        teacher: the momentum encoder's parameters, a tree of its own; empty if there is none.
        opt_state: the optimizer's.
    """

    step: Int[Array, ""]
    params: PyTree
    teacher: PyTree
    opt_state: Any


def init_state(
    key: PRNGKeyArray, method: Method, optimizer: optax.GradientTransformation, channels: int
) -> TrainState:
    """A fresh state; the teacher starts as a copy of the student's encoder."""
    params = method.init(key, channels)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher=jax.tree.map(jnp.copy, method.teacher_of(params)),
        opt_state=optimizer.init(params),
    )
