"""Reading files of images, from disks and networks that may fail for a while, or for good."""

import os
import stat

from ddae_jax.data.disks import patiently

DAMAGED = "damaged"
TRUNCATED = "truncated"
NOT_READ = "of a kind that is not read"
"""Why files are refused, if in several places."""


class NoMemoryLeft(MemoryError):
    """A machine that has no memory left to decode a file in. The message names the file."""

    def __init__(self, message: str):
        super().__init__(message)  # alone, so that it travels from process to process


class Refused(ValueError):
    """A file that is not decoded, although it might be; `kind` says why in a few words."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


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
