"""Signals: SIGTERM and SIGINT stop a run at a point from which it can be continued."""

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

# Seconds after which Interrupted is raised again: an exception raised in code that the interpreter
# calls by itself, such as a callback of the garbage collector, is lost.
_REMIND_AFTER_S = 1.0
_POLL_INTERVAL_S = 0.2  # of the thread that checks limits
# Seconds after a stop until the process exits: in a body of `at_once` that no exception reaches,
# such as a read from a lost mount; and in a body of `together`, which other processes wait for.
_UNREACHED_S, _TOGETHER_S = 10.0, 60.0


class Interrupted(BaseException):
    """Exception raised by a stop in a body of :meth:`StopRequest.at_once`; nothing is to be saved.

    Like ``KeyboardInterrupt``, it is not an ``Exception``, so that handlers of errors let it pass.
    """


class StopRequest:
    """A request to stop, made by SIGTERM or SIGINT: the loop then ends after the current step.

    A second SIGINT (Ctrl-C) raises ``KeyboardInterrupt`` at once. Use it as a context manager in
    the main thread; on exit, the earlier signal handlers are restored. It is true once it has
    received a signal.

    Args:
        exit_status: returns the exit status of a process that is ended because a body of
            :meth:`at_once` did not react to a stop.

    Attributes:
        received: the latest signal; None before the first.
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
        self._previous = {s: signal.signal(s, self._on_signal) for s in self.SIGNALS}
        # Handlers run in the main thread only, which may be in a call that lets none run. The
        # wakeup file descriptor tells another thread of the signal even then.
        receiver, self._notice = socket.socketpair()
        self._notice.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._notice.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()
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

        A stop that was requested earlier raises it before the body. The exception is raised again
        every second until the body is left, because it may be lost in a callback. If no exception
        reaches the body for ten seconds, as in a read that never returns, the process exits.
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
        """Makes the process exit a minute after a stop, for a body that others wait for."""
        return self._limited(_TOGETHER_S, lambda stop: 1)

    @contextlib.contextmanager
    def _limited(self, seconds: float, exit_status: Callable[["StopRequest"], int]):
        """Makes the process exit if the body goes on for some seconds after a stop."""
        before, self._limit = self._limit, _Limit(time.monotonic(), seconds, exit_status)
        try:
            yield
        finally:
            self._limit = before

    def _watch(self, receiver: socket.socket) -> None:
        """Runs in a thread: exits the process if, after a signal, a body exceeds its limit."""
        signalled_at, number = None, None
        with receiver:
            while True:
                receiver.settimeout(None if signalled_at is None else _POLL_INTERVAL_S)
                with contextlib.suppress(TimeoutError):
                    numbers = receiver.recv(64)
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
        """Exits the process, with a message that says why."""
        self.received = self.received or signal.Signals(number)
        message = (
            f"\n{self.received.name}: what is going on has not ended for {limit.seconds:.0f} s, as "
            "if a file were read that never comes: leaving as it is. The same command continues "
            "from the latest checkpoint\n"
        )
        os.write(2, message.encode())
        os._exit(limit.exit_status(self))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: stores it, and raises :class:`Interrupted` if the body allows it."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_first = self.received is None
        self.received = signal.Signals(number)
        if is_first:
            # Not through the log: the handler may interrupt the log while it writes a line.
            os.write(2, f"\n{self.received.name}: stopping; the same command continues\n".encode())
        if self._is_at_once:
            self._remind()
            if not _is_lost_in(frame):
                raise Interrupted

    def _remind(self) -> None:
        """Schedules a repetition of the signal, in case the exception is lost."""
        self._forget_reminder()
        self._reminder = threading.Timer(_REMIND_AFTER_S, self._signal_again)
        self._reminder.daemon = True
        self._reminder.start()

    def _signal_again(self) -> None:
        """Sends this process another SIGTERM, unless the body has been left."""
        with self._lock:
            if self._reminder is threading.current_thread():  # else the body has been left
                os.kill(os.getpid(), signal.SIGTERM)

    def _forget_reminder(self) -> None:
        """Cancels the scheduled repetition, if there is one."""
        with self._lock:
            if self._reminder is not None:
                self._reminder.cancel()
                self._reminder = None


class _Limit(NamedTuple):
    """The time limit of a body: its start, its seconds after a stop, and the exit status."""

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
