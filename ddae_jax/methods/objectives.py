"""Objectives: what is predicted or aligned, by which error, at which weight over a run."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

WeightSchedule = Callable[[Array | float], Array | float]
"""From the share of the run that is done to a factor of a weight."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """Something to predict for each hidden patch.

    Attributes:
        width: values predicted for a patch.
        error: ``(predictions, targets) -> error of each patch``, over the last axis.
        weight: ``lambda``, its share in the loss.
        schedule: a factor of ``weight``, by the share of the run that is done; None for 1.
    """

    width: int
    error: Callable[[Array, Array], Array]
    weight: float = 1.0
    schedule: WeightSchedule | None = None


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The encoder's own features of visible patches, against targets at their places and depths.

    They pass no decoder and no head, and all count alike: visible patches are at distance 0.

    Attributes:
        name: of the targets.
        error: ``(features, targets) -> error of each patch``, over the last axis.
        weight, schedule: as of an :class:`Objective`.
    """

    name: str
    error: Callable[[Array, Array], Array]
    weight: float = 1.0
    schedule: WeightSchedule | None = None


def weight_at(item: Objective | Alignment, progress: Array | float | None) -> Float[Array, ""]:
    """Returns what an error counts for at this share of a run.

    Raises ``ValueError`` if the weight changes over a run and the share is missing.
    """
    if item.schedule is None:
        return jnp.float32(item.weight)
    if progress is None:
        raise ValueError(
            "weights of this method change over a run: give progress, the share of it that is done"
        )
    return jnp.float32(item.weight) * item.schedule(progress)
