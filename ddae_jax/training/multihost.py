"""What all processes of a run must do alike: decided together, or by the first of them.

Whatever one process alone sees (a file, a signal, an error) must not decide whether a collective
operation happens: the others would wait for it for ever. With one process all this costs nothing.
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
    """This process could go on, but another one cannot; that one tells why."""


def all_true(value: bool) -> bool:
    """True if all processes say True. Each of them has to ask."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def broadcast(value: int) -> int:
    """The first process's value, in each of them. Each of them has to ask."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def all_sum(values: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The sum over all processes, each of which has to ask; each value stays below 2**53."""
    if jax.process_count() == 1:
        return values
    # As bytes: what is gathered passes the device, where 64 bits are cut to 32.
    own = np.ascontiguousarray(values, np.int64).view(np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(own))
    return gathered.view(np.int64).reshape(-1, *np.shape(values)).sum(axis=0)


def union(values: Int[np.ndarray, " own"]) -> Int[np.ndarray, " all"]:
    """The sorted different values of all processes, each of which has to ask; below 2**31."""
    if jax.process_count() == 1:
        return np.unique(values)
    longest = int(multihost_utils.process_allgather(np.asarray(len(values), np.int32)).max())
    padded = np.full(longest, -1, np.int32)
    padded[: len(values)] = values
    together = np.unique(multihost_utils.process_allgather(padded))
    return together[together >= 0]


def gather_json(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each process, in their order, has given, as JSON keeps it. Each of them has to ask."""
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
    """Raises ``ValueError`` unless all processes give the same, naming what differs and where."""
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
    """Ends with an error in every process if the body ends with one in any; may be nested.

    Raises :class:`OtherProcessFailed` where the body itself went well.
    """
    try:
        yield
    except OtherProcessFailed:  # of a body within this one: all know it
        raise
    except Exception as error:
        if not getattr(error, "is_known_to_all", False):
            all_true(False)
            error.is_known_to_all = True
        raise
    if not all_true(True):
        raise OtherProcessFailed("another process of this run could not start; see its message")


class AnyProcess:
    """Whether any process says yes, asked by all of them once a step, without waiting for it.

    With one process the answer is its own at once. With more it is that of ``delay`` steps ago:
    each step starts a reduction over the devices, and reads one that is long finished.

    Args:
        put: places one value per local device on the devices, as the batch is.
        delay: steps.
    """

    def __init__(self, put: Callable[[PyTree], PyTree], delay: int = 2):
        self.delay = delay
        self._put = put
        self._any = jax.jit(jnp.any)
        self._asked = collections.deque()

    def __call__(self, value: bool) -> bool:
        if jax.process_count() == 1:
            return value
        flags = np.full(jax.local_device_count(), value)
        self._asked.append(self._any(self._put(flags)))
        if len(self._asked) <= self.delay:
            return False
        return bool(self._asked.popleft())
