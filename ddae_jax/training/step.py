"""One training step, as a pure function of state and batch, jitted over a mesh."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from ddae_jax.methods.method import Method
from ddae_jax.methods.supervision import DeepDynamicSupervision, Supervised
from ddae_jax.training.sharding import batch_sharding, replicated, state_sharding
from ddae_jax.training.state import TrainState

RawImages = UInt8[Array, "batch source_height source_width channels"]
PrepareImages = Callable[[PRNGKeyArray, RawImages], Float[Array, "batch height width channels"]]
Metrics = Mapping[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, RawImages], tuple[TrainState, Metrics]]


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    prepare_images: PrepareImages,
    *,
    learning_rate: optax.Schedule,
    momentum: optax.Schedule,
    seed: int,
) -> TrainStep:
    """The step ``(state, uint8 images) -> (state, metrics)``.

    Images are prepared (augmented, normalised), masked, and seen by student and teacher; gradients
    move the student; the teacher follows, ``teacher <- m * teacher + (1 - m) * student``. The
    randomness of step k is ``fold_in(seed, k)``, whoever computes it.

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
        (_, supervised), gradient = loss_and_gradient(state.params, state.teacher, images, loss_key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = momentum(state.step)
        teacher = optax.incremental_update(method.teacher_of(params), state.teacher, 1 - rate)
        metrics = {
            **supervision_metrics(supervised, method.student.supervision),
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


def supervision_metrics(supervised: Supervised, supervision: DeepDynamicSupervision) -> dict:
    """Loss, and dynamic loss, plain loss and beta by objective and depth, under readable names.

    ``loss/pixels/depth_6`` and so on; ``plain_loss/...`` is the same with all hidden patches
    weighed alike.
    """
    metrics = {"loss": supervised.loss}
    for row, objective in enumerate(supervision.objectives):
        for column, depth in enumerate(supervision.depths):
            place = f"{objective}/depth_{depth}"
            metrics[f"loss/{place}"] = supervised.losses[row, column]
            metrics[f"plain_loss/{place}"] = supervised.plain_losses[row, column]
            metrics[f"beta/{place}"] = supervised.beta[row, column]
    return metrics
