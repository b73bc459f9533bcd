"""Files that ``torch.save`` wrote, read without torch and without running what is in them.

Since torch 1.6 such a file is a zip archive of a pickle and of one record for each storage; before,
it was a row of pickles with the storages behind them.
"""

import io
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

from ddae_jax.data.disks import reading
from ddae_jax.interop.pickle_objects import (
    SAVE_AGAIN,
    Refused,
    Storage,
    StorageType,
    UnknownName,
    decode_storage,
    printable_name,
)
from ddae_jax.interop.restricted_pickle import unpickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
_LONGEST_KEY, _MOST_VALUES = 100, 2**48  # of a storage
_MOST_VIEWS = 16  # arrays may take so many times the size of the file: tensors may share values


def read_torch_file(path: str | os.PathLike) -> Any:
    """What a ``.pth``, ``.pt`` or ``.bin`` file of torch holds.

    Tensors become arrays of numpy, those of bfloat16 in float32; a path or a dtype of torch becomes
    its name. What is of any other class, such as settings, becomes a dict of what it holds: see
    :class:`ddae_jax.interop.pickle_objects.InertObject`. Of a network that was saved whole, and of
    a program of
    TorchScript, the arrays are read, by name. Tensors of other kinds, such as quantised ones, are
    arrays of no numbers: see :func:`ddae_jax.interop.pickle_objects.unreadable_array`.

    Raises:
        FileNotFoundError: if there is none.
        ReadFailed: if the disk or the network that it lies on is at fault.
        ValueError: if it is damaged or no such file, or asks for what would do harm, by name.
    """
    path = pathlib.Path(path)
    with reading(path) as file:
        start = file.read(4)
        file.seek(0)
        is_zip = start == b"PK\x03\x04"
        if not is_zip and start[:1] != pickle.PROTO:
            raise ValueError(
                f"{path} is no file of torch: it begins with {start!r}, as neither a zip archive "
                "nor a pickle does"
            )
        try:
            return _read_zip(file) if is_zip else _read_legacy(file)
        except Refused as refused:
            raise ValueError(f"{path} is refused: {refused}. Nothing of it was run") from refused
        except Exception as error:  # what a broken pickle raises is anything
            raise ValueError(
                f"{path} is damaged or incomplete, or no file of torch: "
                f"{type(error).__name__}: {error}"
            ) from error


class _Claim(NamedTuple):
    """What a pickle says of a storage."""

    kind: StorageType
    key: str
    count: int

    @property
    def num_bytes(self) -> int:
        return self.count * self.kind.itemsize


def _read_zip(file: BinaryIO) -> Any:
    size = _size(file)
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [n for n in records if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive with no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        # The code of TorchScript is compressed, and left alone.
        _check_records([i for n, i in records.items() if not n.startswith(f"{folder}code/")], size)
        if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("it is big-endian; save it again on a little-endian machine")
        storages: dict[_Claim, Storage] = {}

        def find_storage(persistent_id) -> Storage | UnknownName:
            claim = _claim(persistent_id)
            if isinstance(claim, UnknownName):
                return claim
            if claim not in storages:
                record = records.get(f"{folder}data/{claim.key}")
                held = record.file_size if record else 0
                if held != claim.num_bytes:
                    raise Refused(
                        f"a storage of {claim.count} values of {claim.kind.dtype} in it takes "
                        f"{claim.num_bytes} bytes, but the file has {held} for it"
                    )
                storages[claim] = decode_storage(
                    claim.kind, archive.read(record) if record else b""
                )
            return storages[claim]

        return unpickle(io.BytesIO(archive.read(pickles[0])), find_storage, _MOST_VIEWS * size)


def _check_records(records: Iterable[zipfile.ZipInfo], size: int) -> None:
    if any(info.compress_type != zipfile.ZIP_STORED for info in records):
        raise Refused("its records are compressed, which those of torch are not")
    if sum(info.file_size for info in records) > size:
        raise Refused("its records claim to be larger than the file")


def _read_legacy(file: BinaryIO) -> Any:
    for expected in (_MAGIC, _PROTOCOL):
        begin = unpickle(file, _no_storage, 0)
        if type(begin) is not int or begin != expected:
            raise ValueError("a pickle that torch did not write")
    if not unpickle(file, _no_storage, 0)["little_endian"]:
        raise Refused("it is big-endian; save it again on a little-endian machine")
    # The storages lie behind the pickle, and only the pickle tells what they are made of: it is
    # read twice, first for that.
    start, size = file.tell(), _size(file)
    claims: dict[str, _Claim] = {}

    def note(persistent_id) -> None:
        claim = _claim(persistent_id)
        if isinstance(claim, UnknownName):
            raise Refused(
                f"its storages are of {printable_name(claim)}, whose size is not known; "
                f"{SAVE_AGAIN}"
            )
        if claims.setdefault(claim.key, claim) != claim:
            raise Refused("one storage in it is claimed to be of several dtypes or sizes")

    unpickle(file, note, _MOST_VIEWS * size)
    keys = unpickle(file, _no_storage, 0)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise ValueError("it does not say by name which storages it has")
    storages = {key: _read_storage(file, claims[key], size) for key in keys}
    file.seek(start)

    def find_storage(persistent_id) -> Storage:
        return storages[_claim(persistent_id).key]

    return unpickle(file, find_storage, _MOST_VIEWS * size)


def _read_storage(file: BinaryIO, claim: _Claim, size: int) -> Storage:
    (count,) = struct.unpack("<q", file.read(8))
    if count != claim.count:
        raise Refused(f"a storage in it is claimed to have {claim.count} values, but has {count}")
    if claim.num_bytes > size - file.tell():
        raise ValueError("it ends within a storage")
    return decode_storage(claim.kind, file.read(claim.num_bytes))


def _claim(persistent_id: Any) -> _Claim | UnknownName:
    """What a persistent id says; of a kind of storage that is not known, the name alone.

    Raises :class:`Refused` if it names no storage.
    """
    is_short = isinstance(persistent_id, tuple) and len(persistent_id) <= 6
    if not is_short or type(persistent_id[0]) is not str or persistent_id[0] != "storage":
        raise Refused("it asks for an object outside of it that is no storage")
    _, kind, key, _, count, *view = persistent_id
    if (
        not isinstance(kind, StorageType | UnknownName)
        or type(key) is not str
        or type(count) is not int
    ):
        raise Refused("it names a storage, but not its type, key and number of values")
    if len(key) > _LONGEST_KEY or count > _MOST_VALUES:
        raise Refused("it names a storage that is larger, or has a longer key, than any file has")
    if count < 0 or any(part is not None for part in view):
        raise Refused("it names a part of a storage; load it in torch, and save it again")
    return kind if isinstance(kind, UnknownName) else _Claim(kind, key, count)


def _no_storage(persistent_id: Any) -> None:
    raise Refused("it names storages where none belong")


def _size(file: BinaryIO) -> int:
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size
