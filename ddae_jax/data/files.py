"""Reading files from disks and networks that may fail for a while, or for good."""

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

_Read = TypeVar("_Read")

# Errors of reading that say nothing of the machine, only of one file: gone, or not for us.
_OF_ONE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR)
_OF_ONE_FILE += (errno.ENXIO, errno.ENAMETOOLONG)  # a socket, and a name that is too long

# Before each further try, seconds: a server that restarts is back, and a lost packet sent again.
_WAITS_S = (0.1, 1.0, 5.0, 15.0)

DAMAGED = "damaged"
TRUNCATED = "truncated"
NOT_READ = "of a kind that is not read"
"""Why files are refused, if in several places."""


class ReadFailed(OSError):
    """A disk or a network that gives no answer, or a wrong one. The message names the file."""

    def __init__(self, message: str):
        super().__init__(message)  # alone, so that it travels from process to process


class NoMemoryLeft(MemoryError):
    """A machine that has no memory left to decode a file in. The message names the file."""

    def __init__(self, message: str):
        super().__init__(message)  # alone, so that it travels from process to process


class Refused(ValueError):
    """A file that is not decoded, although it might be; `kind` says why in a few words."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


def is_of_one_file(error: OSError) -> bool:
    """Tells whether an error is about one file alone, and not about where it lies."""
    return error.errno in _OF_ONE_FILE


def patiently(
    name: str | bytes,
    call: Callable[[], _Read],
    kinds: tuple[type[Exception], ...] = (OSError,),
) -> _Read:
    """Calls what reads something, and again after a while if the disk or the network is at fault.

    **Arguments:**

    - `name`: of what is read, for messages.
    - `call`: reads it.
    - `kinds`: the errors by which it tells that it could not.

    Raises `ReadFailed` where it does not get better. An `OSError` of one file alone is raised at
    once, as it is.
    """
    waits = list(_WAITS_S)
    while True:
        try:
            return call()
        except ReadFailed:
            raise
        except kinds as error:
            if isinstance(error, OSError) and is_of_one_file(error):
                raise
            cause = getattr(error, "strerror", None) or error
            if not waits:
                raise ReadFailed(
                    f"{os.fsdecode(name)} cannot be read: {cause}; it was tried "
                    f"{len(_WAITS_S) + 1} times within {sum(_WAITS_S):.0f} s. Look after the disk "
                    "or the network that it lies on; then the same command goes on"
                ) from error
            if len(waits) == len(_WAITS_S):
                _log.warning("%s cannot be read: %s; trying again", os.fsdecode(name), cause)
        time.sleep(waits.pop(0))


def read_bytes(path: bytes, most: int) -> bytes:
    """Reads a regular file of at most so many bytes; of another one nothing is read.

    Raises `Refused` for what is no regular file, or too large, and `OSError`, of which
    `ReadFailed` says that the disk or the network is at fault.
    """
    return patiently(path, lambda: _read_once(path, most))


def _read_once(path: bytes, most: int) -> bytes:
    # A pipe that nobody writes to would be waited for: not so where it is opened like this.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Refused("it is no regular file", "no regular file")
        if status.st_size > most:
            raise Refused(
                f"it has {status.st_size:,} bytes, and an image within data.max_pixels at most "
                f"{most:,}",
                "more bytes than data.max_pixels allows",
            )
        return file.read()
