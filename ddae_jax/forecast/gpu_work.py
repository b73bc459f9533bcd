"""Operations and memory traffic of a program for GPUs, read off its text.

The compiler's own count leaves out what it hands to cuBLAS and cuDNN, which is nearly all.
"""

import math
import re

from ddae_jax.forecast.hlo import Operation, called, operations, shapes, sizes, times_by_computation

# What reads and writes nothing of its own, or is counted where it starts.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
    *("while", "conditional", "call", "after-all", "partition-id", "replica-id"),
}
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
_PRODUCTS_OF_ATTENTION = {"forward": 2, "backward": 5}  # the weights are computed again


def gpu_work(program: str) -> tuple[float, float]:
    """Operations of matrix products, convolutions and attention; bytes read and written.

    Each kernel reads all of its operands and writes its results: what a kernel reads a part of, or
    finds in a cache, counts whole. What stands in a loop counts as often as it is passed.

    Args:
        program: ``compiled.as_text()``.
    """
    times = times_by_computation(program)
    found = list(operations(program))
    results = {(o.computation, o.name): o.result for o in found}
    in_kernels = {name for o in found if o.kind not in ("while", "call") for name in called(o.rest)}
    flops = traffic = 0.0
    for operation in found:
        repeated = times.get(operation.computation, 1)
        operands = [results.get((operation.computation, name), "") for name in operation.operands]
        flops += repeated * _flops(operation, operands)
        is_kernel = operation.kind not in _FREE and not operation.kind.endswith("-done")
        if is_kernel and operation.computation not in in_kernels:
            traffic += repeated * sum(map(sum, map(sizes, (operation.result, *operands))))
    return flops, traffic


def _flops(operation: Operation, operands: list[str]) -> float:
    """Two for each multiplication of one operation."""
    target = _TARGET.search(operation.rest)
    name = target[1] if target else operation.kind
    if name == "dot" or "cublas" in name:
        return 2 * math.prod(shapes(operation.result)[0]) * _contracted(operation, operands[0])
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
