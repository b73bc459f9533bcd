"""Operations and memory traffic of a compiled GPU program, read from its text.

The compiler's own count leaves out calls of cuBLAS and cuDNN, which do nearly all of the work.
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

# Operations that read and write nothing by themselves, or are counted where they start.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
    *("while", "conditional", "call", "after-all", "partition-id", "replica-id"),
}
_CALLERS = ("while", "conditional", "call")  # they call computations whose operations are kernels
_READ_A_PART = ("slice", "dynamic-slice", "gather")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_WORKSPACE = re.compile(r"[su]8\[\d*\]")
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
# Matrix products of fused attention; the backward pass computes the weights again.
_PRODUCTS_OF_ATTENTION = {"forward": 2, "backward": 5}


def gpu_work(program: str) -> tuple[float, float]:
    """Counts the operations and the memory traffic of a program on one GPU.

    Operations are those of matrix products, convolutions and attention. Each kernel reads its
    operands and writes its results; of an operand that it only slices, it reads the slices. Reads
    count even if a cache may serve them; workspaces do not count. The body of a loop counts once
    per iteration, and all branches of a condition count.

    Args:
        program: ``compiled.as_text()``.

    Returns:
        The number of operations, and of bytes read and written.
    """
    times = times_by_computation(program)
    computations: dict[str, list[Operation]] = {}
    for operation in operations(program):
        computations.setdefault(operation.computation, []).append(operation)
    in_kernels = {
        name
        for computation in computations.values()
        for operation in computation
        if operation.kind not in _CALLERS
        for name in called(operation.rest)
    }
    flops = traffic = 0.0
    for computation, members in computations.items():
        repeated = times.get(computation, 1)
        results = {operation.name: operation.result for operation in members}
        for operation in members:
            operands = [results.get(name, "") for name in operation.operands]
            flops += repeated * _flops(operation, operands)
            if computation not in in_kernels:
                traffic += repeated * _traffic(operation, operands, computations)
    return flops, traffic


def _traffic(
    operation: Operation, operands: list[str], computations: dict[str, list[Operation]]
) -> float:
    """Returns the bytes that one operation, a kernel, reads and writes."""
    if operation.kind in _FREE or operation.kind.endswith("-done"):
        return 0.0
    results = elements(own_result(operation))
    if operation.kind == "custom-call":
        results = [result for result in results if not _WORKSPACE.match(result)]
    written = sum(map(sum, map(sizes, results)))
    if operation.kind in _READ_A_PART:
        return 2 * written
    fused = computations[called(operation.rest)[0]] if operation.kind == "fusion" else []
    return written + sum(
        _read(fused, index, sum(sizes(operand))) for index, operand in enumerate(operands)
    )


def _read(fused: list[Operation], index: int, whole: float) -> float:
    """Returns the bytes that a fusion reads of one of its operands.

    Args:
        fused: operations of the fusion; none for another kernel, which reads all of it.
        index: index of the operand.
        whole: bytes of the whole operand.
    """
    names = {o.name for o in fused if o.kind == "parameter" and o.arguments == str(index)}
    for operation in fused:  # a bitcast comes after the operation that it renames
        if operation.kind == "bitcast" and names.intersection(operation.operands):
            names.add(operation.name)
    users = [o for o in fused if names.intersection(o.operands) and o.kind != "bitcast"]
    if users and all(o.kind in _READ_A_PART and o.operands[0] in names for o in users):
        return min(whole, sum(sum(sizes(o.result)) for o in users))
    return whole


def _flops(operation: Operation, operands: list[str]) -> float:
    """Returns twice the number of multiplications of one operation."""
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
    """Returns the number of terms in each sum of a matrix product."""
    axes = _CONTRACTED.search(operation.rest)
    return math.prod(shapes(left)[0][int(axis)] for axis in re.findall(r"\d+", axes[1]))


def _convolved(name: str, result: str, operands: list[str]) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of outputs and kernel of a convolution.

    For a gradient, they are those of the convolution whose gradient it is.
    """
    result, left, right = (shapes(text)[0] for text in (result, *operands[:2]))
    if "BackwardFilter" in name:
        return right, result
    return (left if "BackwardInput" in name else result), right
