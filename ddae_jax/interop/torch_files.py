"""Arrays out of files that torch saved, without torch, and without running what they contain.

Such a file holds a pickle, which is a program. Here no name that it mentions is ever looked up: its
instructions are read one by one, those that build dicts, lists and tensors are followed, and
anything else is refused.
"""

import io
import math
import os
import pathlib
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # how files of torch before 1.6 begin

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

_WRAPPERS = ("model", "state_dict", "module")


class RefusedFile(ValueError):
    """A file that asks for more than weights. Nothing of it was run."""


class _Name(NamedTuple):
    """A name that the pickle mentions; not what it stands for."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Attributes(dict):
    """What stands for an object of which only attributes are stored, such as a Namespace."""


def read_torch_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The named arrays of a model that ``torch.save`` wrote, in its format of any year.

    They are those of the file's dict, or of the one that it has as ``model``, ``state_dict`` or
    ``module``; what is no tensor beside them is left out, and so is the prefix ``module.`` that all
    names may have.

    Raises:
        FileNotFoundError: if there is no such file.
        RefusedFile: if it asks for anything but weights.
        ValueError: if it is no such file, broken, or holds no named tensors.
    """
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            tree, bytes_of = _read_zip(file) if is_zip else _read_legacy(file)
            tensors = _named_tensors(tree)
            arrays = {name: _array(tensor, bytes_of) for name, tensor in tensors.items()}
    except (RefusedFile, _Broken) as error:
        raise type(error)(f"{path}: {error}") from None
    except (zipfile.BadZipFile, EOFError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of torch, or broken: {error}") from error
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


class _Broken(ValueError):
    """What a file says does not hold together."""


def _read_zip(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(file)
    (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickle.removesuffix("data.pkl")

    def read(name: str, size: int | None = None) -> bytes:
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise RefusedFile("its records are compressed, which torch never does")
        if size not in (None, entry.file_size):
            raise _Broken(f"{name} has {entry.file_size} bytes, where {size} are announced")
        return archive.read(entry)

    order = f"{folder}byteorder"
    if order in archive.namelist() and read(order) != b"little":
        raise _Broken("it is of a machine with another byte order")
    tree = _interpret(io.BytesIO(read(pickle)))
    return tree, lambda s: read(f"{folder}data/{s.key}", s.count * s.dtype.itemsize)


def _read_legacy(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    if _interpret(file) != _MAGIC:
        raise _Broken("it does not begin as a file of torch does")
    _interpret(file)  # the protocol's version
    _interpret(file)  # sizes of integers, byte order
    seen: dict[str, _Storage] = {}
    tree = _interpret(file, seen)
    stored = {}
    for key in _interpret(file):
        count = int.from_bytes(file.read(8), "little")
        if key not in seen or count != seen[key].count:
            raise _Broken(f"storage {key!r} has {count} values, where another number is announced")
        size = count * seen[key].dtype.itemsize
        stored[key] = file.read(size)
        if len(stored[key]) != size:
            raise _Broken("it ends too early")
    return tree, lambda storage: stored[storage.key]


def _interpret(file: BinaryIO, seen: dict[str, _Storage] | None = None) -> Any:
    """What one pickle builds, of dicts, lists, tuples, plain values and tensors.

    ``seen`` takes the storages that it mentions, by key.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case name if name in _PLAIN:
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                _of_kind(stack[-1], list).append(item)
            case "APPENDS":
                items = since_mark()
                _of_kind(stack[-1], list).extend(items)
            case "SETITEM":
                key, value = stack[-2:]
                del stack[-2:]
                _of_kind(stack[-1], dict)[key] = value
            case "SETITEMS":
                items = since_mark()
                _of_kind(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(_Name(*argument.split(" ", 1))))
            case "STACK_GLOBAL":
                stack[-2:] = [_known(_Name(*map(str, stack[-2:])))]
            case "BINPERSID":
                storage = _storage(stack.pop())
                if seen is not None:
                    seen[storage.key] = storage
                stack.append(storage)
            case "REDUCE" | "NEWOBJ":
                stack[-2:] = [_build(*stack[-2:])]
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Attributes):
                    stack[-1].update(_of_kind(state, dict))
                elif not isinstance(stack[-1], dict | _Tensor):
                    raise RefusedFile(f"it sets the state of {stack[-1]!r}. Nothing of it was run")
            case other:
                raise RefusedFile(
                    f"it uses the instruction {other}, which no file of weights needs. Nothing of "
                    "it was run"
                )
    raise EOFError("it ends too early")


_PLAIN = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
    ]
)
"""Instructions that push their argument."""


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
    _of_kind(storage, _Storage)
    size, stride = (tuple(int(n) for n in numbers) for numbers in (size, stride))
    if len(size) != len(stride) or min((int(offset), *size, *stride)) < 0:
        raise _Broken(f"a tensor has the size {size} and the stride {stride}")
    last = int(offset) + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    is_empty = 0 in size
    if not is_empty and (last >= storage.count or math.prod(size) > storage.count):
        raise _Broken(
            f"a tensor of size {size}, stride {stride} and offset {offset} reaches beyond its "
            f"{storage.count} values"
        )
    return _Tensor(storage, int(offset), size, stride)


_BUILDERS: Mapping[_Name, Callable[..., Any]] = {
    _Name("collections", "OrderedDict"): lambda items=(): dict(items),
    _Name("torch._utils", "_rebuild_tensor"): _tensor,
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    _Name("torch", "Size"): tuple,
    _Name("torch", "device"): lambda *words: ":".join(map(str, words)),
    _Name("argparse", "Namespace"): _Attributes,
}
"""What stands for the few things that a file of weights may ask for."""


def _known(name: _Name) -> _Name:
    if name in _BUILDERS or (name.module == "torch" and name.name in _DTYPES):
        return name
    raise RefusedFile(f"it asks for {name}, which no file of weights needs. Nothing of it was run")


def _build(name: Any, arguments: Any) -> Any:
    if not isinstance(name, _Name) or name not in _BUILDERS:
        raise RefusedFile(f"it calls {name!r}. Nothing of it was run")
    return _BUILDERS[name](*_of_kind(arguments, tuple))


def _storage(told: Any) -> _Storage:
    if isinstance(told, tuple) and len(told) >= 5 and told[0] == "storage":
        _, kind, key, _, count = told[:5]
        if isinstance(kind, _Name) and kind.name in _DTYPES and (len(told) < 6 or not told[5]):
            return _Storage(np.dtype(_DTYPES[kind.name]), str(key), int(count))
    raise RefusedFile(f"it refers to {told!r}, which is no storage of numbers")


def _array(tensor: _Tensor, bytes_of: Callable[[_Storage], bytes]) -> np.ndarray:
    values = np.frombuffer(bytes_of(tensor.storage), tensor.storage.dtype)
    if 0 in tensor.size:
        return np.zeros(tensor.size, values.dtype)
    strides = [step * values.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.size, strides).copy()


def _named_tensors(tree: Any) -> dict[str, _Tensor]:
    if not isinstance(tree, dict):
        raise _Broken("it holds no dict of tensors")
    for candidate in (tree, *(tree.get(name) for name in _WRAPPERS)):
        if isinstance(candidate, dict):
            found = {str(k): v for k, v in candidate.items() if isinstance(v, _Tensor)}
            if found:
                return found
    keys = ", ".join(map(str, list(tree)[:8]))
    raise _Broken(f"it holds no named tensors, alone or as {', '.join(_WRAPPERS)}; it has {keys}")


def _of_kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Broken(f"{value!r} stands where a {kind.__name__.strip('_').lower()} must")
    return value
