"""Writers of torch files that are put together by hand, also of such as torch would never write."""

import pickle
import struct
import zipfile

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"little_endian": True}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def storage(count, key="0", kind=("torch", "FloatStorage"), word="storage", more=()):
    parts = (text(word), name(*kind), text(key), text("cpu"), number(count), *more)
    return tuple_of(*parts) + b"Q"


def tensor(stored, offset, size, stride):
    size, stride = (tuple_of(*map(number, values)) for values in (size, stride))
    arguments = tuple_of(stored, number(offset), size, stride, b"\x89", b"N")
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def program(body):
    return b"\x80\x02" + body + b"."


def write_zip(path, body, count=6, **records):
    arrays = {"data/0": np.arange(count, dtype=np.float32).tobytes(), "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        for key, value in (arrays | records).items():
            archive.writestr(f"archive/{key}", value)
    return path


def write_arrays(path, arrays, key=None):
    """Writes float32 arrays as torch saves a state_dict, under a key if one is given."""
    items, records = b"", {}
    for index, (key_of_array, array) in enumerate(arrays.items()):
        shape, steps = array.shape, [step // 4 for step in np.ascontiguousarray(array).strides]
        items += text(key_of_array)
        items += tensor(storage(array.size, key=str(index)), 0, shape, steps)
        records[f"data/{index}"] = np.float32(array).tobytes()
    body = b"}(" + items + b"u"
    if key is not None:
        body = b"}(" + text(key) + body + b"u"
    return write_zip(path, program(body), **records)


def write_legacy(path, body, count=6, system=SYSTEM, keys=("0",)):
    parts = [pickle.dumps(part, protocol=2) for part in (MAGIC, PROTOCOL, system)]
    values = struct.pack("<q", count) + np.arange(count, dtype=np.float32).tobytes()
    path.write_bytes(b"".join(parts) + body + pickle.dumps(list(keys), protocol=2) + values)
    return path


WRITERS = {"zip": write_zip, "legacy": write_legacy}
