"""What a training step is compiled from, on devices that are there or that are not."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from ddae_jax.methods.task import Trainable
from ddae_jax.training.sharding import abstract, state_sharding
from ddae_jax.training.state import TrainState, init_state
from ddae_jax.training.step import Prepare, TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step and the state that it changes, before either is compiled or made.

    Attributes:
        method: what is trained.
        prepare: what the step does to a batch first.
        optimizer, learning_rate, momentum: see :func:`ddae_jax.training.step.make_train_step`.
        channels: of the images.
        seed: of the run.
        micro_batches: parts of a batch.
        total_steps: of the run.
        skips_nonfinite: whether steps that went wrong are left out.
    """

    method: Trainable
    prepare: Prepare
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    momentum: optax.Schedule
    channels: int
    seed: int
    micro_batches: int = 1
    total_steps: int | None = None
    skips_nonfinite: bool = False

    def step(self) -> TrainStep:
        """The step, as a pure function of state and batch."""
        return make_train_step(
            self.method,
            self.optimizer,
            self.prepare,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            seed=self.seed,
            micro_batches=self.micro_batches,
            total_steps=self.total_steps,
            skips_nonfinite=self.skips_nonfinite,
        )

    def fresh_state(self, mesh: Mesh) -> TrainState:
        """The state before the first step, laid out over a mesh."""
        sharding = state_sharding(mesh, self.state_shapes())
        # The seed's key and frozen parameters are inputs, so that they become no constants.
        return jax.jit(self._init, out_shardings=sharding)(self._inputs())

    def state_shapes(self, mesh: Mesh | None = None) -> PyTree:
        """Shapes and dtypes of the state's arrays; with a mesh, how they are laid out too."""
        shapes = jax.eval_shape(self._init, self._inputs())
        if mesh is None:
            return shapes
        return abstract(shapes, state_sharding(mesh, shapes))

    @functools.cached_property
    def _init(self) -> Callable[[dict[str, PyTree]], TrainState]:
        """One object, so that JAX traces it once for the shapes and the arrays."""

        def init(inputs: dict[str, PyTree]) -> TrainState:
            return init_state(
                method=self.method, optimizer=self.optimizer, channels=self.channels, **inputs
            )

        return init

    def _inputs(self) -> dict[str, PyTree]:
        return {"key": jax.random.key(self.seed), "frozen": self.method.frozen}
