"""Ends a run in good order when it is asked to stop."""

import logging
import signal

_log = logging.getLogger(__name__)


class StopRequest:
    """Notes SIGTERM and SIGINT, so that the loop can end after the step that is running.

    A second SIGINT (Ctrl-C) ends the process at once. Use as a context manager, in the main
    thread; the handlers that were there before are put back at its end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "StopRequest":
        self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        _log.warning(
            "%s: saving after this step, then stopping; the same command continues the run",
            self.received.name,
        )
