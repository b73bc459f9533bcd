"""Batches for the loop, some of them ready ahead where several processes have to stop together."""

import collections
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ddae_jax.training.signals import StopRequest

_log = logging.getLogger(__name__)

# How long a process among several waits for a batch after a stop; schedulers kill after 30 s.
_PATIENCE_S = 15.0

Batch = Mapping[str, np.ndarray]
"""This process's part of a batch."""


class ReadingHangs(RuntimeError):
    """A stop was asked for, and one of several processes waits for a batch that does not come."""


class Batches(Protocol):
    """What the loop needs of a loader, see :class:`ddae_jax.data.train_loader.TrainLoader`."""

    corrupt_count: int
    corrupt_causes: Mapping[str, int]

    def synchronize(self) -> None: ...

    def next_unless(self, is_over: Callable[[], bool]) -> Batch | None: ...

    def get_state(self, step: int) -> dict[str, Any]: ...


class ReadAhead:
    """Reads batches, and notices when no more can be read.

    Several processes learn of a stop some steps after one of them has asked for it, and take those
    steps together. One that cannot read on takes them too, with the batches it has ready.

    Args:
        batches: positioned at the next step.
        stop: ends the wait for a batch.
        most: batches that are wanted in all.
        num_ready: batches to have ready beyond the next one.

    Attributes:
        failure: why no more can be read; None if that is not known.
    """

    def __init__(self, batches: Batches, stop: StopRequest, most: int, num_ready: int):
        self.failure: Exception | None = None
        self._batches = batches
        self._stop = stop
        self._left = most
        self._num_ready = num_ready
        self._ready: collections.deque[Batch] = collections.deque()
        self._stopped_at: float | None = None

    def next(self) -> Batch | None:
        """The next batch; None if a stop comes first, or none can be read: see ``failure``.

        Raises, in one of several processes that has no batch ready: what reading raised, or
        :class:`ReadingHangs` some time after a stop, as the others cannot go on without it.
        """
        while self._left and self.failure is None and len(self._ready) <= self._num_ready:
            if not self._read():
                break
        if self._ready:
            return self._ready.popleft()
        if jax.process_count() > 1:
            raise self.failure or ReadingHangs(
                f"a stop was asked for, and no batch has come for {_PATIENCE_S:.0f} s since: "
                "reading hangs in this process, without which the others can neither go on nor "
                "save. The same command continues from the latest checkpoint"
            )
        return None

    def _read(self) -> bool:
        """Whether one more is ready."""
        try:
            batch = self._batches.next_unless(self._is_over)
        except Exception as error:
            if self._stop and jax.process_count() == 1:
                _log.warning("reading ended before this process did: %s", error)
            else:
                self.failure = error
            return False
        if batch is None:
            return False
        self._left -= 1
        self._ready.append(dict(batch))
        return True

    def _is_over(self) -> bool:
        """Whether waiting has to end: after a stop, soon or, if others need the batch, later."""
        if not self._stop or jax.process_count() == 1 or self._ready:
            return bool(self._stop)
        self._stopped_at = self._stopped_at or time.monotonic()
        return time.monotonic() - self._stopped_at > _PATIENCE_S
