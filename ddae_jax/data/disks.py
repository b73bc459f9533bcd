"""Reading from disks and networks that may fail: it is tried again for a while, then given up.

Every part of the package may import this module, which imports none of them.
"""

import contextlib
import errno
import io
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

_log = logging.getLogger(__name__)

_Read = TypeVar("_Read")

# Errors that concern one file and not its disk: it is gone, or may not be read.
_OF_ONE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR)
_OF_ONE_FILE += (errno.ENXIO, errno.ENAMETOOLONG)  # a socket, and a name that is too long

# Waits before further tries, seconds: for a lost packet to be sent again, a server to restart.
_WAITS_S = (0.1, 1.0, 5.0, 15.0)


class ReadFailed(OSError):
    """A disk or a network that does not answer, or answers wrongly. The message names the file."""

    def __init__(self, message: str):
        super().__init__(message)  # the only argument, so that the error can be pickled


def is_of_one_file(error: OSError) -> bool:
    """Tells whether an error is about one file alone, and not about where it lies."""
    return error.errno in _OF_ONE_FILE


def with_retries(
    name: str | bytes,
    call: Callable[[], _Read],
    kinds: tuple[type[Exception], ...] = (OSError,),
) -> _Read:
    """Calls a function that reads something, and again if the disk or the network fails.

    Args:
        name: of what is read, for messages.
        call: reads it.
        kinds: the errors of ``call`` that mean a failed disk or network.

    Returns:
        What ``call`` returns.

    Raises:
        ReadFailed: if it still fails after five tries within 21 seconds.
        OSError: at once and as it is, if it concerns one file only (``is_of_one_file``).
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


def is_file(path: pathlib.Path) -> bool:
    """Tells whether there is a regular file; tries again as ``with_retries`` does."""
    return with_retries(os.fspath(path), path.is_file)


def read_file(path: pathlib.Path) -> bytes:
    """Reads a whole file; tries again as ``with_retries`` does."""
    with reading(path) as file:
        return file.read()


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file for any reader of files; each read tries again as ``with_retries`` does.

    Raises:
        ReadFailed: if the disk or the network fails, also where the reader raised another error
            because of that.
    """
    raw = _RetryingFile(path)
    with io.BufferedReader(raw) as file:
        try:
            yield file
        except Exception as error:
            if raw.failure is None or raw.failure is error:
                raise
            raise raw.failure from error


class _RetryingFile(io.RawIOBase):
    """A raw file that is opened again before each further try: a restarted server needs that."""

    def __init__(self, path: pathlib.Path):
        self._path, self._at, self._file = path, 0, None
        self.failure: ReadFailed | None = None
        self._size = self._with_retries(lambda: os.fstat(self._opened().fileno()).st_size)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(self._path))
        self._at = start + offset
        return self._at

    def readinto(self, buffer):
        count = self._with_retries(lambda: self._read_once(buffer))
        self._at += count
        return count

    def close(self):
        self._drop()
        super().close()

    def _with_retries(self, call):
        """Calls with retries, and remembers the error if they fail."""
        try:
            return with_retries(os.fspath(self._path), call)
        except ReadFailed as failure:
            self.failure = failure
            raise

    def _read_once(self, buffer):
        try:
            file = self._opened()
            file.seek(self._at)
            return file.readinto(buffer)
        except OSError:
            self._drop()
            raise

    def _opened(self):
        """Returns the open file, opened now if it is not."""
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
        return self._file

    def _drop(self):
        """Closes the file; the next read opens it again."""
        file, self._file = getattr(self, "_file", None), None
        if file is not None:
            file.close()
