"""Reader of ``torch.save``'s files, without torch and without running anything in them.

Since torch 1.6 such a file is a zip archive: a pickle, and one record for each storage. The legacy
format before that was a sequence of pickles, followed by the storages.
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

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format
_LONGEST_KEY, _MOST_VALUES = 100, 2**48  # of a storage
_MOST_COPIES = 16  # bytes of all arrays over bytes of the file: tensors may share a storage


def read_torch_file(path: str | os.PathLike) -> Any:
    """Reads the content of a torch file (``.pth``, ``.pt`` or ``.bin``).

    Returns:
        The saved object, with these replacements. Tensors are numpy arrays of their dtype, but
        bfloat16 becomes float32. Paths, devices and dtypes are text. A module that was saved whole,
        or a TorchScript program, is a dict of its arrays by name. An object of any other class,
        such as settings, is a dict of its items or attributes: see
        :class:`ddae_jax.interop.pickle_objects.InertObject`. A tensor of another kind, such as a
        quantised one, is an array without numbers: see
        :func:`ddae_jax.interop.pickle_objects.unreadable_array`.

    Raises:
        FileNotFoundError: if there is no such file.
        ReadFailed: if the disk or the network is at fault.
        ValueError: if the file is damaged, is no torch file, or asks for something harmful, which
            the message names.
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
        except Exception as error:  # a broken pickle may raise anything
            raise ValueError(
                f"{path} is damaged or incomplete, or no file of torch: "
                f"{type(error).__name__}: {error}"
            ) from error


class _Claim(NamedTuple):
    """A storage as a pickle declares it: its type, its record's key, its number of values."""

    kind: StorageType
    key: str
    count: int

    @property
    def num_bytes(self) -> int:
        """Size of the storage in bytes."""
        return self.count * self.kind.itemsize


def _read_zip(file: BinaryIO) -> Any:
    """Reads the zip format. Its records must be uncompressed, as torch writes them."""
    size = _size(file)
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [n for n in records if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive with no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        # TorchScript's code is compressed, and not read.
        _check_records([i for n, i in records.items() if not n.startswith(f"{folder}code/")], size)
        if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("it is big-endian; save it again on a little-endian machine")
        storages: dict[_Claim, Storage] = {}

        def find_storage(persistent_id) -> Storage | UnknownName:
            claim = _parse_claim(persistent_id)
            if isinstance(claim, UnknownName):
                return claim
            if claim not in storages:
                record = records.get(f"{folder}data/{claim.key}")
                num_bytes = record.file_size if record else 0
                if num_bytes != claim.num_bytes:
                    raise Refused(
                        f"a storage of {claim.count} values of {claim.kind.dtype} in it takes "
                        f"{claim.num_bytes} bytes, but the file has {num_bytes} for it"
                    )
                storages[claim] = decode_storage(
                    claim.kind, archive.read(record) if record else b""
                )
            return storages[claim]

        return unpickle(io.BytesIO(archive.read(pickles[0])), find_storage, _MOST_COPIES * size)


def _check_records(records: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Raises :class:`Refused` for records that are compressed or claim more bytes than the file."""
    if any(info.compress_type != zipfile.ZIP_STORED for info in records):
        raise Refused("its records are compressed, which those of torch are not")
    if sum(info.file_size for info in records) > size:
        raise Refused("its records claim to be larger than the file")


def _read_legacy(file: BinaryIO) -> Any:
    """Reads the format before torch 1.6: three pickles of a header, the object, keys, storages."""
    for expected in (_MAGIC, _PROTOCOL):
        value = unpickle(file, _no_storage, 0)
        if type(value) is not int or value != expected:
            raise ValueError("a pickle that torch did not write")
    if not unpickle(file, _no_storage, 0)["little_endian"]:
        raise Refused("it is big-endian; save it again on a little-endian machine")
    # The storages follow the object's pickle, but only that pickle declares their types. It is read
    # twice: first for the declarations, then, with the storages at hand, for the object.
    start, size = file.tell(), _size(file)
    claims: dict[str, _Claim] = {}

    def note_claim(persistent_id) -> None:
        claim = _parse_claim(persistent_id)
        if isinstance(claim, UnknownName):
            raise Refused(
                f"its storages are of {printable_name(claim)}, whose size is not known; "
                f"{SAVE_AGAIN}"
            )
        if claims.setdefault(claim.key, claim) != claim:
            raise Refused("one storage in it is claimed to be of several dtypes or sizes")

    unpickle(file, note_claim, _MOST_COPIES * size)
    keys = unpickle(file, _no_storage, 0)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise ValueError("it does not say by name which storages it has")
    storages = {key: _read_storage(file, claims[key], size) for key in keys}
    file.seek(start)

    def find_storage(persistent_id) -> Storage:
        return storages[_parse_claim(persistent_id).key]

    return unpickle(file, find_storage, _MOST_COPIES * size)


def _read_storage(file: BinaryIO, claim: _Claim, size: int) -> Storage:
    (count,) = struct.unpack("<q", file.read(8))
    if count != claim.count:
        raise Refused(f"a storage in it is claimed to have {claim.count} values, but has {count}")
    if claim.num_bytes > size - file.tell():
        raise ValueError("it ends within a storage")
    return decode_storage(claim.kind, file.read(claim.num_bytes))


def _parse_claim(persistent_id: Any) -> _Claim | UnknownName:
    """Parses a persistent id into a claim, or the type's name if that type is unknown.

    Raises :class:`Refused` if the id declares no storage, or only a part of one.
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
    """Returns the file's size in bytes and leaves its position unchanged."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    return size
