"""Ends a run in good order when it is asked to stop."""

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# An exception is lost in code that the interpreter calls by itself: it is raised again after this.
_AGAIN_S = 1.0


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
        self._reminder: threading.Timer | None = None
        self._lock = threading.RLock()  # a handler may interrupt the thread that holds it

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "StopRequest":
        self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self._forget_reminder()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """The body may be left anywhere: a stop raises :class:`Stopped` in it, or before it.

        Again and again, until the body is left: the first may be lost in a callback.
        """
        before, self._is_at_once = self._is_at_once, True
        try:
            if self:
                raise Stopped
            yield
        finally:
            self._is_at_once = before
            if not before:
                self._forget_reminder()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_first = self.received is None
        self.received = signal.Signals(number)
        if is_first:
            # Not by the log, which may be amid a line: a handler runs between any two operations.
            os.write(2, f"\n{self.received.name}: stopping; the same command continues\n".encode())
        if self._is_at_once:
            self._remind()
            if not _is_lost_in(frame):
                raise Stopped

    def _remind(self) -> None:
        """Signals again soon, unless the body is left by then."""
        self._forget_reminder()
        self._reminder = threading.Timer(_AGAIN_S, self._signal_again)
        self._reminder.daemon = True
        self._reminder.start()

    def _signal_again(self) -> None:
        with self._lock:
            if self._reminder is threading.current_thread():  # else it is too late
                os.kill(os.getpid(), signal.SIGTERM)

    def _forget_reminder(self) -> None:
        with self._lock:
            if self._reminder is not None:
                self._reminder.cancel()
                self._reminder = None


def _is_lost_in(frame: FrameType | None) -> bool:
    """Whether an exception raised in a frame would only be printed, and then be forgotten.

    So it is in callbacks of the garbage collector, of which JAX has one, and where objects go.
    """
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
