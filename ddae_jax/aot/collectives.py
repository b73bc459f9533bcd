"""What devices send each other in a step, read off the compiled program's text."""

import dataclasses
import math
import re
from collections.abc import Mapping

from ddae_jax.aot.hlo import operations, own_result, sizes, times_by_computation

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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
    times = times_by_computation(program)
    for operation in operations(program):
        kind = operation.kind.removesuffix("-start")
        if kind not in KINDS:
            continue
        repeated = times.get(operation.computation, 1)
        size = sum(sizes(own_result(operation))) * repeated
        group = _group_size(operation.rest, num_devices)
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


def _group_size(text: str, num_devices: int) -> int:
    """Devices that take part together."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return listed[1].count(",") + 1
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return num_devices
