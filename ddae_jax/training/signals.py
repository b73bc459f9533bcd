"""Signals: ends a run in good order when it is asked to stop by SIGTERM or SIGINT."""

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

# Seconds after which a stop is raised again: an exception that is raised in code which the
# interpreter calls by itself, such as a garbage collector's callback, is lost.
_AGAIN_S = 1.0
_LOOK_EVERY_S = 0.2
# Seconds after a stop until the process exits: from a body that may be left anywhere, but is in a
# call that no exception reaches, such as a read from a mount that is gone; and from a body that
# other processes wait for.
_UNREACHED_S, _TOGETHER_S = 10.0, 60.0


class Interrupted(BaseException):
    """A stop was requested while there was nothing to save; see :meth:`StopRequest.at_once`.

    Like ``KeyboardInterrupt``, it is not an ``Exception``, so that handlers of errors let it pass.
    """


class StopRequest:
    """Request to stop: notes SIGTERM and SIGINT, so that the loop ends after the current step.

    A second SIGINT (Ctrl-C) raises ``KeyboardInterrupt`` at once. Use it as a context manager in
    the main thread; on exit, the earlier signal handlers are restored. It is true once a signal has
    been received.

    Args:
        exit_status: returns the exit status of a process that is ended because a body of
            :meth:`at_once` did not react to a stop.

    Attributes:
        received: the signal that was received last; None if there was none.
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
        # Handlers run in the main thread only, which may be in a call that lets none run. The
        # wakeup file descriptor tells another thread of the signal even then.
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
        self._notice.close()  # this ends the thread

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a stop interrupt the body anywhere, by raising :class:`Interrupted` in it.

        A stop that was requested earlier raises it before the body. It is raised every second
        until the body is left, as an exception may be lost in a callback. If no exception reaches
        the body for ten seconds, as in a read that never returns, the process exits.
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
        """Limits a body that other processes wait for: a minute after a stop, the process exits."""
        return self._limited(_TOGETHER_S, lambda stop: 1)

    @contextlib.contextmanager
    def _limited(self, seconds: float, exit_status: Callable[["StopRequest"], int]):
        before, self._limit = self._limit, _Limit(time.monotonic(), seconds, exit_status)
        try:
            yield
        finally:
            self._limit = before

    def _watch(self, noticed: socket.socket) -> None:
        """Exits the process if, after a signal, a body takes longer than its limit."""
        signalled_at, number = None, None
        with noticed:
            while True:
                noticed.settimeout(None if signalled_at is None else _LOOK_EVERY_S)
                with contextlib.suppress(TimeoutError):
                    numbers = noticed.recv(64)
                    if not numbers:
                        return
                    if number is None:
                        number = next((n for n in numbers if n in self.SIGNALS), None)
                        signalled_at = None if number is None else time.monotonic()
                limit = self._limit
                if signalled_at is None or limit is None:
                    continue
                if time.monotonic() > max(signalled_at, limit.began) + limit.seconds:
                    self._leave(number, limit)

    def _leave(self, number: int, limit: "_Limit") -> None:
        self.received = self.received or signal.Signals(number)
        message = (
            f"\n{self.received.name}: what is going on has not ended for {limit.seconds:.0f} s, as "
            "if a file were read that never comes: leaving as it is. The same command continues "
            "from the latest checkpoint\n"
        )
        os.write(2, message.encode())
        os._exit(limit.exit_status(self))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_first = self.received is None
        self.received = signal.Signals(number)
        if is_first:
            # Not through the log: a handler runs between any two operations, and so may interrupt
            # the writing of a line.
            os.write(2, f"\n{self.received.name}: stopping; the same command continues\n".encode())
        if self._is_at_once:
            self._remind()
            if not _is_lost_in(frame):
                raise Interrupted

    def _remind(self) -> None:
        """Schedules another signal, unless the body is left by then."""
        self._forget_reminder()
        self._reminder = threading.Timer(_AGAIN_S, self._signal_again)
        self._reminder.daemon = True
        self._reminder.start()

    def _signal_again(self) -> None:
        with self._lock:
            if self._reminder is threading.current_thread():  # else the body has been left
                os.kill(os.getpid(), signal.SIGTERM)

    def _forget_reminder(self) -> None:
        with self._lock:
            if self._reminder is not None:
                self._reminder.cancel()
                self._reminder = None


class _Limit(NamedTuple):
    """Time limit of a body: its start, the seconds it has after a stop, and the exit status."""

    began: float
    seconds: float
    exit_status: Callable[[StopRequest], int]


def _is_lost_in(frame: FrameType | None) -> bool:
    """Returns whether an exception raised in a frame would be printed and then ignored.

    Python ignores exceptions in callbacks of the garbage collector, one of which is JAX's, and in
    ``__del__``.
    """
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
