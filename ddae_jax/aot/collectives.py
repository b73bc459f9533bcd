"""Traffic between devices in a step, read from the text of the compiled program."""

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
        count: number of operations.
        bytes: size of their results on one device.
        sent: bytes that each device sends, by the ring algorithm.
    """

    count: int = 0
    bytes: float = 0.0
    sent: float = 0.0


def collectives(program: str, num_devices: int) -> Mapping[str, Traffic]:
    """Counts the collective operations of a step on one device, by kind.

    An operation in the body of a loop counts once per iteration, if the compiler knows their
    number. The result of an all-gather, and the operand of a reduce-scatter, are ``n`` times as
    large as the share of one of ``n`` devices; in a ring, each device sends ``(n - 1) / n`` of it,
    and twice that in an all-reduce.

    Args:
        program: ``compiled.as_text()``.
        num_devices: number of devices that the program is for.

    Source: Patarasuk & Yuan 2009 (bandwidth-optimal all-reduce in a ring).
    """
    totals = dict.fromkeys(KINDS, Traffic())
    times = times_by_computation(program)
    for operation in operations(program):
        kind = operation.kind.removesuffix("-start")
        if kind not in KINDS:
            continue
        repeated = times.get(operation.computation, 1)
        size = sum(sizes(own_result(operation))) * repeated
        group = _group_size(operation.rest, num_devices)
        before = totals[kind]
        sent = size * _share_sent(kind, group)
        totals[kind] = Traffic(before.count + repeated, before.bytes + size, before.sent + sent)
    return {kind: traffic for kind, traffic in totals.items() if traffic.count}


def _share_sent(kind: str, group: int) -> float:
    """Returns the bytes that each device sends per byte of its result, in a group of devices."""
    ring = (group - 1) / group
    if kind == "all-reduce":
        return 2 * ring
    if kind == "reduce-scatter":
        return group * ring
    return 1.0 if kind == "collective-permute" else ring


def _group_size(text: str, num_devices: int) -> int:
    """Returns the number of devices in each group of a collective operation.

    Args:
        text: attributes of the operation.
        num_devices: number of all devices, which form one group if the text names none.
    """
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return listed[1].count(",") + 1
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return num_devices
