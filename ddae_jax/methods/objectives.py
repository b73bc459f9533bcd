"""Objectives: a prediction or an alignment, its error, and its weight over a run."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

WeightSchedule = Callable[[Array | float], Array | float]
"""Function from the share of the run that is done to the factor of a weight."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """One thing to predict for each hidden patch, such as its pixels.

    Attributes:
        width: number of values predicted for a patch.
        error: ``(predictions, targets) -> error of each patch``, over the last axis.
        weight: ``lambda``, the weight of its error in the loss.
        schedule: the factor of ``weight`` over a run; None for 1 throughout.
    """

    width: int
    error: Callable[[Array, Array], Array]
    weight: float = 1.0
    schedule: WeightSchedule | None = None


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Comparison of the encoder's features of visible patches with targets of the same depths.

    The features pass through neither decoder nor head. They are weighted equally, since visible
    patches are all at distance 0.

    Attributes:
        name: name of the targets, as in ``Method.targets``.
        error: ``(features, targets) -> error of each patch``, over the last axis.
        weight, schedule: as in :class:`Objective`.
    """

    name: str
    error: Callable[[Array, Array], Array]
    weight: float = 1.0
    schedule: WeightSchedule | None = None


def weight_at(item: Objective | Alignment, progress: Array | float | None) -> Float[Array, ""]:
    """Returns the weight of an error when the share ``progress`` of a run is done.

    Raises:
        ValueError: if the weight changes over a run and ``progress`` is None.
    """
    if item.schedule is None:
        return jnp.float32(item.weight)
    if progress is None:
        raise ValueError(
            "weights of this method change over a run: give progress, the share of it that is done"
        )
    return jnp.float32(item.weight) * item.schedule(progress)
