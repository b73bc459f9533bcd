"""Unpickler for arrays that runs nothing of what a pickle names.

A pickle is a program for a stack machine, and Python's own unpickler imports and calls whatever it
names. The machine here knows all instructions, but only the names in
:mod:`ddae_jax.interop.pickle_objects`; no other name is imported or looked up. The cost of each
instruction is bounded: keys of dicts must be plain and short, because each lookup hashes them
again, and sets become lists.
"""

import functools
import pickle
import pickletools
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from ddae_jax.interop.pickle_objects import (
    ALLOWED,
    SAVE_AGAIN,
    AllowedFunction,
    Array,
    Budget,
    Constructors,
    Dtype,
    InertObject,
    Refused,
    Storage,
    StorageType,
    UnknownName,
    unreadable_array,
)

_LONGEST_NAME = 1000
_LONGEST_KEY = 10_000
_MOST_ARGUMENTS, _MOST_PARTS_OF_KEY = 100, 16
_LARGE_KEY, _LARGEST_KEY = 2**32, 2**64
# Steps charged for a key: large integers, and floats or tuples. An attacker can choose such keys
# with colliding hashes, which make dicts slow. Hashes of text are randomised.
_STEPS_OF_LARGE_INT, _STEPS_OF_FLOAT_OR_TUPLE = 10, 100

_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_VALUES |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_VALUES |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}

_HOSTILE = re.compile(
    r"(?:os|posix|nt)\.(?:system|popen\d?|exec\w+|spawn\w+|fork\w*|startfile|remove|unlink|rmdir)|"
    r"subprocess\.(?:Popen|run|call|check_call|check_output|getoutput|getstatusoutput)|"
    r"(?:builtins|__builtin__)\.(?:eval|exec|execfile|compile|open|__import__)|"
    r"pty\.spawn|shutil\.(?:rmtree|move)|runpy\.run_\w+|importlib\.import_module|"
    r"webbrowser\.open\w*|commands\.get\w+"
)
"""Names that serve only to attack whoever loads the file. They are not run here either way."""

_ARRAYS = re.compile(r".*(?:_rebuild|_reconstruct_array|Tensor$|Parameter$)")
"""Names of functions that build arrays: quantised, sparse, distributed, or of other libraries."""


def unpickle(
    stream: BinaryIO, find_storage: Callable[[Any], Storage | UnknownName | None], max_bytes: int
) -> Any:
    """Reads one pickle and leaves the stream at its end.

    Args:
        stream: bytes, at the beginning of the pickle.
        find_storage: maps a persistent id to the storage that it names, or to the name of the
            storage's type if that is unknown. If it returns None, tensors of that storage become
            None; this serves to list the storages first.
        max_bytes: bytes that all arrays together may take. Many arrays may view one storage, so
            the size of the file is no bound.

    Returns:
        The pickled object, of the types in :mod:`ddae_jax.interop.pickle_objects`.

    Raises:
        Refused: if the pickle asks for something forbidden, which the message names, or costs too
            much.
        Exception: of any type, if the pickle is damaged.
    """
    return _Machine(find_storage, Budget(max_bytes)).run(stream)


class _Machine:
    """Stack machine that follows a pickle's instructions. See :mod:`pickletools` for these."""

    def __init__(self, find_storage, budget: Budget):
        self._find_storage, self._budget = find_storage, budget
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks that marks have put aside
        self._memo: dict[int, Any] = {}
        self._names: dict[tuple[str, str], Any] = {}
        constructors = {
            name: AllowedFunction(function)
            for name, function in Constructors(budget).by_name.items()
        }
        self._allowed = {
            **ALLOWED,
            **constructors,
            "collections.OrderedDict": AllowedFunction(self._dict_of_pairs),
        }
        self._allowed |= {
            f"{module}._reconstructor": AllowedFunction(self._reconstruct)
            for module in ("copyreg", "copy_reg")
        }

    def run(self, stream: BinaryIO) -> Any:
        """Follows the instructions and returns the object on the stack at the end."""
        for opcode, argument, _ in pickletools.genops(stream):
            self._budget.spend_steps(1)
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name == "STOP":
                return self._stack.pop()
            else:
                step = _STEPS.get(name)
                if step is None:
                    raise Refused(f"it asks for an extension of pickle, {name}; {SAVE_AGAIN}")
                step(self, argument)
        raise ValueError("its pickle has no end")

    def _protocol(self, argument):
        if argument > pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"unsupported pickle protocol: {argument}")

    def _frame(self, _):
        pass

    def _mark(self, _):
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _pop(self, _):
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _):
        self._since_mark()

    def _duplicate(self, _):
        self._stack.append(self._stack[-1])

    def _put(self, argument):
        self._memo[argument] = self._stack[-1]

    def _memoize(self, _):
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, argument):
        self._stack.append(self._memo[argument])

    def _tuple(self, _):
        parts = tuple(self._since_mark())
        self._stack.append(parts)

    def _tuple_of(self, count):
        if len(self._stack) < count:
            raise ValueError("its stack is too short")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _list(self, _):
        items = self._since_mark()
        self._stack.append(items)

    def _append(self, _):
        value = self._stack.pop()
        self._extend([value])

    def _appends(self, _):
        self._extend(self._since_mark())

    def _extend(self, items):
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, InertObject | UnknownName):
            raise Refused("it puts items in a row into what is no list")

    def _dict(self, _):
        items, target = self._since_mark(), {}
        self._set(target, items)
        self._stack.append(target)

    def _set_item(self, _):
        value, key = self._stack.pop(), self._stack.pop()
        self._set(self._stack[-1], [key, value])

    def _set_items(self, _):
        items = self._since_mark()
        self._set(self._stack[-1], items)

    def _set(self, target: Any, items: Sequence[Any]) -> None:
        if not isinstance(target, dict):
            raise Refused("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._check_key(key)
            target[key] = value

    def _check_key(self, key: Any) -> None:
        """Raises :class:`Refused` for a key that takes long to hash or to compare."""
        kind = type(key)
        if kind is tuple and len(key) <= _MOST_PARTS_OF_KEY:
            self._budget.spend_steps(_STEPS_OF_FLOAT_OR_TUPLE)
            parts = key
        else:
            parts = (key,)
        for part in parts:
            kind = type(part)
            if kind in (str, UnknownName, bytes):
                is_allowed = len(part) <= _LONGEST_KEY
            elif kind is int:
                is_allowed = abs(part) < _LARGEST_KEY
                self._budget.spend_steps(0 if abs(part) < _LARGE_KEY else _STEPS_OF_LARGE_INT)
            elif kind is float:
                is_allowed = True
                self._budget.spend_steps(_STEPS_OF_FLOAT_OR_TUPLE)
            else:
                is_allowed = kind in (bool, type(None), InertObject)
            if not is_allowed:
                raise Refused(
                    "a key of a dict in it is no short text, number of at most 64 bits, or short "
                    f"row of these, but of type {kind.__name__}; {SAVE_AGAIN}"
                )

    def _global(self, argument):
        module, _, name = argument.partition(" ")
        self._stack.append(self._resolve(module, name))

    def _stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("what it names is no text")
        self._stack.append(self._resolve(module, name))

    def _resolve(self, module: str, name: str) -> Any:
        """Returns what a name stands for, from a table. Imports nothing.

        Raises :class:`Refused` for a hostile or very long name.
        """
        if len(module) + len(name) > _LONGEST_NAME:
            raise Refused(f"it names something by more than {_LONGEST_NAME:,} letters")
        if (module, name) not in self._names:
            whole = f"{module}.{name}"
            if _HOSTILE.fullmatch(whole):
                raise Refused(
                    f"it asks for {whole}, which no file of weights needs; do not open it "
                    "by other means"
                )
            self._names[module, name] = self._allowed.get(whole, UnknownName(whole))
        return self._names[module, name]

    def _reduce(self, _):
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    def _reduce_with_keywords(self, _):
        self._stack.pop()
        self._reduce(_)

    def _instance(self, argument):
        arguments = self._since_mark()
        self._global(argument)
        function = self._stack.pop()
        self._stack.append(self._call(function, tuple(arguments)))

    def _object(self, _):
        function, *arguments = self._since_mark()
        self._stack.append(self._call(function, tuple(arguments)))

    def _call(self, function: Any, arguments: Any) -> Any:
        """Returns the result of a call; for an unknown name, a stand-in that does nothing."""
        if isinstance(function, UnknownName | InertObject):
            name = function if isinstance(function, UnknownName) else function.name
            return (
                unreadable_array(name)
                if _makes_arrays(str(name))
                else self._stand_in(name, arguments)
            )
        if not isinstance(function, AllowedFunction) or not isinstance(arguments, tuple):
            raise Refused("it calls what is no function")
        if len(arguments) > _MOST_ARGUMENTS:
            raise Refused(f"it calls a function with {len(arguments)} arguments")
        self._budget.spend_steps(len(arguments))
        return function.function(*arguments)

    def _stand_in(self, name: str, arguments: Any) -> InertObject:
        stand_in = InertObject(name)
        if isinstance(arguments, tuple) and [type(part) for part in arguments[:2]] == [dict]:
            stand_in.set_state(arguments[0], self._budget)  # such as a frozen dict's items
        return stand_in

    def _build(self, _):
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, InertObject | Array | Dtype):
            target.set_state(state, self._budget)
        elif isinstance(target, AllowedFunction | StorageType):
            raise Refused("it changes what it may only name")

    def _persistent(self, _):
        self._stack.append(self._find_storage(self._stack.pop()))

    def _persistent_text(self, argument):
        self._stack.append(self._find_storage(argument))

    def _dict_of_pairs(self, pairs=(), *_):
        """Builds a dict, also from pairs, as old versions of Python pickle an OrderedDict."""
        target: dict[Any, Any] = {}
        self._budget.spend_steps(len(pairs))
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            self._set(target, (key, value))
        return target

    def _reconstruct(self, name, base=None, state=None, *_):
        """Builds an object as protocols 0 and 1 spell it, with its items if it is a dict."""
        target = self._call(name, ()) if isinstance(name, UnknownName) else InertObject("copyreg")
        if isinstance(state, dict) and isinstance(target, InertObject):
            target.set_state(state, self._budget)
        return target


@functools.lru_cache(1000)
def _makes_arrays(name: str) -> bool:
    return bool(_ARRAYS.match(name))


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._protocol,
    "FRAME": _Machine._frame,
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._pop_mark,
    "DUP": _Machine._duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._put),
    "MEMOIZE": _Machine._memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._get),
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "FROZENSET": _Machine._list,
    "LIST": _Machine._list,
    "APPEND": _Machine._append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine._appends),
    "DICT": _Machine._dict,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine._reduce),
    "NEWOBJ_EX": _Machine._reduce_with_keywords,
    "INST": _Machine._instance,
    "OBJ": _Machine._object,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
    "PERSID": _Machine._persistent_text,
}
"""Methods of :class:`_Machine` by instruction, except for those that only push a value."""
