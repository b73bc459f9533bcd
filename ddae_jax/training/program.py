"""The train program: a training step as a pure function, and the state that it changes.

The same program trains a run, and is compiled for devices that are not present.
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
"""Function from ``(key, loaded batch)`` to the inputs of a :class:`TrainTask`, such as images."""


@flax.struct.dataclass
class TrainState:
    """The state between two steps: all that a step changes and a checkpoint holds.

    It contains no random key: step k uses ``fold_in(seed, k)``.

    Attributes:
        step: number of steps taken so far, int32.
        params: the student's parameters, float32, beta among them.
        teacher: arrays that targets are made with and no gradient changes: a momentum encoder, a
            tokenizer, or a codebook and its teacher; an empty tree if there are none.
        opt_state: state of the optimizer.
    """

    step: Int[Array, ""]
    params: PyTree
    teacher: PyTree
    opt_state: Any


Metrics = Mapping[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The training step of a run, and the parts that it is built from.

    Attributes:
        task: defines targets, loss and teacher.
        preprocess: applied to each batch at the beginning of a step.
        optimizer: of the student's parameters.
        learning_rate: by step, only for the metrics; the optimizer contains it too.
        momentum: of the teacher, by step.
        channels: number of channels of the images.
        seed: of the run.
        micro_batches: number of parts of the batch whose gradients are computed one after the
            other, which takes less memory; loss and gradient are the means over the parts.
        total_steps: of the run; needed by tasks whose loss depends on the run's progress.
        max_skipped: how many steps in a row may have a loss or gradient that is not finite. If it
            is above 0, such a step leaves parameters, optimizer and teacher unchanged, and its
            metric ``skipped`` is 1.
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
        """Takes one step: updates the student by gradient descent, and then the teacher.

        The random key of step k is ``fold_in(seed, k)``, in whichever process it is computed.

        Returns:
            The next state; and float32 metrics by name.
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
        """Compiles the step for a mesh; it donates the state.

        The state is sharded over the axis ``fsdp``, the batch over all devices.

        Args:
            mesh: of devices.
            options: of the compiler; by default those of
                :func:`ddae_jax.training.compiler_options.compiler_options`.
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
            initial: pretrained parameters, such as ``{"encoder": ...}``, from which the teacher is
                initialised too; parameters missing in it, such as a mask token, are initialised at
                random. None to initialise all at random.
        """
        sharding = state_sharding(mesh, self.state_shapes())
        # Key and frozen parameters are inputs, so that they are not compiled in as constants.
        state = jax.jit(self._init, out_shardings=sharding)(self._inputs())
        if initial is None:
            return state

        def put(state: TrainState, initial: PyTree) -> TrainState:
            encoder = state.params["encoder"] | initial["encoder"]
            params = state.params | initial | {"encoder": encoder}
            teacher = self.task.init_teacher(params, self.task.frozen_part(state.teacher))
            # Copies, because the step donates its state, and the loaded parameters must survive.
            copies = jax.tree.map(jnp.array, {"params": params, "teacher": teacher})
            return state.replace(**copies)

        return jax.jit(put, out_shardings=sharding)(state, initial)

    def state_shapes(self, mesh: Mesh | None = None) -> PyTree:
        """Returns shapes and dtypes of the state, and with a mesh also its shardings."""
        shapes = jax.eval_shape(self._init, self._inputs())
        if mesh is None:
            return shapes
        return abstract(shapes, state_sharding(mesh, shapes))

    @functools.cached_property
    def _value_and_grad(self) -> Callable[..., Any]:
        """The function that computes ``((loss, output), gradient)``, in micro-batches if asked."""
        differentiate = jax.value_and_grad(self.task.loss, has_aux=True)
        if self.micro_batches == 1:
            return differentiate
        return in_micro_batches(differentiate, self.task, self.micro_batches)

    @functools.cached_property
    def _init(self) -> Callable[[dict[str, PyTree]], TrainState]:
        """The function that makes the first state; one object, so that JAX traces it only once."""

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
        """Returns the inputs of the initialiser: random key and frozen parameters."""
        return {"key": jax.random.key(self.seed), "frozen": self.task.frozen}


def step_key(seed: int, step: int | Array) -> PRNGKeyArray:
    """Returns the random key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)
