"""Ends a run in good order when it is asked to stop."""

import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple

# An exception is lost in code that the interpreter calls by itself: it is raised again after this.
_AGAIN_S = 1.0
_LOOK_EVERY_S = 0.2
# How long a body that may be left anywhere may stay in what no exception reaches, such as a read
# from a mount that is gone; and how long one that other processes wait for may take.
_UNREACHED_S, _TOGETHER_S = 10.0, 60.0


class Interrupted(BaseException):
    """A stop was asked for while there was nothing to save; see :meth:`StopRequest.at_once`.

    Like ``KeyboardInterrupt`` no ``Exception``: nobody who handles errors catches it.
    """


class StopRequest:
    """Notes SIGTERM and SIGINT, so that the loop can end after the step that is running.

    A second SIGINT (Ctrl-C) ends the process at once. Use as a context manager, in the main
    thread; the handlers that were there before are put back at its end.

    Args:
        exit_status: of a process that ends because a body did not, see :meth:`at_once`.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, exit_status: Callable[["StopRequest"], int] = lambda stop: 1):
        self.received: signal.Signals | None = None
        self._exit_status = exit_status
        self._limit: _Limit | None = None
        self._previous = {}
        self._is_at_once = False
        self._reminder: threading.Timer | None = None
        self._lock = threading.RLock()  # a handler may interrupt the thread that holds it

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "StopRequest":
        self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        # Handlers run in the main thread alone, which may be where none can run.
        noticed, self._notice = socket.socketpair()
        self._notice.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._notice.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(noticed,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._forget_reminder()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._notice.close()  # whereupon the thread ends

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """The body may be left anywhere: a stop raises :class:`Interrupted` in it, or before it.

        Again and again, until the body is left: the first may be lost in a callback. Where no
        exception reaches it for ten seconds, as in a read that never returns, the process ends.
        """
        before, self._is_at_once = self._is_at_once, True
        try:
            if self:
                raise Interrupted
            with self._limited(_UNREACHED_S, self._exit_status):
                yield
        finally:
            self._is_at_once = before
            if not before:
                self._forget_reminder()

    def together(self) -> contextlib.AbstractContextManager:
        """The body is what other processes wait for: a minute after a stop the process ends."""
        return self._limited(_TOGETHER_S, lambda stop: 1)

    @contextlib.contextmanager
    def _limited(self, seconds: float, exit_status: Callable[["StopRequest"], int]):
        before, self._limit = self._limit, _Limit(time.monotonic(), seconds, exit_status)
        try:
            yield
        finally:
            self._limit = before

    def _watch(self, noticed: socket.socket) -> None:
        """Ends the process if a body goes on for longer than it may after a signal."""
        asked_at, number = None, None
        with noticed:
            while True:
                noticed.settimeout(None if asked_at is None else _LOOK_EVERY_S)
                with contextlib.suppress(TimeoutError):
                    numbers = noticed.recv(64)
                    if not numbers:
                        return
                    if number is None:
                        number = next((n for n in numbers if n in self.SIGNALS), None)
                        asked_at = None if number is None else time.monotonic()
                limit = self._limit
                if asked_at is None or limit is None:
                    continue
                if time.monotonic() > max(asked_at, limit.began) + limit.seconds:
                    self._leave(number, limit)

    def _leave(self, number: int, limit: "_Limit") -> None:
        self.received = self.received or signal.Signals(number)
        told = (
            f"\n{self.received.name}: what is going on has not ended for {limit.seconds:.0f} s, as "
            "if a file were read that never comes: leaving as it is. The same command continues "
            "from the latest checkpoint\n"
        )
        os.write(2, told.encode())
        os._exit(limit.exit_status(self))

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
                raise Interrupted

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


class _Limit(NamedTuple):
    """Since when a body goes on, how long it may after a stop, and the exit status if it does."""

    began: float
    seconds: float
    exit_status: Callable[[StopRequest], int]


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
