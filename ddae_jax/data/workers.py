"""Worker processes that read batches: their signals, their end, and the memory they share."""

import errno
import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

_GROUP_SIGNALS = {signal.SIGTERM, signal.SIGINT}  # which are sent to all processes of a job
_LOOK_EVERY_S = 1.0
# Grain's name of its processes, and its message for one that ended.
_NAME = "grain-process-prefetch"
_ENDED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
# Batches in shared memory for each process: being made, handed over, and taken but not used yet,
# and one more that waits for its place.
_BATCHES_EACH = 4

SHARED_MEMORY = "/dev/shm"
"""The folder of the memory through which processes hand over batches."""


class WorkerLost(RuntimeError):
    """A worker process that ended before it was told to. The message says why."""


def leave_signals_to_others() -> None:
    """Blocks SIGTERM and SIGINT in this thread and in all threads and processes that it starts.

    A shell or a scheduler sends them to the whole group of processes, and the main process has to
    decide what is still read. Workers inherit the block from their first instant: one that died
    while it starts would let its parent wait for ever.
    """
    resource_tracker.ensure_running()  # started together with workers, it would unblock signals
    signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)


def ends_with_this_process() -> Callable[[int, int], None]:
    """Returns a picklable function that Grain runs at the start of each worker process.

    It ends the worker soon after this process ends, in whatever way: a process that is killed
    cannot end its workers.
    """
    return functools.partial(_watch, os.getpid())


def kill(processes: Iterable[BaseProcess]) -> None:
    """Kills those of the processes that are workers of Grain."""
    for process in processes:
        if process.name.startswith(_NAME):
            process.kill()


def check_shared_memory(
    num_workers: int, batch_bytes: int, folder: str = SHARED_MEMORY
) -> str | None:
    """Checks that shared memory holds the batches that the workers make ahead.

    Args:
        num_workers: processes that read.
        batch_bytes: the size of one batch.
        folder: of the shared memory.

    Returns:
        A warning if the batches may find no room, as too little is free; else None.

    Raises:
        ValueError: if they cannot find room, as the whole of it is smaller.
    """
    total, free = _size_of(folder)
    needed = num_workers * _BATCHES_EACH * batch_bytes
    if not num_workers or total is None or needed <= free:
        return None
    message = (
        f"data.num_workers={num_workers} need {_mib(needed)} of shared memory for the batches that "
        f"lie ready, and {folder} has {_mib(total)}, of which {_mib(free)} are free. {_remedy()}"
    )
    if needed > total:
        raise ValueError(message)
    return message


def explain_worker_error(error: Exception, num_workers: int) -> Exception:
    """Returns an error that says why workers could not read a batch.

    Args:
        error: raised by Grain. It is returned as it is if it does not come from the end of a
            worker or from full shared memory.
        num_workers: processes that read.
    """
    if not num_workers:
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM):
        return WorkerLost(f"{_shared_memory_is_full()}. {_remedy()}")
    match = _ENDED.search(str(error)) if isinstance(error, RuntimeError) else None
    return WorkerLost(_cause_of_end(int(match[1]), num_workers)) if match else error


def _cause_of_end(exit_code: int, num_workers: int) -> str:
    """Says what ended a worker, and what helps. A negative exit code is that of a signal."""
    if exit_code == -signal.SIGBUS:
        return (
            f"a process that reads images was ended by SIGBUS: {_shared_memory_is_full()}. "
            f"{_remedy()}"
        )
    if exit_code == -signal.SIGKILL:
        return (
            f"a process that reads images (data.num_workers={num_workers}) was killed. Mostly the "
            "system does so where memory is short (dmesg or the job's log tells): lower "
            "data.num_workers, data.num_threads or data.max_pixels, or give the job more memory"
        )
    if exit_code < 0:
        return (
            f"a process that reads images was ended by signal {-exit_code} "
            f"({signal.strsignal(-exit_code)}); with data.num_workers=0 the images are "
            "read by this process itself"
        )
    return (
        f"a process that reads images ended with status {exit_code}; what it wrote stands above. "
        "With data.num_workers=0 the images are read by this process itself"
    )


def _shared_memory_is_full() -> str:
    """Says that shared memory is full, and how large it is."""
    total, free = _size_of(SHARED_MEMORY)
    if total is None:
        return "no shared memory was left"
    return f"no shared memory was left ({SHARED_MEMORY} has {_mib(total)}, {_mib(free)} free now)"


def _remedy() -> str:
    """Says how a worker gets more shared memory."""
    return (
        "In a container give it more, as by docker run --shm-size=8g, or on Kubernetes by an "
        f"emptyDir with medium: Memory at {SHARED_MEMORY}; or lower data.num_workers, of which 0 "
        "needs none"
    )


def _size_of(folder: str) -> tuple[int | None, int]:
    """Returns the total and the free bytes of a file system; (None, 0) if there is none."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None, 0
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _mib(size: int) -> str:
    """Formats bytes as MiB."""
    return f"{size / 2**20:,.0f} MiB"


def _watch(parent: int, index: int, count: int) -> None:
    """Starts a thread that ends this process with its parent. Grain gives the other arguments."""
    del index, count
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Waits until the parent process is another one, and ends this process."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)
