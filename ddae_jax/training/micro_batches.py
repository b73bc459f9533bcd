"""Micro-batches: the gradient of a batch as the mean over its parts, to save memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ddae_jax.methods.task import TrainTask


def in_micro_batches(
    differentiate: Callable[..., Any], task: TrainTask, count: int
) -> Callable[..., Any]:
    """Returns the mean of loss, output and gradient over so many parts of a batch.

    Args:
        differentiate: ``(params, teacher, inputs, key, progress=, ...) -> ((loss, output),
            gradient)``.
        task: that is trained.
        count: parts of a batch. Each image has the mask that it has in the whole batch; only
            stochastic depth is drawn anew in each part.
    """

    def mean_of_parts(
        params: PyTree,
        teacher: PyTree,
        inputs: PyTree,
        key: PRNGKeyArray,
        progress: Float[Array, ""] | None,
    ) -> PyTree:
        masks = task.sample_masks(key, len(jax.tree.leaves(inputs)[0]))
        parts = jax.tree.map(lambda array: _parts(array, count), (inputs, masks))
        keys = jax.random.split(key, count)
        statistics = jax.lax.map(lambda part: task.statistics(teacher, part), parts[0])

        @functools.partial(jax.jit, inline=True)  # traced once for its shapes and the loop
        def differentiate_part(part: tuple[tuple[PyTree, PyTree], PRNGKeyArray]) -> PyTree:
            (inputs, masks), key = part
            return differentiate(
                params, teacher, inputs, key, progress=progress, **masks, **statistics
            )

        def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, differentiate_part(part)), None

        first_part = jax.tree.map(lambda array: array[0], (parts, keys))
        shapes = jax.eval_shape(differentiate_part, first_part)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, start, (parts, keys))
        return jax.tree.map(lambda leaf: leaf / count, total)

    return mean_of_parts


def _parts(array: Array, count: int) -> Array:
    """Makes a part of every ``count``-th example, so that each device keeps those that it has."""
    return array.reshape(len(array) // count, count, *array.shape[1:]).swapaxes(0, 1)
