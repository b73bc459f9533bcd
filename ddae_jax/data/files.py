"""Reading the bytes of image files, and the errors for files that cannot be used."""

import os
import stat

from ddae_jax.data.disks import with_retries

DAMAGED = "damaged"
TRUNCATED = "truncated"
NOT_READ = "of a kind that is not read"
"""Kinds of ``Refused`` that several modules use."""


class NoMemoryLeft(MemoryError):
    """Too little memory on this machine to decode a file. The message names the file."""

    def __init__(self, message: str):
        super().__init__(message)  # the only argument, so that the error can be pickled


class Refused(ValueError):
    """A file that is not decoded, for a reason that is known. ``kind`` names it in a few words.

    The message says "it" of the file: whoever catches the error puts the name before it.
    """

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


def read_bytes(path: bytes, most: int) -> bytes:
    """Reads a regular file of at most ``most`` bytes, with retries as ``disks.with_retries`` does.

    Raises:
        Refused: if it is no regular file, or too large; then nothing is read.
        ReadFailed: if the disk or the network fails.
        OSError: if this file cannot be read.
    """
    return with_retries(path, lambda: _read_once(path, most))


def _read_once(path: bytes, most: int) -> bytes:
    # O_NONBLOCK, as opening a pipe that nobody writes to would else wait for ever.
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
