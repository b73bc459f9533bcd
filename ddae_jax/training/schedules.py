"""Schedules: the length of a run in steps, its learning rate and its teacher's momentum."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

Decay = Literal["cosine", "linear"]

MAX_STEPS = 2**31 - 1
"""Number of steps of the longest possible run: steps are counted in an int32."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The length of a run in steps, and how often it records and saves.

    Attributes:
        steps_per_epoch: steps of an epoch.
        total_steps: steps of the run.
        batch_size: images per step, over all devices.
        log_every_steps: steps between records.
        save_every_steps: steps between checkpoints.
    """

    steps_per_epoch: int
    total_steps: int
    batch_size: int = 1
    log_every_steps: int = 1
    save_every_steps: int = MAX_STEPS

    def steps(self, epochs: float) -> int:
        """Returns the number of steps of some epochs, between 1 and :data:`MAX_STEPS`."""
        return steps_of(epochs, self.steps_per_epoch)

    def progress(self, step: int) -> dict[str, float]:
        """Returns the ``epoch`` of a step, and its ``progress`` from 0 to 1."""
        return {"epoch": step / self.steps_per_epoch, "progress": step / self.total_steps}

    @property
    def length(self) -> dict[str, int]:
        """The part of the schedule that a checkpoint stores."""
        return {"steps_per_epoch": self.steps_per_epoch, "total_steps": self.total_steps}


def steps_of(epochs: float, steps_per_epoch: int) -> int:
    """Returns the number of steps of some epochs, between 1 and :data:`MAX_STEPS`."""
    return max(1, round(min(epochs * steps_per_epoch, MAX_STEPS)))


def learning_rate_schedule(
    base: float,
    batch_size: int,
    warmup_steps: int,
    total_steps: int,
    end: float = 0.0,
    decay: Decay = "cosine",
) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up from 0, then cosine or linear decay.

    Peak and end scale with the batch size: the peak is ``base * batch_size / 256``, the end
    ``end * batch_size / 256``.

    Args:
        base: peak for a batch of 256 images.
        batch_size: images per step, over all devices.
        warmup_steps: steps to the peak, limited to the length of the run.
        total_steps: of the run.
        end: learning rate after the last step, for a batch of 256 images.
        decay: shape of the fall after warm-up, ``cosine`` or ``linear``.

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
    """Returns the teacher's momentum by step, from the half-life of its parameters in steps.

    The momentum is ``2 ** (-1 / half_life)``. The half-life is ``start_steps`` for the first
    ``hold_steps``, and then grows geometrically to ``end_steps`` within ``warmup_steps``: the
    teacher follows the student closely until its features become targets.
    """

    def momentum(step: Num[Array, ""]) -> Float[Array, ""]:
        progress = jnp.clip((step - hold_steps) / max(warmup_steps, 1), 0, 1)
        growth = jnp.log2(end_steps / start_steps) * progress
        return jnp.exp2(-1 / (start_steps * jnp.exp2(growth)))

    return momentum


def copy_schedule(every_steps: int) -> optax.Schedule:
    """Returns the momentum of a teacher that copies the student every ``every_steps``: 0 or 1."""
    return lambda step: jnp.where((step + 1) % every_steps == 0, 0.0, 1.0)


def momentum_schedule(start: float, end: float, total_steps: int) -> optax.Schedule:
    """Returns the momentum by step: a cosine from ``start`` at 0 to ``end`` at ``total_steps``.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent", section 3.2.
    """

    def momentum(step: Num[Array, ""]) -> Float[Array, ""]:
        progress = jnp.clip(step / total_steps, 0, 1)
        return end - (end - start) * (jnp.cos(jnp.pi * progress) + 1) / 2

    return momentum
