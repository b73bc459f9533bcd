"""What devices send each other in a step, read off the compiled program's text."""

import dataclasses
import math
import re
from collections.abc import Mapping

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)=\{?([^,}]+(?:, %[^,}]+)*)"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collective operations of one kind in a step.

    Attributes:
        count: operations.
        bytes: of one device's results of them.
        sent: bytes that each device sends, by the ring algorithm.
    """

    count: int = 0
    bytes: float = 0.0
    sent: float = 0.0


def collectives(program: str, num_devices: int) -> Mapping[str, Traffic]:
    """Collective operations by kind, of one device and step.

    What stands in the body of a loop counts as often as the loop is passed, where the compiler
    knows how often that is. The result of an all-gather, and the operand of a reduce-scatter, are
    ``n`` times what one of ``n`` devices has; a ring sends ``(n - 1) / n`` of it from each device,
    for an all-reduce twice (Patarasuk & Yuan 2009).

    Args:
        program: ``compiled.as_text()``.
        num_devices: that it is for.
    """
    found = dict.fromkeys(KINDS, Traffic())
    times = _times_by_computation(program)
    computation = ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        operation = _OPERATION.search(line)
        if not operation:
            continue
        result, kind, is_start = operation.groups()
        repeated = times.get(computation, 1)
        size = _result_bytes(result, kind, bool(is_start)) * repeated
        group = _group_size(line, num_devices)
        before = found[kind]
        sent = size * _share_sent(kind, group)
        found[kind] = Traffic(before.count + repeated, before.bytes + size, before.sent + sent)
    return {kind: traffic for kind, traffic in found.items() if traffic.count}


def _share_sent(kind: str, group: int) -> float:
    """What each device sends over what it has as a result."""
    ring = (group - 1) / group
    if kind == "all-reduce":
        return 2 * ring
    if kind == "reduce-scatter":
        return group * ring
    return 1.0 if kind == "collective-permute" else ring


def _result_bytes(result: str, kind: str, is_start: bool) -> float:
    sizes = [_bytes(*array) for array in _ARRAY.findall(result)]
    if is_start and kind in ("all-gather", "collective-permute"):
        # The operands come first, then as many results, then what the hardware notes.
        sizes = [size for size in sizes if size > 4] or sizes
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)


def _bytes(dtype: str, shape: str) -> float:
    bits = re.search(r"\d+", dtype)
    width = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 0)
    return width * math.prod(int(side) for side in shape.split(",") if side)


def _group_size(line: str, num_devices: int) -> int:
    """Devices that take part together."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return num_devices


def _times_by_computation(program: str) -> Mapping[str, int]:
    """How often each computation runs, for those below a loop of known length."""
    callers: dict[str, list[tuple[str, int]]] = {}
    computation = ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
            continue
        trips = _TRIPS.search(line)
        for called in _CALLED.findall(line):
            for name in called.replace("%", "").split(", "):
                times = int(trips[1]) if trips and " while(" in line else 1
                callers.setdefault(name, []).append((computation, times))

    def times_of(name: str) -> int:
        return math.prod(times * times_of(caller) for caller, times in callers.get(name, [])[:1])

    return {name: times_of(name) for name in callers}
