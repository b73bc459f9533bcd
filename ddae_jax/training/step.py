"""One training step, as a pure function of state and batch, jitted over a mesh."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from ddae_jax.methods.trainable import Trainable
from ddae_jax.training.sharding import batch_sharding, replicated, state_sharding
from ddae_jax.training.state import TrainState

RawImages = UInt8[Array, "batch source_height source_width channels"]
PrepareImages = Callable[[PRNGKeyArray, RawImages], Float[Array, "batch height width channels"]]
Metrics = Mapping[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, RawImages], tuple[TrainState, Metrics]]


def make_train_step(
    method: Trainable,
    optimizer: optax.GradientTransformation,
    prepare_images: PrepareImages,
    *,
    learning_rate: optax.Schedule,
    momentum: optax.Schedule,
    seed: int,
) -> TrainStep:
    """The step ``(state, uint8 images) -> (state, metrics)``.

    Images are prepared (augmented, normalised) and seen by student and teacher; gradients move the
    student; the teacher follows. The randomness of step k is ``fold_in(seed, k)``, whoever computes
    it.

    Args:
        method: what is predicted, and the loss.
        optimizer: of the student's parameters.
        prepare_images: ``(key, uint8 images) -> float images``.
        learning_rate: for the metrics; the optimizer has it already.
        momentum: the teacher's, by step.
        seed: of the run.
    """

    def train_step(state: TrainState, images: RawImages) -> tuple[TrainState, Metrics]:
        augment_key, loss_key = jax.random.split(step_key(seed, state.step))
        images = prepare_images(augment_key, images)
        loss_and_gradient = jax.value_and_grad(method.loss, has_aux=True)
        (loss, outcome), gradient = loss_and_gradient(state.params, state.teacher, images, loss_key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = momentum(state.step)
        teacher = method.follow(state.teacher, params, outcome, rate)
        metrics = {
            "loss": loss,
            **method.metrics(outcome),
            "gradient_norm": optax.global_norm(gradient),
            "parameter_norm": optax.global_norm(params),
            "learning_rate": learning_rate(state.step),
            "momentum": rate,
        }
        state = TrainState(state.step + 1, params, teacher, opt_state)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return train_step


def jit_train_step(train_step: TrainStep, mesh: Mesh, state: PyTree) -> TrainStep:
    """The step compiled for a mesh: state over ``fsdp`` and donated, images over all devices."""
    of_state = state_sharding(mesh, state)
    return jax.jit(
        train_step,
        in_shardings=(of_state, batch_sharding(mesh)),
        out_shardings=(of_state, replicated(mesh)),
        donate_argnums=0,
    )


def step_key(seed: int, step: int | Array) -> PRNGKeyArray:
    """The random key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)
