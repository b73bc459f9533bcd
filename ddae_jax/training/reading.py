"""Batches for the loop, read ahead where several processes have to stop together."""

import collections
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ddae_jax.training.signals import StopRequest

_log = logging.getLogger(__name__)

# Seconds that one of several processes waits for a batch after a stop. Schedulers kill after 30 s.
_PATIENCE_S = 15.0

Batch = Mapping[str, np.ndarray]
"""This process's share of a batch."""


class ReadingHangs(RuntimeError):
    """A stop was requested, but one of several processes waits for a batch that does not come."""


class Batches(Protocol):
    """Interface of a data loader for the loop; see :class:`ddae_jax.data.train_loader.TrainLoader`.

    Attributes:
        corrupt_count: number of images that could not be decoded.
        corrupt_causes: their number by cause.
    """

    corrupt_count: int
    corrupt_causes: Mapping[str, int]

    def synchronize(self) -> None:
        """Exchanges what each process knows of corrupt images; all processes must call it."""

    def next_unless(self, is_over: Callable[[], bool]) -> Batch | None:
        """Returns the next batch; None if ``is_over()`` becomes true before it is there."""

    def get_state(self, step: int) -> dict[str, Any]:
        """Returns the data position after ``step`` steps, for a checkpoint."""


class ReadAhead:
    """Reader of batches that keeps some ready, and notes why no more can be read.

    Several processes learn of a stop some steps after one of them was asked to stop, and take these
    steps together. A process that cannot read any more takes them with the batches it has ready.

    Args:
        batches: data loader, positioned at the next step.
        stop: request to stop, which ends the wait for a batch.
        most: number of batches to read in all.
        num_ready: number of batches to keep ready beyond the next one.

    Attributes:
        failure: error that ended reading; None if there was none.
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
        """Returns the next batch; None if a stop comes first, or if reading failed (``failure``).

        One of several processes that has no batch ready raises instead, as the others cannot go on
        without it.

        Raises:
            ReadingHangs: if a stop was requested, and no batch has come for 15 s since.
            Exception: the error that ended reading.
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
        """Reads one batch; returns whether there was one."""
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
        """Returns whether waiting for a batch must end because of a stop.

        It ends at once, unless other processes need the batch; then it ends after a while.
        """
        if not self._stop or jax.process_count() == 1 or self._ready:
            return bool(self._stop)
        self._stopped_at = self._stopped_at or time.monotonic()
        return time.monotonic() - self._stopped_at > _PATIENCE_S
