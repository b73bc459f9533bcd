"""Decisions that all processes of a run take together, or that the first one takes for all.

Whatever a single process sees (a file, a signal, an error) must not decide whether a collective
operation happens: the other processes would wait for it forever. Every function here is collective:
all processes must call it. With one process, none of them communicates.
"""

import collections
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, PyTree


class OtherProcessFailed(RuntimeError):
    """Another process failed, and reports the reason itself; this process could have gone on."""


def all_true(value: bool) -> bool:
    """Returns whether ``value`` is true in all processes."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def broadcast(value: int) -> int:
    """Returns the first process's value, an int32, in all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def all_sum(values: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Returns the elementwise sum over all processes.

    Args:
        values: this process's values, below 2**53 each, so that their sum over up to 1,024
            processes fits an int64.
    """
    if jax.process_count() == 1:
        return values
    # As bytes, since gathered arrays pass through the device, where 64 bits are cut to 32.
    own = np.ascontiguousarray(values, np.int64).view(np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(own))
    return gathered.view(np.int64).reshape(-1, *np.shape(values)).sum(axis=0)


def union(values: Int[np.ndarray, " own"]) -> Int[np.ndarray, " all"]:
    """Returns the sorted distinct values of all processes.

    Args:
        values: this process's values, in [0, 2**31); their number may differ between processes.
    """
    if jax.process_count() == 1:
        return np.unique(values)
    longest = int(multihost_utils.process_allgather(np.asarray(len(values), np.int32)).max())
    padded = np.full(longest, -1, np.int32)
    padded[: len(values)] = values
    together = np.unique(multihost_utils.process_allgather(padded))
    return together[together >= 0]


def gather_json(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the values of all processes, in the order of their indices.

    Args:
        value: this process's value; it must survive a round trip through JSON.
    """
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if jax.process_count() == 1:
        return [json.loads(text.tobytes())]
    lengths = multihost_utils.process_allgather(np.asarray(len(text), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(row[:length].tobytes()) for row, length in zip(gathered, lengths, strict=True)
    ]


def check_same_everywhere(values: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` unless all processes pass equal values.

    The message names the first keys that differ, and the processes in which they do.
    """
    first, *others = gather_json(values)
    differing = [
        f"{name}: {first.get(name, 'missing')!r} in process 0, {other.get(name, 'missing')!r} in "
        f"process {index}"
        for index, other in enumerate(others, start=1)
        for name in first.keys() | other.keys()
        if first.get(name) != other.get(name)
    ]
    if differing:
        error = ValueError(
            f"the processes of this run were not started alike; {len(differing)} differences:\n  "
            + "\n  ".join(sorted(differing)[:5])
        )
        error.is_known_to_all = True
        raise error


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Makes the body fail in all processes if it fails in any of them; blocks may be nested.

    Raises:
        OtherProcessFailed: where the body itself succeeded.
    """
    try:
        yield
    except OtherProcessFailed:  # raised by a nested block: all processes know of it
        raise
    except Exception as error:
        if not getattr(error, "is_known_to_all", False):
            all_true(False)
            error.is_known_to_all = True
        raise
    if not all_true(True):
        raise OtherProcessFailed("another process of this run could not start; see its message")


class AnyProcess:
    """Test, once per step, of whether a flag is set in any process, without waiting for the answer.

    With a single process, the answer is the flag itself. With several, it is the answer of
    ``delay`` steps ago: each call starts a reduction over the devices, and reads the result of an
    earlier one, which is finished by then.

    Args:
        put: places an array with one value per local device on the devices, laid out as a batch.
        delay: number of steps between a flag and its answer.
    """

    def __init__(self, put: Callable[[PyTree], PyTree], delay: int = 2):
        self.delay = delay
        self._put = put
        self._any = jax.jit(jnp.any)
        self._pending = collections.deque()

    def __call__(self, value: bool) -> bool:
        if jax.process_count() == 1:
            return value
        flags = np.full(jax.local_device_count(), value)
        self._pending.append(self._any(self._put(flags)))
        if len(self._pending) <= self.delay:
            return False
        return bool(self._pending.popleft())
