"""Hooks: what happens beside training, at the start, every so many steps, and at the end."""

from collections.abc import Mapping

from ddae_jax.training.program import TrainState

Metrics = Mapping[str, float]


class Hook:
    """A base class of what happens beside training; each method does nothing by default.

    All processes of a run call every method, at the same steps.

    Attributes:
        every_steps: steps between calls of :meth:`on_steps`; None for never.
        at_end: whether the last step calls it too; if not, the last step never does.
        metric: a metric that :meth:`on_steps` always returns, by which a record shows that it was
            called; None for a hook that measures nothing.
    """

    every_steps: int | None = None
    at_end: bool = True
    metric: str | None = None

    def baselines(self) -> Metrics:
        """Returns metrics of what comes before the first step; they are recorded once."""
        return {}

    def on_start(self, state: TrainState) -> Metrics:
        """Returns metrics of the state that a new run begins with."""
        return {}

    def on_steps(self, state: TrainState, step: int) -> Metrics:
        """Acts every ``every_steps`` steps; what it returns joins the step's record.

        Its time is not counted in the rate of images. An error in it is logged, and training goes
        on.
        """
        return {}

    def after_step(self, step: int) -> None:
        """Takes note of each step; is to be quick."""

    def on_record(self, step: int, metrics: Metrics) -> None:
        """Takes a record."""

    def on_end(self, state: TrainState, step: int) -> None:
        """Acts on the last state of this process's part of the run, which is saved."""

    def is_due(self, step: int, total_steps: int) -> bool:
        """Tells whether :meth:`on_steps` is called after a step."""
        if self.every_steps is None:
            return False
        return self.at_end if step == total_steps else step % self.every_steps == 0
