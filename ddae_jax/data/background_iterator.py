"""Waiting for items that are read in another thread: a stop ends the wait, even if a disk hangs."""

import contextlib
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Generic, TypeVar

from ddae_jax.data import workers

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_LONG_WAIT_S = 60.0  # after which the log tells of a wait
# How long the iterator may take to close; and again, after its processes were killed.
_CLOSE_S, _KILLED_S = 20.0, 3.0

_Item = TypeVar("_Item")


class BackgroundIterator(Generic[_Item]):
    """An iterator that is read in a thread of its own, so that a wait for it can be given up.

    Items are read only when they are asked for. The thread leaves signals to the other threads.

    Args:
        make: makes the iterator, in that thread.
        close: ends the iterator.
    """

    def __init__(
        self,
        make: Callable[[], Iterator[_Item]],
        close: Callable[[Iterator[_Item]], None],
    ):
        self._make = make
        self._close = close
        self._iterator: Iterator[_Item] | None = None
        self._thread = futures.ThreadPoolExecutor(
            1, thread_name_prefix="next-batch", initializer=workers.leave_signals_to_others
        )
        self._asked: futures.Future[_Item] | None = None

    def next_unless(self, is_over: Callable[[], bool]) -> _Item | None:
        """Waits for the next item; returns None if ``is_over()`` becomes true before it is there.

        The item is then what the next call returns. A long wait is logged. Raises what reading
        raises.
        """
        self._asked = self._asked or self._thread.submit(self._read)
        began, warn_after_s = time.monotonic(), _LONG_WAIT_S
        while not futures.wait([self._asked], _LOOK_EVERY_S).done:
            if is_over():
                return None
            waited_s = time.monotonic() - began
            if waited_s > warn_after_s:
                warn_after_s = 2 * waited_s
                _log.warning(
                    "no batch has come for %.0f s; the disk or the network that the images lie on "
                    "may be gone. A stop (Ctrl-C, SIGTERM) ends this wait too",
                    waited_s,
                )
        asked, self._asked = self._asked, None
        return asked.result()

    def close(self) -> None:
        """Ends the iterator. Worker processes are killed if they hang."""
        hangs = self._asked is not None and not self._asked.done()
        self._thread.shutdown(wait=False, cancel_futures=True)
        # In another thread, as this one would wait for ever for a process that hangs.
        closing = threading.Thread(target=self._close_quietly, daemon=True)
        closing.start()
        closing.join(0 if hangs else _CLOSE_S)
        if closing.is_alive():
            workers.kill(multiprocessing.active_children())
            closing.join(_KILLED_S)

    def _read(self) -> _Item:
        if self._iterator is None:
            self._iterator = self._make()
        return next(self._iterator)

    def _close_quietly(self) -> None:
        if self._iterator is not None:
            with contextlib.suppress(Exception):  # processes may have been killed meanwhile
                self._close(self._iterator)
