"""The train program: a training step and its state, before either is compiled or made.

The same program trains a run and is compiled for devices that are not there.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ddae_jax.methods.task import TrainTask
from ddae_jax.training.compiler_options import compiler_options
from ddae_jax.training.micro_batches import in_micro_batches
from ddae_jax.training.sharding import abstract, batch_sharding, replicated, state_sharding

Preprocess = Callable[[PRNGKeyArray, PyTree], PyTree]
"""From a batch as it is loaded to what a :class:`TrainTask` sees: augmented, normalised."""


@flax.struct.dataclass
class TrainState:
    """The state between two steps: all that a step changes, and that a checkpoint holds.

    Randomness is no part of it: step k draws from ``fold_in(seed, k)``.

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


Metrics = Mapping[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """A training step, as a pure function, and the state that it changes.

    Attributes:
        task: what is trained: targets, loss and teacher.
        preprocess: what the step does to a batch first.
        optimizer: of the student's parameters.
        learning_rate: by step, for the metrics; the optimizer has it already.
        momentum: the teacher's, by step.
        channels: of the images.
        seed: of the run.
        micro_batches: parts of the batch that gradients are computed for one after the other,
            which takes less memory; loss and gradient are their means.
        total_steps: of the run; a task whose loss changes on its way needs it.
        max_skipped: how many steps in a row may go wrong. If any may, a step whose loss or gradient
            is no number leaves parameters, optimizer and teacher as they were, and its metric
            ``skipped`` is 1.
    """

    task: TrainTask
    preprocess: Preprocess
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    momentum: optax.Schedule
    channels: int
    seed: int
    micro_batches: int = 1
    total_steps: int | None = None
    max_skipped: int = 0

    def train_step(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        """Takes a step: student and teacher see the batch, gradients move the student, and the
        teacher follows.

        The randomness of step k is ``fold_in(seed, k)``, whoever computes it.
        """
        task = self.task
        preprocess_key, loss_key = jax.random.split(step_key(self.seed, state.step))
        inputs = self.preprocess(preprocess_key, batch)
        progress = None if self.total_steps is None else state.step / self.total_steps
        (loss, output), gradient = self._value_and_grad(
            state.params, state.teacher, inputs, loss_key, progress=progress
        )
        updates, opt_state = self.optimizer.update(
            task.descent(gradient, output), state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        momentum = self.momentum(state.step)
        teacher = task.update_teacher(state.teacher, params, output, momentum)
        gradient_norm = optax.global_norm(gradient)
        metrics = {}
        if self.max_skipped:
            is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
            params, teacher, opt_state = jax.tree.map(
                lambda new, old: jnp.where(is_finite, new, old),
                (params, teacher, opt_state),
                (state.params, state.teacher, state.opt_state),
            )
            metrics["skipped"] = 1 - is_finite
        metrics |= {
            "loss": loss,
            **task.metrics(output),
            "gradient_norm": gradient_norm,
            "parameter_norm": optax.global_norm(params),
            "learning_rate": self.learning_rate(state.step),
        }
        if task.has_momentum_encoder:
            metrics["momentum"] = momentum
        state = TrainState(state.step + 1, params, teacher, opt_state)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def jit(self, mesh: Mesh, options: Mapping[str, str | bool] | None = None) -> TrainStep:
        """Compiles the step for a mesh: state over ``fsdp`` and donated, batch over all devices.

        Args:
            mesh: of devices.
            options: of the compiler; those of :func:`compiler_options` by default.
        """
        of_state = state_sharding(mesh, self.state_shapes())
        return jax.jit(
            self.train_step,
            in_shardings=(of_state, batch_sharding(mesh)),
            out_shardings=(of_state, replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(mesh) if options is None else dict(options),
        )

    def init_state(self, mesh: Mesh, initial: PyTree | None = None) -> TrainState:
        """Makes the state before the first step, laid out over a mesh.

        Args:
            mesh: of devices.
            initial: parameters to begin with, such as ``{"encoder": ...}``, which the teacher then
                begins with too; what they lack, such as a mask token, is fresh. None for all fresh.
        """
        sharding = state_sharding(mesh, self.state_shapes())
        # The seed's key and frozen parameters are inputs, so that they become no constants.
        state = jax.jit(self._init, out_shardings=sharding)(self._inputs())
        if initial is None:
            return state

        def put(state: TrainState, initial: PyTree) -> TrainState:
            encoder = state.params["encoder"] | initial["encoder"]
            params = state.params | initial | {"encoder": encoder}
            teacher = self.task.init_teacher(params, self.task.frozen_part(state.teacher))
            # A copy of each: steps give both back to the device, and what was loaded stays.
            copies = jax.tree.map(jnp.array, {"params": params, "teacher": teacher})
            return state.replace(**copies)

        return jax.jit(put, out_shardings=sharding)(state, initial)

    def state_shapes(self, mesh: Mesh | None = None) -> PyTree:
        """Returns shapes and dtypes of the state; with a mesh, how its arrays are laid out too."""
        shapes = jax.eval_shape(self._init, self._inputs())
        if mesh is None:
            return shapes
        return abstract(shapes, state_sharding(mesh, shapes))

    @functools.cached_property
    def _value_and_grad(self) -> Callable[..., Any]:
        differentiate = jax.value_and_grad(self.task.loss, has_aux=True)
        if self.micro_batches == 1:
            return differentiate
        return in_micro_batches(differentiate, self.task, self.micro_batches)

    @functools.cached_property
    def _init(self) -> Callable[[dict[str, PyTree]], TrainState]:
        """One object, so that JAX traces it once for the shapes and the arrays."""

        def init(inputs: dict[str, PyTree]) -> TrainState:
            params = self.task.init(inputs["key"], self.channels)
            teacher = self.task.init_teacher(params, inputs["frozen"])
            return TrainState(
                step=jnp.zeros((), jnp.int32),
                params=params,
                teacher=jax.tree.map(jnp.array, teacher),
                opt_state=self.optimizer.init(params),
            )

        return init

    def _inputs(self) -> dict[str, PyTree]:
        return {"key": jax.random.key(self.seed), "frozen": self.task.frozen}


def step_key(seed: int, step: int | Array) -> PRNGKeyArray:
    """Returns the random key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)
