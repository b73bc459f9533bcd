"""Parser of a compiled program's text: its operations, their arrays, and how often they run."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>\(.*?\)(?= [\w\-]+\()|\S+)"
    r" (?P<kind>[\w\-]+)\((?P<arguments>[^)]*)\)(?P<rest>.*)"
)
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)"
    r"=\{?([^,}]+(?:, %[^,}]+)*)"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a program.

    Attributes:
        computation: name of the computation that it belongs to.
        name: name of its result.
        result: type of its result, as text: an array, or several in parentheses.
        kind: kind of operation, such as ``fusion``, ``dot`` or ``custom-call``.
        arguments: text between its parentheses.
        rest: its attributes, as text.
    """

    computation: str
    name: str
    result: str
    kind: str
    arguments: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.arguments)


def operations(program: str) -> Iterator[Operation]:
    """Yields all operations of a program, ``compiled.as_text()``, in their order."""
    computation = ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif match := _OPERATION.match(line):
            yield Operation(computation, **match.groupdict())


def shapes(result: str) -> list[tuple[int, ...]]:
    """Returns the shapes of the arrays of a type."""
    return [_shape(shape) for _, shape in _ARRAY.findall(result)]


def sizes(result: str) -> list[float]:
    """Returns the bytes of each array of a type."""
    return [_bytes(dtype) * math.prod(_shape(shape)) for dtype, shape in _ARRAY.findall(result)]


def elements(result: str) -> list[str]:
    """Splits the type of a tuple into its elements; any other type is its only element."""
    if not result.startswith("("):
        return [result]
    types, depth, start = [], 0, 1
    for position, letter in enumerate(result):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            types.append(result[start:position].strip())
            start = position + 1
    return types


def own_result(operation: Operation) -> str:
    """Returns the type of an operation's result, without the operands that ``-start`` passes on."""
    has_operands = operation.kind.endswith("-start") and operation.kind != "all-reduce-start"
    return elements(operation.result)[1] if has_operands else operation.result


def called(text: str) -> list[str]:
    """Returns the names of the computations that an operation's attributes refer to."""
    return [name for names in _CALLED.findall(text) for name in names.replace("%", "").split(", ")]


def times_by_computation(program: str) -> Mapping[str, int]:
    """Returns how often each called computation runs in the program.

    A loop counts as often as it iterates, if the compiler knows how often, and else once.
    """
    callers: dict[str, list[tuple[str, int]]] = {}
    for operation in operations(program):
        trips = _TRIPS.search(operation.rest)
        times = int(trips[1]) if trips and operation.kind == "while" else 1
        for name in called(operation.rest):
            callers.setdefault(name, []).append((operation.computation, times))

    @functools.cache
    def times_of(name: str) -> int:
        if name not in callers:
            return 1
        return sum(times * times_of(caller) for caller, times in callers[name])

    return {name: times_of(name) for name in callers}


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split(",") if side)


def _bytes(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    return _BYTES.get(dtype, int(bits[0]) / 8 if bits else 0)
