"""Exits of the commands: how they end, with which message and which status."""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from absl import flags as absl_flags

from ddae_jax.data.annotations import BadAnnotation
from ddae_jax.data.disks import ReadFailed
from ddae_jax.data.files import NoMemoryLeft
from ddae_jax.data.labels import BadLabel
from ddae_jax.data.readable import NothingReadable
from ddae_jax.data.train_loader import DataChanged, TooManyCorruptImages
from ddae_jax.data.uniform_size import OddSize
from ddae_jax.data.workers import WorkerLost
from ddae_jax.jobs.cli import CommandEnded
from ddae_jax.training.checkpoint import CheckpointError
from ddae_jax.training.health import NonFiniteLoss
from ddae_jax.training.multihost import OtherProcessFailed
from ddae_jax.training.reading import ReadingHangs
from ddae_jax.training.signals import StopRequest
from ddae_jax.training.workdir import DISK_FULL, WorkdirInUse

_BAD_INPUT = (ValueError, OSError, WorkdirInUse, CheckpointError, absl_flags.Error)
_BAD_INPUT += (OtherProcessFailed, NoMemoryLeft)
_RUN_ENDERS = (CheckpointError, DataChanged, NonFiniteLoss, TooManyCorruptImages)
_RUN_ENDERS += (OtherProcessFailed, BadAnnotation, BadLabel, NothingReadable)
_RUN_ENDERS += (NoMemoryLeft, OddSize, ReadFailed, ReadingHangs, WorkerLost)

STOPPED_STATUS = "DDAE_JAX_STOPPED_STATUS"
"""Names the environment variable of the exit status of a run that was stopped before its end."""


@contextlib.contextmanager
def explain_bad_input() -> Iterator[None]:
    """Shows what is wrong with the input in a line or two, and ends with status 2."""
    try:
        yield
    except _BAD_INPUT as error:
        _end(error, 2)


@contextlib.contextmanager
def explain_run_ends() -> Iterator[None]:
    """Shows why a run could not go on, and ends with status 1; bugs keep their traceback."""
    try:
        yield
    except _RUN_ENDERS as error:
        _end(error, getattr(error, "exit_status", 1))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _end(OSError(f"{error}; make room, and the same command continues the run"), 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _end(
            MemoryError(
                f"{str(error).splitlines()[0]} Less memory is needed with "
                "optimizer.micro_batches=2, which takes the same batch in two parts, and with "
                "model.rematerialization=full; a run that has begun goes on with either by "
                "--allow_config_changes. A smaller batch_size or model.size takes a new --workdir."
            ),
            1,
        )


@contextlib.contextmanager
def fail_fast_multihost() -> Iterator[None]:
    """Ends this process at once if the body fails and there are others, with a message.

    The others wait for this one in their next collective operation. So would this one, if it left
    in good order: closing checkpoints takes all processes. JAX ends them when it misses this one.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, _RUN_ENDERS):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError) and _is_of_others(error):
            print(
                f"error: another process of this run is gone, or cannot be reached: "
                f"{str(error).splitlines()[0]}\nThe same command, started on all of them again, "
                "continues from the latest checkpoint.",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(getattr(error, "exit_status", 1))


def run(main: Callable[[], int]) -> NoReturn:
    """Ends the process with a job's status, at once.

    Threads that still compile, download or compute what nobody waits for any more would keep it,
    or crash an interpreter that is being taken down under them.
    """
    try:
        status = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        status = 1
    if jax.process_count() > 1:
        sys.exit(status)  # the others are told
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def check_stopped_status() -> None:
    """Raises ``ValueError`` if the environment's :data:`STOPPED_STATUS` is no exit status."""
    text = os.environ.get(STOPPED_STATUS, "0")
    if not (text.isascii() and text.isdigit() and int(text) < 256):
        raise ValueError(f"{STOPPED_STATUS}={text}; an exit status is a whole number in [0, 255]")


def stopped_status(stop: StopRequest) -> int:
    """The exit status of a run that a signal stops before its end.

    That is what the environment says: a scheduler that starts stopped runs again must tell them
    from complete ones, and all processes of a run end with it, whichever of them got the signal.
    By default it is 130 for Ctrl-C, as of any command, and else 0.
    """
    if STOPPED_STATUS in os.environ:
        return int(os.environ[STOPPED_STATUS])
    return 128 + signal.SIGINT if stop.received == signal.SIGINT else 0


def _is_of_others(error: Exception) -> bool:
    """Whether an error is about what the processes of a run send each other."""
    words = ("gloo", "collective", "connection", "heartbeat", "unavailable", "peer", "coordination")
    return any(word in str(error).lower() for word in words)


def _end(error: Exception, status: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise CommandEnded(status) from error
