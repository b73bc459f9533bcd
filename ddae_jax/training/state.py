"""The train state: everything that a step changes, and all that a checkpoint of it holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ddae_jax.methods.task import Trainable


@flax.struct.dataclass
class TrainState:
    """State between two steps. Randomness is no part of it: step k draws from fold_in(seed, k).

    Attributes:
        step: steps taken so far.
        params: the student's parameters, float32, beta among them.
        teacher: what targets are made with and no gradient moves, a tree of its own: a momentum
            encoder, a tokenizer, a codebook and its teacher; empty if there is nothing.
        opt_state: the optimizer's.
    """

    step: Int[Array, ""]
    params: PyTree
    teacher: PyTree
    opt_state: Any


def init_state(
    key: PRNGKeyArray,
    method: Trainable,
    optimizer: optax.GradientTransformation,
    channels: int,
    frozen: PyTree | None = None,
) -> TrainState:
    """A fresh state.

    Args:
        key: of the parameters.
        method: that is trained.
        optimizer: of its parameters.
        channels: of the images.
        frozen: ``method.frozen``, where it must not become a constant of a compiled program.
    """
    params = method.init(key, channels)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher=jax.tree.map(jnp.array, method.teacher_of(params, frozen)),
        opt_state=optimizer.init(params),
    )
