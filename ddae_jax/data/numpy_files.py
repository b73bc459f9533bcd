"""NumPy's files of arrays (.npy, .npz), whose header is checked before any value is read."""

import io
import math
import zipfile
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Num

from ddae_jax.data.files import DAMAGED, NOT_READ, TRUNCATED, Refused

START_OF_NPY, START_OF_ZIP = b"\x93NUMPY", b"PK\x03\x04"

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LONGEST_HEADER = 10_000  # bytes; NumPy reads no longer one either
_LONGEST_START = 12 + _LONGEST_HEADER
_LONGEST_VALUE = 1024  # bytes; a larger value, even a text, is a sign of damage
_STEP = 2**20  # bytes that are unpacked at once


class _Header(NamedTuple):
    """The header of an array, and the byte at which its values begin."""

    shape: tuple[int, ...]
    is_fortran_order: bool
    dtype: np.dtype
    offset: int


class ArrayFile:
    """An .npy file, or an .npz file of one array. Pickled objects are never loaded.

    Args:
        content: all bytes of the file.

    Attributes:
        shape: the array's shape, from the header.

    Raises:
        ValueError: if the file holds no array of numbers; where it is ``Refused``, its ``kind``
            says why.
    """

    def __init__(self, content: bytes):
        self._content = content
        self._archive = None
        if content.startswith(START_OF_NPY):
            self._header = _header_of(content[:_LONGEST_START])
        else:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
            with self._member() as member:
                self._header = _header_of(member.read(_LONGEST_START))
        self.shape = self._header.shape

    def read(self) -> Num[np.ndarray, "*shape"]:
        """Reads the values. The caller has to check ``shape`` first: it may be of any size.

        Raises:
            Refused: if the file breaks off.
        """
        shape, is_fortran_order, dtype, offset = self._header
        size = math.prod(shape) * dtype.itemsize
        if self._archive is None:
            _check_length(len(self._content) - offset, size)
            values = np.frombuffer(self._content, dtype, math.prod(shape), offset)
        else:
            _check_length(self._archive.infolist()[0].file_size - offset, size)
            with self._member() as member:
                member.read(offset)
                values = np.frombuffer(_read_exactly(member, size), dtype)
        return values.reshape(shape, order="F" if is_fortran_order else "C")

    def _member(self) -> BinaryIO:
        """Opens the only array of an archive. Raises ``ValueError`` if it does not hold one."""
        members = self._archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename[:80] for member in members[:5])
            raise ValueError(f"it holds {len(members)} arrays ({names}); expected one")
        method = members[0].compress_type
        # The readers of other compressions cannot be told to stop at a number of bytes.
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(
                f"its array is compressed by method {method} of ZIP; expected is what "
                "numpy.savez_compressed writes",
                NOT_READ,
            )
        return self._archive.open(members[0])


def _header_of(start: bytes) -> _Header:
    """Reads an array's header from the first bytes of its file.

    Raises:
        ValueError: if it is not a header of an array of numbers; mostly ``Refused``.
    """
    stream = io.BytesIO(start)
    if len(start) < 8:
        raise Refused("it breaks off in its header", TRUNCATED)
    version = np.lib.format.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f"it is of version {version} of NumPy's format; 1.0 and 2.0 are known")
    begin = 10 if version == (1, 0) else 12
    length = int.from_bytes(start[8:begin], "little")
    if length > _LONGEST_HEADER:
        raise Refused(
            f"its header has {length:,} bytes; that of numbers has at most {_LONGEST_HEADER:,}",
            DAMAGED,
        )
    if len(start) < begin + length:
        raise Refused("it breaks off in its header", TRUNCATED)
    try:
        shape, is_fortran_order, dtype = _READ_HEADER[version](stream)
    except Exception as error:  # of any kind, as Python's parser reads the header
        # The parser raises these for deep nesting: memory cannot be short, as the header is.
        is_nested = isinstance(error, MemoryError | RecursionError)
        reason = "it is nested too deeply" if is_nested else _shortened(error)
        raise Refused(f"its header describes no array: {reason}", DAMAGED) from error
    if dtype.kind not in "buif":
        raise Refused(
            f"its values are of type {str(dtype)[:80]}; expected are numbers",
            NOT_READ if dtype.itemsize <= _LONGEST_VALUE else DAMAGED,
        )
    if min(shape, default=0) < 0:
        raise Refused(f"its header describes no array: of the shape {shape}", DAMAGED)
    return _Header(shape, is_fortran_order, dtype, stream.tell())


def _check_length(size: int, expected: int) -> None:
    """Raises ``Refused`` if fewer bytes are there than expected."""
    if size < expected:
        raise Refused(
            f"it breaks off: {max(size, 0):,} of {expected:,} bytes of its array are there",
            TRUNCATED,
        )


def _read_exactly(member: BinaryIO, size: int) -> bytearray:
    """Unpacks so many bytes, in steps: all at once would be in memory twice."""
    unpacked = bytearray(size)
    view, done = memoryview(unpacked), 0
    while done < size:
        count = member.readinto(view[done : done + _STEP])
        if not count:
            _check_length(done, size)
        done += count
    return unpacked


def _shortened(error: Exception) -> str:
    """Returns the message of an error on one line, of about 200 characters at most."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
