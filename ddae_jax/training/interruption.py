"""Ends a run in good order when it is asked to stop."""

import contextlib
import os
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """A stop was asked for while there was nothing to save; see :meth:`StopRequest.at_once`.

    Like ``KeyboardInterrupt`` no ``Exception``: nobody who handles errors catches it.
    """


class StopRequest:
    """Notes SIGTERM and SIGINT, so that the loop can end after the step that is running.

    A second SIGINT (Ctrl-C) ends the process at once. Use as a context manager, in the main
    thread; the handlers that were there before are put back at its end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous = {}
        self._is_at_once = False

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "StopRequest":
        self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """The body may be left anywhere: a stop raises :class:`Stopped` in it, or before it."""
        before, self._is_at_once = self._is_at_once, True
        try:
            if self:
                raise Stopped
            yield
        finally:
            self._is_at_once = before

    def _note(self, number: int, _frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_first = self.received is None
        self.received = signal.Signals(number)
        if is_first:
            # Not by the log, which may be amid a line: a handler runs between any two operations.
            os.write(2, f"\n{self.received.name}: stopping; the same command continues\n".encode())
        if self._is_at_once:
            raise Stopped
