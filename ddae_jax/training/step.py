"""One training step, as a pure function of state and batch, jitted over a mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ddae_jax.methods.task import Trainable
from ddae_jax.training.compiler_options import compiler_options
from ddae_jax.training.sharding import batch_sharding, replicated, state_sharding
from ddae_jax.training.state import TrainState

Prepare = Callable[[PRNGKeyArray, PyTree], PyTree]
"""From a batch as it is loaded to what a :class:`Trainable` sees: augmented, normalised."""
Metrics = Mapping[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


def make_train_step(
    method: Trainable,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    *,
    learning_rate: optax.Schedule,
    momentum: optax.Schedule,
    seed: int,
    micro_batches: int = 1,
    total_steps: int | None = None,
    skips_nonfinite: bool = False,
) -> TrainStep:
    """The step ``(state, batch) -> (state, metrics)``.

    The batch is prepared and seen by student and teacher; gradients move the student; the teacher
    follows. The randomness of step k is ``fold_in(seed, k)``, whoever computes it.

    Args:
        method: what is predicted, and the loss.
        optimizer: of the student's parameters.
        prepare: ``(key, batch) -> what the method sees``.
        learning_rate: for the metrics; the optimizer has it already.
        momentum: the teacher's, by step.
        seed: of the run.
        micro_batches: parts of the prepared batch that gradients are computed for one after the
            other, which takes less memory; loss and gradient are their means. Each image has the
            mask that it has in the whole batch; only stochastic depth is drawn anew in each part.
        total_steps: of the run; a method whose loss changes on its way needs it.
        skips_nonfinite: whether a step whose loss or gradient is no number leaves parameters,
            optimizer and teacher as they were; the metric ``skipped`` is 1 then.
    """
    differentiate = jax.value_and_grad(method.loss, has_aux=True)
    if micro_batches > 1:
        differentiate = _in_parts(differentiate, method, micro_batches)

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        prepare_key, loss_key = jax.random.split(step_key(seed, state.step))
        inputs = prepare(prepare_key, batch)
        progress = None if total_steps is None else state.step / total_steps
        (loss, outcome), gradient = differentiate(
            state.params, state.teacher, inputs, loss_key, progress=progress
        )
        updates, opt_state = optimizer.update(
            method.descent(gradient, outcome), state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        rate = momentum(state.step)
        teacher = method.follow(state.teacher, params, outcome, rate)
        gradient_norm = optax.global_norm(gradient)
        metrics = {}
        if skips_nonfinite:
            is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
            params, teacher, opt_state = jax.tree.map(
                lambda new, old: jnp.where(is_finite, new, old),
                (params, teacher, opt_state),
                (state.params, state.teacher, state.opt_state),
            )
            metrics["skipped"] = 1 - is_finite
        metrics |= {
            "loss": loss,
            **method.metrics(outcome),
            "gradient_norm": gradient_norm,
            "parameter_norm": optax.global_norm(params),
            "learning_rate": learning_rate(state.step),
        }
        if method.has_momentum_encoder:
            metrics["momentum"] = rate
        state = TrainState(state.step + 1, params, teacher, opt_state)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return train_step


def jit_train_step(
    train_step: TrainStep,
    mesh: Mesh,
    state: PyTree,
    options: Mapping[str, str | bool] | None = None,
) -> TrainStep:
    """The step compiled for a mesh: state over ``fsdp`` and donated, batch over all devices.

    Args:
        train_step: from :func:`make_train_step`.
        mesh: of devices.
        state: arrays or their ``ShapeDtypeStruct`` s.
        options: of the compiler; those of :func:`compiler_options` by default.
    """
    of_state = state_sharding(mesh, state)
    return jax.jit(
        train_step,
        in_shardings=(of_state, batch_sharding(mesh)),
        out_shardings=(of_state, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh) if options is None else dict(options),
    )


def step_key(seed: int, step: int | Array) -> PRNGKeyArray:
    """The random key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def _in_parts(
    differentiate: Callable[..., Any], method: Trainable, count: int
) -> Callable[..., Any]:
    """The mean of loss, outcome and gradient over so many parts of a batch."""

    def mean_of_parts(
        params: PyTree,
        teacher: PyTree,
        inputs: PyTree,
        key: PRNGKeyArray,
        progress: Float[Array, ""] | None,
    ) -> PyTree:
        drawn = method.draw(key, len(jax.tree.leaves(inputs)[0]))
        parts = jax.tree.map(lambda array: _parts(array, count), (inputs, drawn))
        keys = jax.random.split(key, count)
        of_parts = jax.lax.map(lambda part: method.statistics(teacher, part), parts[0])

        @functools.partial(jax.jit, inline=True)  # traced once for its shapes and the loop
        def differentiate_part(part: tuple[tuple[PyTree, PyTree], PRNGKeyArray]) -> PyTree:
            (inputs, drawn), key = part
            return differentiate(
                params, teacher, inputs, key, progress=progress, **drawn, **of_parts
            )

        def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, differentiate_part(part)), None

        shapes = jax.eval_shape(differentiate_part, _first((parts, keys)))
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, start, (parts, keys))
        return jax.tree.map(lambda leaf: leaf / count, total)

    return mean_of_parts


def _parts(array: Array, count: int) -> Array:
    """Every ``count``-th example makes a part, so that each device keeps those that it has."""
    return array.reshape(len(array) // count, count, *array.shape[1:]).swapaxes(0, 1)


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda array: array[0], tree)
