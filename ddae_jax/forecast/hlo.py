"""A compiled program's text, taken apart: its operations, their arrays, and how often they run."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>\(.*?\)(?= [\w\-]+\()|\S+)"
    r" (?P<kind>[\w\-]+)\((?P<operands>[^)]*)\)(?P<rest>.*)"
)
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)=\{?([^,}]+(?:, %[^,}]+)*)"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a program.

    Attributes:
        computation: that it stands in.
        name: of its result.
        result: type of its result, as text: an array, or several in parentheses.
        kind: such as ``fusion``, ``dot`` or ``custom-call``.
        operands: names of what it takes.
        rest: its attributes, as text.
    """

    computation: str
    name: str
    result: str
    kind: str
    operands: tuple[str, ...]
    rest: str


def operations(program: str) -> Iterator[Operation]:
    """All operations of a program, ``compiled.as_text()``, in its order."""
    computation = ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif found := _OPERATION.match(line):
            operands = tuple(re.findall(r"%([\w.\-]+)", found["operands"]))
            yield Operation(
                computation, found["name"], found["result"], found["kind"], operands, found["rest"]
            )


def shapes(result: str) -> list[tuple[int, ...]]:
    """The shapes of the arrays of a type."""
    return [_shape(shape) for _, shape in _ARRAY.findall(result)]


def sizes(result: str) -> list[float]:
    """The bytes of the arrays of a type."""
    return [_bytes(dtype) * math.prod(_shape(shape)) for dtype, shape in _ARRAY.findall(result)]


def called(text: str) -> list[str]:
    """Names of the computations that an operation's attributes refer to."""
    return [name for names in _CALLED.findall(text) for name in names.replace("%", "").split(", ")]


def times_by_computation(program: str) -> Mapping[str, int]:
    """How often each computation that another calls runs, below loops of known length."""
    callers: dict[str, list[tuple[str, int]]] = {}
    for operation in operations(program):
        trips = _TRIPS.search(operation.rest)
        times = int(trips[1]) if trips and operation.kind == "while" else 1
        for name in called(operation.rest):
            callers.setdefault(name, []).append((operation.computation, times))

    def times_of(name: str) -> int:
        return math.prod(times * times_of(caller) for caller, times in callers.get(name, [])[:1])

    return {name: times_of(name) for name in callers}


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split(",") if side)


def _bytes(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    return _BYTES.get(dtype, int(bits[0]) / 8 if bits else 0)
