"""Pickles of arrays, read without running anything that they name.

A pickle is a program: it calls what it names. Here a short list of names is known, each an inert
stand-in that makes a dict, a tuple or an array; whatever else it names is refused. No object that
others share, such as a function, a class that can be changed or a dtype of numpy, is ever given to
it.
"""

import collections
import math
import pickle
import pickletools
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

# Those that lie within each other are hashed by recursion, which overflows the stack at some
# 200,000; a tensor is made of four.
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_MOST_TUPLES = 50_000
_MOST_STEPS = 500_000  # which take a second; a network of a thousand tensors has some 30,000
_MOST_AXES = 64
_LONGEST_PATH = 10_000
_BYTES_OF_AN_ITEM = 100
_LARGE, _MOST_LARGE = 2**64, 16  # numbers that are larger can all have one hash, as keys of a dict


class Refused(ValueError):
    """A file asks for something that it must not have, or that does not fit together."""


class StorageType(NamedTuple):
    """What a storage of torch is made of: the name of a numpy dtype."""

    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes a value."""
        return np.dtype(self.dtype).itemsize


class Storage(NamedTuple):
    """Values in a row, which tensors are views of."""

    values: np.ndarray


def storage_of(kind: StorageType, raw: bytes) -> Storage:
    """The values that little-endian bytes stand for; bfloat16 becomes float32."""
    if kind.dtype == "bool":
        return Storage(np.frombuffer(raw, np.uint8) != 0)
    values = np.frombuffer(raw, np.dtype(kind.dtype).newbyteorder("<"))
    return Storage(values.astype(np.float32) if values.dtype == ml_dtypes.bfloat16 else values)


class Module:
    """A module of TorchScript: what it holds, by name, and none of its code.

    Attributes:
        held: arrays, modules and whatever else, by name.
    """

    held: Mapping[str, Any] = types.MappingProxyType({})

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise Refused("a module in it has no attributes by name")
        self.held = state


def unpickle(
    stream: BinaryIO,
    find_storage: Callable[[Any], Storage | None],
    room: int,
    *,
    is_program: bool = False,
) -> Any:
    """What the pickle that begins here holds; the stream is left behind its end.

    Args:
        stream: can be rewound.
        find_storage: the storage that a persistent id names. None makes tensors of it None too,
            for whoever only wants to know which storages there are.
        room: bytes that all arrays together may take. Many of them may view one storage.
        is_program: whether it is of TorchScript, and may have modules of its own.

    Raises:
        Refused: naming what it asks for.
        Exception: of any kind, if it is damaged.
    """
    _check_opcodes(stream)
    return _Unpickler(stream, find_storage, room, is_program).load()


def _check_opcodes(stream: BinaryIO) -> None:
    """Raises :class:`Refused` for what would harm the unpickler before it asks for a name."""
    start, num_tuples, num_large = stream.tell(), 0, 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= _MOST_STEPS:
            raise Refused(
                f"its pickle takes more than {_MOST_STEPS:,} steps, which no file of weights "
                f"needs; {_SAVE_AGAIN}"
            )
        if opcode.name.startswith("EXT"):
            raise Refused("it asks for an extension of pickle, which no file of weights needs")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise Refused(f"step {count} of its pickle asks for room for {argument} objects")
        num_tuples += opcode.name in _TUPLES
        if num_tuples > _MOST_TUPLES:
            raise Refused(f"its pickle makes more than {_MOST_TUPLES} tuples")
        num_large += isinstance(argument, int) and abs(argument) >= _LARGE
        if num_large > _MOST_LARGE:
            raise Refused(f"its pickle has more than {_MOST_LARGE} numbers of more than 64 bits")
    stream.seek(start)


class _Dict(dict):
    """An ordered dict. What it keeps beside its items, such as versions of modules, is dropped."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Settings(collections.UserDict):
    """Settings that training code keeps: their items, or their attributes, by name.

    What a pickle holds once it may name any number of times, so nothing of it is ever copied.
    """

    def __new__(cls, *_):
        settings = super().__new__(cls)
        settings.data = {}
        return settings

    def __init__(self, *_):
        pass  # such as a factory of items

    def __setstate__(self, state):
        if isinstance(state, dict) and not self.data:
            self.data = state


class _Namespace(_Settings):
    """The attributes of an ``argparse.Namespace``."""

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise Refused("a namespace in it has no attributes by name")
        super().__setstate__(state)


class _Row(list):
    """A deque, or what else grows by items in a row."""

    __slots__ = ()

    def __init__(self, *_):
        super().__init__()

    def __setstate__(self, state):
        pass


class _Dtype(NamedTuple):
    """A dtype of numpy, by name."""

    name: str

    def __setstate__(self, state):
        if state[1] not in ("<", "|", "="):
            raise Refused("a big-endian array is not read here")


class _Array(np.ndarray):
    """An array of numpy, whose values come after it."""

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise Refused("an array of numpy in it is no array of numbers")
        super().__setstate__((1, _counts(shape), np.dtype(dtype.name), bool(is_fortran), raw))


class _Function(NamedTuple):
    """What a pickle may call, and may not change."""

    function: Callable[..., Any]

    def __call__(self, *arguments):
        return self.function(*arguments)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, find_storage, room, is_program):
        super().__init__(stream)
        self._is_program = is_program
        self._find_storage = find_storage
        self._room = room
        self._of_file = {
            ("torch._utils", "_rebuild_tensor_v2"): _Function(self._tensor),
            ("_codecs", "encode"): _Function(self._bytes),
            ("collections", "OrderedDict"): _Function(self._ordered),
        }

    def persistent_load(self, pid):
        return self._find_storage(pid)

    def find_class(self, module, name):
        found = _KNOWN.get((module, name)) or self._of_file.get((module, name))
        if found is None and self._is_program:
            found = Module if module.startswith("__torch__") else _OF_PROGRAMS.get((module, name))
        if found is None:
            raise Refused(
                f"it asks for {_shown(module)}.{_shown(name)}, which no file of weights needs; "
                f"{_SAVE_AGAIN}"
            )
        return found

    def _tensor(self, storage, offset, size, stride, *_):
        """A copy of some values, checked to lie in the storage."""
        if storage is None:
            return None
        if not isinstance(storage, Storage):
            raise Refused("a tensor in it has no storage")
        values, shape, strides = storage.values, _counts(size), _counts(stride)
        (offset,) = _counts((offset,))
        if 0 in shape:
            return np.zeros(shape, values.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if last >= len(values):
            raise Refused(
                f"a tensor in it, of shape {shape}, strides {strides} and offset {offset}, reaches "
                f"outside its storage of {len(values)} values"
            )
        self._take(math.prod(shape) * values.itemsize)
        steps = [step * values.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()

    def _bytes(self, text, encoding):
        """Bytes, as old protocols of pickle spell them."""
        if encoding != "latin1":
            raise Refused(
                f"it asks for bytes as {_shown(encoding)}, which no file of weights needs"
            )
        self._take(len(text))
        return text.encode("latin1")

    def _ordered(self, items=()):
        """A dict, of pairs as old versions of Python give them."""
        self._take(_BYTES_OF_AN_ITEM * len(items))
        return _Dict(items)

    def _take(self, num_bytes):
        self._room -= num_bytes
        if self._room < 0:
            raise Refused("its arrays claim to be many times larger than the file")


def _parameter(data, *_):
    return data


def _dtype(name, *_):
    if not isinstance(name, str) or not re.fullmatch(r"[<|=]?[biuf]\d{1,2}", name):
        raise Refused(f"it asks for values of dtype {_shown(name)}; known are numbers and booleans")
    return _Dtype(name)


def _numpy_scalar(dtype, raw):
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise Refused("a scalar of numpy in it is no number")
    (value,) = np.frombuffer(raw, dtype.name)
    return value


def _size(counts=(), *_):
    if not isinstance(counts, list | tuple) or len(counts) > _MOST_AXES:
        raise Refused(f"a size in it is no row of at most {_MOST_AXES} numbers")
    return tuple(counts)


def _path(*parts):
    if any(type(part) is not str for part in parts) or sum(map(len, parts)) > _LONGEST_PATH:
        raise Refused("a path in it is not made of a few names")
    return "/".join(parts).replace("//", "/")


def _device(kind="", index=None, *_):
    if type(kind) is not str or len(kind) > _LONGEST_PATH or type(index) not in (int, type(None)):
        raise Refused("a device in it has no name and number")
    return kind if index is None else f"{kind}:{index}"


def _listed(values=(), *_):
    return values if isinstance(values, list | tuple) else []


def _nothing(*_):
    return None


def _empty_array(*_):
    return _Array.__new__(_Array, (0,), np.uint8)


def _not_to_be_called(*_):
    raise Refused("it calls what is only to be named")


def _counts(numbers) -> tuple[int, ...]:
    """Raises :class:`Refused` unless they are whole numbers from 0 on."""
    if not isinstance(numbers, tuple) or any(type(n) is not int or n < 0 for n in numbers):
        raise Refused("sizes, strides and offsets in it are not all whole numbers from 0 on")
    return numbers


def _shown(name) -> str:
    return ascii(str(name)[:80])[1:-1]  # it may hold control characters


_SAVE_AGAIN = "if you trust it, load it in torch, and save the model's state_dict() alone"

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

_SETTINGS = {
    "types": ("SimpleNamespace",),
    "collections": ("defaultdict", "Counter"),
    "yacs.config": ("CfgNode",),
    "easydict": ("EasyDict",),
    "addict.addict": ("Dict",),
    "mmcv.utils.config": ("ConfigDict",),
    "mmengine.config.config": ("ConfigDict",),
    "mmengine.logging.history_buffer": ("HistoryBuffer",),
    "ml_collections.config_dict.config_dict": ("ConfigDict",),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": tuple(
        f"{kind}Node"
        for kind in ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Path", "Bytes")
    ),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
}
"""Classes by module whose objects hold settings, and are often saved beside weights."""

_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")

_KNOWN = {
    ("collections", "deque"): _Row,
    **{(module, name): _Settings for module, names in _SETTINGS.items() for name in names},
    **{
        (module, name): _Function(_path)
        for module in ("pathlib", "pathlib._local")
        for name in _PATHS
    },
    ("torch", "device"): _Function(_device),
    ("typing", "Any"): "typing.Any",
    **{
        (module, name): _Function(_listed)
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "list", "tuple")
    },
    **{
        (module, name): f"builtins.{name}"  # as settings name a type
        for module in ("builtins", "__builtin__")
        for name in ("dict", "int", "float", "str", "bool")
    },
    **{("datetime", name): _Function(_nothing) for name in ("datetime", "date", "timedelta")},
    ("argparse", "Namespace"): _Namespace,
    ("torch", "Size"): _Function(_size),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("numpy", "dtype"): _Function(_dtype),
    ("numpy", "ndarray"): _Function(_not_to_be_called),
    **{
        (module, name): _Function(function)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, function in (("scalar", _numpy_scalar), ("_reconstruct", _empty_array))
    },
    **{("torch", name): StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{("torch", dtype): f"torch.{dtype}" for dtype in _STORAGES.values()},
}

_OF_PROGRAMS = {
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _Function(_listed)
        for kind in ("int", "double", "bool", "tensor")
    },
    ("torch.jit._pickle", "restore_type_tag"): _Function(_parameter),
}
"""What TorchScript calls beside its own modules."""
