"""Operations and memory traffic of a program for GPUs, read off its text.

The compiler's own count leaves out what it hands to cuBLAS and cuDNN, which is nearly all.
"""

import math
import re

from ddae_jax.aot.hlo import (
    Operation,
    called,
    elements,
    operations,
    own_result,
    shapes,
    sizes,
    times_by_computation,
)

# What reads and writes nothing of its own, or is counted where it starts.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
    *("while", "conditional", "call", "after-all", "partition-id", "replica-id"),
}
_CALLERS = ("while", "conditional", "call")  # of computations whose operations are kernels
_READ_A_PART = ("slice", "dynamic-slice", "gather")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_WORKSPACE = re.compile(r"[su]8\[\d*\]")
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
_PRODUCTS_OF_ATTENTION = {"forward": 2, "backward": 5}  # the weights are computed again


def gpu_work(program: str) -> tuple[float, float]:
    """Operations of matrix products, convolutions and attention; bytes read and written.

    Each kernel reads its operands and writes its results; of what it only takes slices of, it reads
    those. What lies in a cache counts, workspaces do not. What stands in a loop counts as often as
    it is passed, and all branches of a condition count.

    Args:
        program: ``compiled.as_text()``.
    """
    times = times_by_computation(program)
    lines: dict[str, list[Operation]] = {}
    for operation in operations(program):
        lines.setdefault(operation.computation, []).append(operation)
    in_kernels = {
        name
        for computation in lines.values()
        for operation in computation
        if operation.kind not in _CALLERS
        for name in called(operation.rest)
    }
    flops = traffic = 0.0
    for computation, found in lines.items():
        repeated = times.get(computation, 1)
        results = {operation.name: operation.result for operation in found}
        for operation in found:
            operands = [results.get(name, "") for name in operation.operands]
            flops += repeated * _flops(operation, operands)
            if computation not in in_kernels:
                traffic += repeated * _traffic(operation, operands, lines)
    return flops, traffic


def _traffic(operation: Operation, operands: list[str], lines: dict[str, list[Operation]]) -> float:
    """Bytes that one operation, a kernel, reads and writes."""
    if operation.kind in _FREE or operation.kind.endswith("-done"):
        return 0.0
    made = elements(own_result(operation))
    if operation.kind == "custom-call":
        made = [kind for kind in made if not _WORKSPACE.match(kind)]
    written = sum(map(sum, map(sizes, made)))
    if operation.kind in _READ_A_PART:
        return 2 * written
    inside = lines[called(operation.rest)[0]] if operation.kind == "fusion" else []
    return written + sum(
        _read(inside, index, sum(sizes(operand))) for index, operand in enumerate(operands)
    )


def _read(inside: list[Operation], index: int, whole: float) -> float:
    """Bytes that a fusion reads of one of its operands."""
    names = {o.name for o in inside if o.kind == "parameter" and o.arguments == str(index)}
    for operation in inside:  # a bitcast comes after what it renames
        if operation.kind == "bitcast" and names.intersection(operation.operands):
            names.add(operation.name)
    users = [o for o in inside if names.intersection(o.operands) and o.kind != "bitcast"]
    if users and all(o.kind in _READ_A_PART and o.operands[0] in names for o in users):
        return min(whole, sum(sum(sizes(o.result)) for o in users))
    return whole


def _flops(operation: Operation, operands: list[str]) -> float:
    """Two for each multiplication of one operation."""
    target = _TARGET.search(operation.rest)
    name = target[1] if target else operation.kind
    if name == "dot" or "cublas" in name:
        return 2 * math.prod(shapes(own_result(operation))[0]) * _contracted(operation, operands[0])
    if "conv" in name and (labels := _LABELS.search(operation.rest)):
        outputs, kernel = _convolved(name, operation.result, operands)
        return 2 * math.prod(outputs) * math.prod(kernel) / kernel[labels[1].index("o")]
    if "fmha" in name:
        queries, keys = (shapes(operand)[0] for operand in operands[:2])
        products = _PRODUCTS_OF_ATTENTION["backward" if "Backward" in name else "forward"]
        return 2 * products * math.prod(queries) * keys[1]
    return 0.0


def _contracted(operation: Operation, left: str) -> int:
    """The length of the sums of a matrix product."""
    axes = _CONTRACTED.search(operation.rest)
    return math.prod(shapes(left)[0][int(axis)] for axis in re.findall(r"\d+", axes[1]))


def _convolved(name: str, result: str, operands: list[str]) -> tuple[tuple[int, ...], ...]:
    """The shapes of outputs and kernel of a convolution, or of that whose gradient it is."""
    result, left, right = (shapes(text)[0] for text in (result, *operands[:2]))
    if "BackwardFilter" in name:
        return right, result
    return (left if "BackwardInput" in name else result), right
