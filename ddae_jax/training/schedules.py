"""Schedules: a run's length in steps, and what changes with the step."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

Decay = Literal["cosine", "linear"]

MAX_STEPS = 2**31 - 1
"""The longest run: its steps are counted in an int32."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A run's length in steps, and how often it records and saves.

    Attributes:
        steps_per_epoch: steps of an epoch.
        total_steps: steps of the run.
        batch_size: images a step, over all devices.
        log_every_steps: steps between records.
        save_every_steps: steps between checkpoints.
    """

    steps_per_epoch: int
    total_steps: int
    batch_size: int = 1
    log_every_steps: int = 1
    save_every_steps: int = MAX_STEPS

    def steps(self, epochs: float) -> int:
        """Returns the steps of so many epochs, from 1 to :data:`MAX_STEPS`, which is never."""
        return steps_of(epochs, self.steps_per_epoch)

    def progress(self, step: int) -> dict[str, float]:
        """Returns how far a step is: ``epoch``, and ``progress`` from 0 to 1."""
        return {"epoch": step / self.steps_per_epoch, "progress": step / self.total_steps}

    @property
    def length(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {"steps_per_epoch": self.steps_per_epoch, "total_steps": self.total_steps}


def steps_of(epochs: float, steps_per_epoch: int) -> int:
    """Returns the steps of so many epochs, from 1 to :data:`MAX_STEPS`, which is never."""
    return max(1, round(min(epochs * steps_per_epoch, MAX_STEPS)))


def learning_rate_schedule(
    base: float,
    batch_size: int,
    warmup_steps: int,
    total_steps: int,
    end: float = 0.0,
    decay: Decay = "cosine",
) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine, or a line, to the end.

    Both ends scale with the batch: the peak is ``base * batch_size / 256``, the end ``end *
    batch_size / 256``.

    Args:
        base: peak of a batch of 256 images.
        batch_size: images a step, over all devices.
        warmup_steps: steps to the peak; a warm-up that is longer than the run is cut to it.
        total_steps: of the run.
        end: learning rate after the last step of a batch of 256 images.
        decay: ``cosine`` or ``linear``.

    Raises:
        ValueError: if ``end`` exceeds ``base``.

    Source: Goyal et al. 2017 (linear scaling, warm-up); Loshchilov & Hutter 2017 (cosine).
    """
    if end > base:
        raise ValueError(
            f"end={end} exceeds base={base}; the learning rate falls after its warm-up"
        )
    scale = batch_size / 256
    warmup_steps = min(warmup_steps, total_steps - 1)
    if decay == "linear":
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, base * scale, warmup_steps),
                optax.linear_schedule(base * scale, end * scale, total_steps - warmup_steps),
            ],
            [warmup_steps],
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=base * scale,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
        end_value=end * scale,
    )


def half_life_schedule(
    start_steps: float, end_steps: float, hold_steps: float, warmup_steps: float
) -> optax.Schedule:
    """The momentum of a teacher that keeps half of what it holds for so many steps.

    ``2 ** (-1 / half-life)``, where the half-life is ``start_steps`` for ``hold_steps`` and then
    grows geometrically to ``end_steps`` within ``warmup_steps``: a teacher that follows closely
    until it is to teach.
    """

    def momentum(step: Num[Array, ""]) -> Float[Array, ""]:
        progress = jnp.clip((step - hold_steps) / max(warmup_steps, 1), 0, 1)
        growth = jnp.log2(end_steps / start_steps) * progress
        return jnp.exp2(-1 / (start_steps * jnp.exp2(growth)))

    return momentum


def copy_schedule(every_steps: int) -> optax.Schedule:
    """The momentum of a teacher that becomes a copy of the student now and then: 0 then, else 1."""
    return lambda step: jnp.where((step + 1) % every_steps == 0, 0.0, 1.0)


def momentum_schedule(start: float, end: float, total_steps: int) -> optax.Schedule:
    """Cosine from ``start`` at step 0 to ``end`` at ``total_steps``.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent", section 3.2.
    """

    def momentum(step: Num[Array, ""]) -> Float[Array, ""]:
        progress = jnp.clip(step / total_steps, 0, 1)
        return end - (end - start) * (jnp.cos(jnp.pi * progress) + 1) / 2

    return momentum
