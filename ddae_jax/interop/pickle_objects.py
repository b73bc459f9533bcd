"""Objects that a pickle may make here: arrays, plain values, and stand-ins that do nothing.

The functions that build arrays are known by name: :data:`ALLOWED` and :class:`Constructors`. Any
other name in a pickle becomes an :class:`UnknownName`, and calling that gives an
:class:`InertObject`, which holds items or attributes and runs nothing.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_MOST_STEPS = 500_000  # take a second or two; a network of a thousand tensors needs some 30,000
_MOST_AXES, _LARGEST_COUNT = 64, 2**63
_MOST_ARGUMENTS = 100
_CHARACTERS_PER_STEP = 50  # of names that are joined


class Refused(ValueError):
    """Error for a file that asks for something forbidden or contradicts itself.

    The message says "it" for the file, whose name the caller adds.
    """


class Budget:
    """Limits on the time and memory that a pickle may cost.

    Each instruction is a step, and so is each item that an instruction copies.

    Args:
        max_bytes: bytes that all arrays together may take.
    """

    def __init__(self, max_bytes: int):
        self._bytes_left, self._steps_left = max_bytes, _MOST_STEPS

    def spend_steps(self, steps: int) -> None:
        """Spends steps. Raises :class:`Refused` if too few are left."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise Refused(
                f"its pickle takes more than {_MOST_STEPS:,} steps, which no file of weights "
                f"needs; {SAVE_AGAIN}"
            )

    def spend_bytes(self, num_bytes: int) -> None:
        """Spends memory. Raises :class:`Refused` if too little is left."""
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise Refused("its arrays claim to be many times larger than the file")


class UnknownName(str):
    """Name of a class or function that is not allowed, ``module.name``. Nothing is imported."""

    __slots__ = ()


class InertObject(dict):
    """Stand-in for an object of an unknown class: its items or attributes by name, no behaviour.

    A torch module that was pickled whole holds its arrays by their names in the state_dict.

    Attributes:
        name: name of the class, or of the function that made the object.
        is_module: whether it stands for a torch module.
    """

    __slots__ = ("is_module", "name")
    __hash__ = object.__hash__  # hashable, because an enum's member may be the key of a dict

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.is_module = name.startswith("__torch__.")  # TorchScript's prefix

    def set_state(self, state: Any, budget: Budget) -> None:
        """Stores attributes by name.

        Args:
            state: a dict of attributes, or a pair of dicts, the second for ``__slots__``. Anything
                else is ignored.
            budget: pays for the items.
        """
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        parts = [part for part in parts if isinstance(part, dict)]
        if self or not parts:
            return
        groups = parts if self.is_module else _groups_of_module(parts[0], budget)
        if groups:
            self.is_module = True
            self._hold_arrays(groups, budget)
            return
        for part in parts:
            budget.spend_steps(len(part))
            self.update(part)

    def _hold_arrays(self, groups: list[Mapping[str, Any]], budget: Budget) -> None:
        """Stores arrays by name, and those of inner modules by their joined names."""
        for name, value in (item for group in groups for item in group.items()):
            budget.spend_steps(1)
            if type(name) is not str:
                continue
            if isinstance(value, np.ndarray):
                self[name] = value
            elif isinstance(value, InertObject) and value.is_module and value is not self:
                for inner, array in value.items():
                    budget.spend_steps(1 + (len(name) + len(inner)) // _CHARACTERS_PER_STEP)
                    self[f"{name}.{inner}"] = array


def _groups_of_module(state: Mapping[str, Any], budget: Budget) -> list[Mapping[str, Any]]:
    """Returns a torch module's parameters, saved buffers and inner modules.

    Of an object that is no torch module, nothing is returned.
    """
    groups = [state.get(f"_{kind}") for kind in ("parameters", "buffers", "modules")]
    if not all(isinstance(group, dict) for group in groups):
        return []
    parameters, buffers, modules = groups
    left_out = state.get("_non_persistent_buffers_set")
    left_out = left_out if isinstance(left_out, list) else []
    budget.spend_steps(len(left_out) + len(buffers))
    names = {name for name in left_out if type(name) is str}
    return [parameters, {n: b for n, b in buffers.items() if n not in names}, modules]


class StorageType(NamedTuple):
    """Type of a torch storage, given as a numpy dtype's name; ``uint8`` for an untyped storage."""

    dtype: str

    @property
    def itemsize(self) -> int:
        """Size of a value in bytes."""
        return np.dtype(self.dtype).itemsize


class Storage(NamedTuple):
    """Values of a torch storage, one axis, of which tensors are views."""

    values: np.ndarray


def decode_storage(kind: StorageType, raw: bytes) -> Storage:
    """Decodes little-endian bytes into values. bfloat16 becomes float32."""
    if kind.dtype == "bool":
        return Storage(np.frombuffer(raw, np.uint8) != 0)
    values = np.frombuffer(raw, np.dtype(kind.dtype).newbyteorder("<"))
    return Storage(values.astype(np.float32) if values.dtype == ml_dtypes.bfloat16 else values)


def unreadable_array(name: str) -> np.ndarray:
    """Returns a stand-in for an array whose values cannot be read.

    Args:
        name: the function or class that would have made it, for messages.

    Returns:
        An array of shape () and dtype ``object`` that holds the name.
    """
    return np.array(printable_name(name), object)


def printable_name(name: str) -> str:
    """Returns the first 80 characters of a name from a file, control characters escaped."""
    return ascii(str(name)[:80])[1:-1]


class AllowedFunction(NamedTuple):
    """Function that a pickle may call but not change."""

    function: Callable[..., Any]


class Dtype:
    """numpy dtype, before the byte order is set."""

    def __init__(self, name: str):
        self._name, self._order = name, "<"

    def set_state(self, state: Any, _: Budget) -> None:
        """Sets the byte order to that of numpy's pickled state; little-endian unless it is ">"."""
        if isinstance(state, tuple) and state[1:2] == (">",):
            self._order = ">"

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype with its byte order."""
        return np.dtype(self._name).newbyteorder(self._order)


class Array(np.ndarray):
    """numpy array that numpy's pickles make empty and fill afterwards."""

    def set_state(self, state: Any, budget: Budget) -> None:
        """Fills the array from numpy's pickled state.

        An array of other things than numbers becomes like one of :func:`unreadable_array`.
        """
        _, shape, dtype, is_fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # as Python 2 wrote it
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes):
            placeholder = (1, (), np.dtype(object), False, ["of numpy, and not of numbers"])
            super().__setstate__(placeholder)
            return
        budget.spend_bytes(len(raw))
        super().__setstate__((1, _counts(shape), dtype.numpy_dtype, is_fortran is True, raw))


class Constructors:
    """Functions that build arrays and plain values from a pickle's arguments.

    Args:
        budget: pays for the memory of what they build.

    Attributes:
        by_name: the functions, by the names of those in torch, numpy and Python that they replace.
    """

    def __init__(self, budget: Budget):
        self._budget = budget
        numpy_functions = {
            "multiarray.scalar": self._numpy_scalar,
            "multiarray._reconstruct": _empty_array,
            "numeric._frombuffer": self._from_buffer,
        }
        self.by_name = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_bytes,
            "torch._tensor._rebuild_from_type_v2": _of_type,
            "torch.device": self._device,
            "_codecs.encode": self._bytes,
            **{f"numpy.{c}.{name}": f for c in _CORES for name, f in numpy_functions.items()},
            **{f"{module}.{name}": self._path for module in _PATH_MODULES for name in _PATHS},
        }

    def _tensor(self, storage, offset, size, stride, *_):
        """Builds a tensor: a copy of the values that its offset and strides reach.

        Raises :class:`Refused` if they reach outside the storage.
        """
        if storage is None:
            return None
        if isinstance(storage, UnknownName | InertObject):
            return unreadable_array(storage if isinstance(storage, UnknownName) else storage.name)
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
        self._budget.spend_bytes(math.prod(shape) * values.itemsize)
        steps = [step * values.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()

    def _tensor_of_bytes(self, storage, offset, size, stride, _, __, dtype, *___):
        """Builds a tensor of an untyped storage, whose dtype is an argument."""
        if storage is None:
            return None
        numpy_dtype = _DTYPES_OF_UNTYPED.get(dtype) if isinstance(dtype, UnknownName) else None
        if (
            numpy_dtype is None
            or not isinstance(storage, Storage)
            or storage.values.dtype != np.uint8
        ):
            return unreadable_array(
                dtype if isinstance(dtype, UnknownName) else "torch._utils._rebuild_tensor_v3"
            )
        integers = Storage(storage.values.view(f"u{np.dtype(numpy_dtype).itemsize}"))
        # Strided as integers, since numpy strides only its own dtypes.
        return self._tensor(integers, offset, size, stride).view(numpy_dtype)

    def _bytes(self, text, encoding):
        """Builds bytes, which old pickle protocols store as text in Latin-1."""
        if encoding != "latin1" or type(text) is not str:
            return InertObject("_codecs.encode")
        self._budget.spend_bytes(len(text))
        return text.encode("latin1")

    def _path(self, *parts):
        if not all(type(part) is str for part in parts):
            return InertObject("pathlib.Path")
        self._budget.spend_bytes(sum(map(len, parts)))
        return "/".join(parts).replace("//", "/")

    def _device(self, kind="", index=None, *_):
        if type(kind) is not str or type(index) not in (int, type(None)):
            return InertObject("torch.device")
        self._budget.spend_bytes(len(kind))
        return kind if index is None else f"{kind}:{index}"

    def _numpy_scalar(self, dtype, raw):
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes | str):
            return InertObject("numpy.scalar")
        (value,) = self._from_buffer(raw, dtype, (1,))
        return value.item()

    def _from_buffer(self, raw, dtype, shape, order="C"):
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes | bytearray):
            return unreadable_array("of numpy, and not of numbers")
        self._budget.spend_bytes(len(raw))
        values = np.frombuffer(raw, dtype.numpy_dtype)
        return values.reshape(_counts(shape), order="F" if order == "F" else "C")


def _of_type(function, _, arguments, *__):
    """Builds a tensor of a subclass by the function that it names, without the subclass."""
    if not isinstance(function, AllowedFunction) or not isinstance(arguments, tuple):
        return unreadable_array(
            function if isinstance(function, UnknownName) else "a class of tensors"
        )
    if len(arguments) > _MOST_ARGUMENTS or function.function is _of_type:
        raise Refused("a tensor of a class in it is not made of a tensor")
    return function.function(*arguments)


def _first(data, *_):
    return data


def _dtype(name, *_):
    is_number = isinstance(name, str) and re.fullmatch(r"[<|=>]?(?:b1|[iu][1248]|f[248])", name)
    return Dtype(name.lstrip("<|=>")) if is_number else InertObject("numpy.dtype")


def _size(counts=(), *_):
    if not isinstance(counts, list | tuple) or len(counts) > _MOST_AXES:
        raise Refused(f"a size in it is no row of at most {_MOST_AXES} numbers")
    return tuple(counts)


def _listed(values=(), *_):
    return values if isinstance(values, list | tuple) else []


def _empty_list(*_):
    return []


def _empty_array(*_):
    return Array.__new__(Array, (0,), np.uint8)


def _not_to_be_called(*_):
    raise Refused("it calls what is only to be named")


def _counts(numbers) -> tuple[int, ...]:
    """Returns the numbers. Raises :class:`Refused` unless all are integers from 0 to 2**63 - 1."""
    are_few = isinstance(numbers, tuple) and len(numbers) <= _MOST_AXES
    if not are_few or any(type(n) is not int or not 0 <= n < _LARGEST_COUNT for n in numbers):
        raise Refused("sizes, strides and offsets in it are not all whole numbers from 0 on")
    return numbers


SAVE_AGAIN = "if you trust it, load it in torch, and save the model's state_dict() alone"

STORAGE_DTYPES = {
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
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_DTYPES_OF_UNTYPED = {
    **{f"torch.{dtype}": dtype for dtype in ("uint16", "uint32", "uint64")},
    **{
        f"torch.{name}": getattr(ml_dtypes, name)
        for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
    },
}
"""dtypes of the tensors that torch saves with an untyped storage, by torch's names."""

_CORES = ("core", "_core")
_PATH_MODULES = ("pathlib", "pathlib._local")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_BUILTINS = ("builtins", "__builtin__")

ALLOWED: Mapping[str, Any] = {
    **{f"torch.{name}": StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
    **{f"{module}.UntypedStorage": StorageType("uint8") for module in ("torch", "torch.storage")},
    **{
        f"{module}.{name}": AllowedFunction(_listed)
        for module in _BUILTINS
        for name in ("set", "frozenset", "list", "tuple")
    },
    **{
        f"torch.jit._pickle.build_{kind}list": AllowedFunction(_listed)
        for kind in ("int", "double", "bool", "tensor")
    },
    "torch.jit._pickle.restore_type_tag": AllowedFunction(_first),
    "collections.deque": AllowedFunction(_empty_list),
    "torch.Size": AllowedFunction(_size),
    "torch._utils._rebuild_parameter": AllowedFunction(_first),
    "torch._utils._rebuild_parameter_with_state": AllowedFunction(_first),
    "torch._utils._rebuild_device_tensor_from_numpy": AllowedFunction(_first),  # XLA's tensors
    "numpy.dtype": AllowedFunction(_dtype),
    "numpy.ndarray": AllowedFunction(_not_to_be_called),
}
"""What the names that a pickle may use stand for, beside those of :class:`Constructors`."""
