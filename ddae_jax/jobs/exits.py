"""Exits of the commands: their messages and their exit statuses."""

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
"""The environment variable with the exit status of a run that was stopped before its end."""


@contextlib.contextmanager
def explain_bad_input() -> Iterator[None]:
    """Turns errors of the input in the body into a short message and exit status 2."""
    try:
        yield
    except _BAD_INPUT as error:
        _end(error, 2)


@contextlib.contextmanager
def explain_run_ends() -> Iterator[None]:
    """Turns errors that end a run into a short message and their exit status, 1 by default.

    Other exceptions are bugs and keep their traceback.
    """
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
    """Exits at once, with a message, if the body fails in one of several processes.

    A clean shutdown would block, because closing checkpoints takes all processes and the others
    wait in their next collective operation. JAX ends those when this one's heartbeat is missing.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, _RUN_ENDERS):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError) and _is_communication_error(error):
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
    """Runs a command and exits at once with the status it returns.

    A normal exit would wait for threads that still compile, download or compute, or they would
    crash while the interpreter shuts down.
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
        sys.exit(status)  # a normal exit, which notifies the other processes
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def check_stopped_status() -> None:
    """Raises ``ValueError`` if the variable :data:`STOPPED_STATUS` is set to no exit status."""
    text = os.environ.get(STOPPED_STATUS, "0")
    if not (text.isascii() and text.isdigit() and int(text) < 256):
        raise ValueError(f"{STOPPED_STATUS}={text}; an exit status is a whole number in [0, 255]")


def stopped_status(stop: StopRequest) -> int:
    """Returns the exit status of a run that a signal stopped before its end.

    The variable :data:`STOPPED_STATUS` sets it, so that a scheduler that restarts stopped runs can
    distinguish them from complete ones. All processes of a run end with it, whichever of them got
    the signal. By default it is 130 for Ctrl-C, as usual for commands, and else 0.
    """
    if STOPPED_STATUS in os.environ:
        return int(os.environ[STOPPED_STATUS])
    return 128 + signal.SIGINT if stop.received == signal.SIGINT else 0


def _is_communication_error(error: Exception) -> bool:
    """Returns whether an error is one of the communication between processes."""
    words = ("gloo", "collective", "connection", "heartbeat", "unavailable", "peer", "coordination")
    return any(word in str(error).lower() for word in words)


def _end(error: Exception, status: int) -> NoReturn:
    """Prints an error and ends the command with a status."""
    print(f"error: {error}", file=sys.stderr)
    raise CommandEnded(status) from error
