"""Pickles of arrays, read without running anything that they name.

A pickle is a program for a machine with a stack: it calls what it names. The machine here knows
all of its instructions, and no more than the names in :mod:`ddae_jax.interop.pickle_objects`; no
other name
is looked up. What an instruction costs is bounded: keys of dicts are plain and short, since their
hashes are computed again and again, and sets are lists.
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
# Steps that a key counts for. Whoever writes a file can choose keys with one hash, but of text.
_WORK_OF_LARGE, _WORK_OF_CHOSEN = 10, 100

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
"""What is there to harm whoever reads a file by other means. It would not be run here either."""

_ARRAYS = re.compile(r".*(?:_rebuild|_reconstruct_array|Tensor$|Parameter$)")
"""Names of what makes arrays: of quantised, sparse or distributed ones, and of other libraries."""


def unpickle(
    stream: BinaryIO, find_storage: Callable[[Any], Storage | UnknownName | None], room: int
):
    """What the pickle that begins here holds; the stream is left behind its end.

    Args:
        stream: of bytes.
        find_storage: the storage that a persistent id names; the name of its kind, if that is not
            known. None makes tensors of it None too, for whoever only wants to know which storages
            there are.
        room: bytes that all arrays together may take. Many of them may view one storage.

    Raises:
        Refused: naming what it asks for.
        Exception: of any kind, if it is damaged.
    """
    return _Machine(find_storage, Budget(room)).run(stream)


class _Machine:
    def __init__(self, find_storage, budget: Budget):
        self._find_storage, self._budget = find_storage, budget
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # what lay on the stack at each mark
        self._memo: dict[int, Any] = {}
        self._names: dict[tuple[str, str], Any] = {}
        makers = {
            name: AllowedFunction(function)
            for name, function in Constructors(budget).by_name.items()
        }
        self._known = {
            **ALLOWED,
            **makers,
            "collections.OrderedDict": AllowedFunction(self._dict_of_pairs),
        }
        self._known |= {
            f"{module}._reconstructor": AllowedFunction(self._reconstructed)
            for module in ("copyreg", "copy_reg")
        }

    def run(self, stream: BinaryIO) -> Any:
        """Follows the instructions up to the end."""
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
        parts = self._stack[-count:]
        if len(self._stack) < count:
            raise ValueError("its stack is too short")
        self._stack[-count:] = [tuple(parts)]

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
        """Raises :class:`Refused` for what takes long to hash or to compare."""
        kind = type(key)
        if kind is tuple and len(key) <= _MOST_PARTS_OF_KEY:
            self._budget.spend_steps(_WORK_OF_CHOSEN)
            parts = key
        else:
            parts = (key,)
        for part in parts:
            kind = type(part)
            if kind in (str, UnknownName, bytes):
                is_known = len(part) <= _LONGEST_KEY
            elif kind is int:
                is_known = abs(part) < _LARGEST_KEY
                self._budget.spend_steps(0 if abs(part) < _LARGE_KEY else _WORK_OF_LARGE)
            elif kind is float:
                is_known = True
                self._budget.spend_steps(_WORK_OF_CHOSEN)
            else:
                is_known = kind in (bool, type(None), InertObject)
            if not is_known:
                raise Refused(
                    "a key of a dict in it is no short text, number of at most 64 bits, or short "
                    f"row of these, but of type {kind.__name__}; {SAVE_AGAIN}"
                )

    def _global(self, argument):
        module, _, name = argument.partition(" ")
        self._stack.append(self._found(module, name))

    def _stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("what it names is no text")
        self._stack.append(self._found(module, name))

    def _found(self, module: str, name: str) -> Any:
        """What a name stands for. Nothing is imported, nor looked up in what is."""
        if len(module) + len(name) > _LONGEST_NAME:
            raise Refused(f"it names something by more than {_LONGEST_NAME:,} letters")
        if (module, name) not in self._names:
            whole = f"{module}.{name}"
            if _HOSTILE.fullmatch(whole):
                raise Refused(
                    f"it asks for {whole}, which no file of weights needs; do not open it "
                    "by other means"
                )
            self._names[module, name] = self._known.get(whole, UnknownName(whole))
        return self._names[module, name]

    def _reduce(self, _):
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(function, arguments))

    def _reduce_with_keywords(self, _):
        self._stack.pop()
        self._reduce(_)

    def _instance(self, argument):
        arguments = self._since_mark()
        self._global(argument)
        function = self._stack.pop()
        self._stack.append(self._called(function, tuple(arguments)))

    def _object(self, _):
        function, *arguments = self._since_mark()
        self._stack.append(self._called(function, tuple(arguments)))

    def _called(self, function: Any, arguments: Any) -> Any:
        """What a call gives: of a name that is not known, an object that does nothing."""
        if isinstance(function, UnknownName | InertObject):
            name = function if isinstance(function, UnknownName) else function.name
            return (
                unreadable_array(name) if _makes_arrays(str(name)) else self._inert(name, arguments)
            )
        if not isinstance(function, AllowedFunction) or not isinstance(arguments, tuple):
            raise Refused("it calls what is no function")
        if len(arguments) > _MOST_ARGUMENTS:
            raise Refused(f"it calls a function with {len(arguments)} arguments")
        self._budget.spend_steps(len(arguments))
        return function.function(*arguments)

    def _inert(self, name: str, arguments: Any) -> InertObject:
        found = InertObject(name)
        if isinstance(arguments, tuple) and [type(part) for part in arguments[:2]] == [dict]:
            found.set_state(arguments[0], self._budget)  # as a dict that cannot be changed has it
        return found

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
        """A dict, of pairs as old versions of Python give them."""
        target: dict[Any, Any] = {}
        self._budget.spend_steps(len(pairs))
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            self._set(target, (key, value))
        return target

    def _reconstructed(self, name, base=None, state=None, *_):
        """An object as the oldest protocols spell it, whose items may come with it."""
        found = self._called(name, ()) if isinstance(name, UnknownName) else InertObject("copyreg")
        if isinstance(state, dict) and isinstance(found, InertObject):
            found.set_state(state, self._budget)
        return found


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
"""What each instruction does that is more than a value."""
