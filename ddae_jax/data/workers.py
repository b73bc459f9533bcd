"""How processes that read for another one behave: they live and end with it alone."""

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

_OF_THE_GROUP = {signal.SIGTERM, signal.SIGINT}
_PATIENCE_S = 1.0


@contextlib.contextmanager
def left_to_this_process() -> Iterator[None]:
    """Worker processes that are started in the body, by whatever thread, are deaf to signals.

    A shell or a scheduler sends SIGTERM and Ctrl-C to the whole group of processes; it is for the
    parent to decide what is still to be read. The signals are held back meanwhile, and what is
    started inherits that from its first instant: a worker that died while it starts would let its
    parent wait for ever.
    """
    resource_tracker.ensure_running()  # its start, if left to the workers', lets signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ends_with_this_process() -> Callable[[int, int], None]:
    """What a worker process of this one runs first, given to Grain; it travels there.

    The worker ends soon after its parent, however that ends: one that was killed can tell nobody.
    """
    return functools.partial(_watch, os.getpid())


def _watch(parent: int, index: int, count: int) -> None:
    del index, count
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PATIENCE_S)
    os._exit(1)
