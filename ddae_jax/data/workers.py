"""How processes that read for another one behave: they live and end with it alone."""

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

_OF_THE_GROUP = {signal.SIGTERM, signal.SIGINT}
_PATIENCE_S = 1.0
# What Grain calls its processes, and what it says of one that ended.
_NAME = "grain-process-prefetch"
_ENDED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
# Batches that lie in shared memory for each process: made, handed over, and taken but not used
# yet, each with one more that waits for its place.
_BATCHES_EACH = 4

SHARED_MEMORY = "/dev/shm"
"""Where the memory lies through which processes hand over batches."""


class WorkerLost(RuntimeError):
    """A process that read images has ended before it was told to. The message says why."""


def leave_signals_to_others() -> None:
    """Makes this thread, and all processes and threads that it starts, deaf to signals.

    A shell or a scheduler sends SIGTERM and Ctrl-C to the whole group of processes; it is for the
    parent to decide what is still to be read. What is started inherits it from its first instant: a
    worker that died while it starts would let its parent wait for ever.
    """
    resource_tracker.ensure_running()  # its start, if left to the workers', lets signals through
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_GROUP)


def ends_with_this_process() -> Callable[[int, int], None]:
    """What a worker process of this one runs first, given to Grain; it travels there.

    The worker ends soon after its parent, however that ends: one that was killed can tell nobody.
    """
    return functools.partial(_watch, os.getpid())


def kill(processes: Iterable[BaseProcess]) -> None:
    """Kills those of some processes that read images."""
    for process in processes:
        if process.name.startswith(_NAME):
            process.kill()


def check_shared_memory(
    num_workers: int, batch_bytes: int, folder: str = SHARED_MEMORY
) -> str | None:
    """Says what is wrong if the batches that lie ready may find no room; None if all is well.

    **Arguments:**

    - `num_workers`: processes that read.
    - `batch_bytes`: of one batch.
    - `folder`: of the shared memory.

    Raises `ValueError` if they cannot find room, as all of it is smaller.
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


def explained(error: Exception, num_workers: int) -> Exception:
    """The error that tells people why a batch could not be read, or that one itself.

    **Arguments:**

    - `error`: that Grain has raised.
    - `num_workers`: processes that read.
    """
    if not num_workers:
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM):
        return WorkerLost(f"{_shared_memory_is_full()}. {_remedy()}")
    found = _ENDED.search(str(error)) if isinstance(error, RuntimeError) else None
    return WorkerLost(_cause_of_end(int(found[1]), num_workers)) if found else error


def _cause_of_end(exit_code: int, num_workers: int) -> str:
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
    total, free = _size_of(SHARED_MEMORY)
    if total is None:
        return "no shared memory was left"
    return f"no shared memory was left ({SHARED_MEMORY} has {_mib(total)}, {_mib(free)} free now)"


def _remedy() -> str:
    return (
        "In a container give it more, as by docker run --shm-size=8g, or on Kubernetes by an "
        f"emptyDir with medium: Memory at {SHARED_MEMORY}; or lower data.num_workers, of which 0 "
        "needs none"
    )


def _size_of(folder: str) -> tuple[int | None, int]:
    """Bytes of a file system, all and those that are free; None where there is none."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None, 0
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _watch(parent: int, index: int, count: int) -> None:
    del index, count
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PATIENCE_S)
    os._exit(1)
