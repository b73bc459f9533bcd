"""Operations that a model needs, counted by tracing its definition."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jaxtyping import PyTree


def model_flops(function: Callable, params: PyTree, *inputs: PyTree) -> float:
    """Counts the operations of matrix products and convolutions in a loss and its gradient.

    The forward pass is traced, not compiled. A product takes ``2 m n k`` operations: once for its
    value, and once more for each factor that depends on ``params``, as its gradient needs another
    product. So a product of parameters with activations counts three times; the first layer, whose
    input needs no gradient, twice; and a teacher's product once. Element-wise operations are left
    out, and so is everything that a compiler or rematerialisation computes twice.

    Args:
        function: ``(params, *inputs) -> loss``, or a tuple whose first element is the loss.
        params: parameters that the gradient is taken by; arrays or their shapes.
        *inputs: further arguments of ``function``.

    Source: Chowdhery et al. 2022, PaLM, appendix B (model FLOPs); the products of attention are
    counted too.
    """
    jaxpr = jax.make_jaxpr(function)(params, *inputs)
    num_params = len(jax.tree.leaves(params))
    depends = [index < num_params for index in range(len(jaxpr.jaxpr.invars))]
    return _count(jaxpr.jaxpr, depends)[0]


def _count(jaxpr: core.Jaxpr, depends: list[bool]) -> tuple[float, list[bool]]:
    """Counts the operations of a program, and finds which results depend on the parameters.

    Args:
        jaxpr: the program.
        depends: whether each input depends on the parameters.

    Returns:
        The number of operations, and whether each output depends on the parameters.
    """
    dependence = dict(zip(jaxpr.invars, depends, strict=True))

    def is_dependent(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and dependence.get(atom, False)

    total = 0.0
    for equation in jaxpr.eqns:
        inputs = [is_dependent(atom) for atom in equation.invars]
        name, parameters = equation.primitive.name, equation.params
        operations, outputs = 0.0, [any(inputs)] * len(equation.outvars)
        if name == "dot_general":
            operations = _product(equation) * (1 + sum(inputs))
        elif name == "conv_general_dilated":
            operations = _convolution(equation) * (1 + sum(inputs))
        elif name == "stop_gradient":
            outputs = [False] * len(outputs)
        elif name == "scan":
            operations, outputs = _count_scan(parameters, inputs)
        elif name == "cond":
            branches = [_count(branch.jaxpr, inputs[1:]) for branch in parameters["branches"]]
            operations = max(operations for operations, _ in branches)
            outputs = [any(each) for each in zip(*(o for _, o in branches), strict=True)]
        elif inner := _inner(parameters):
            operations, outputs = _count(inner, inputs[: len(inner.invars)])
        total += operations
        dependence |= dict(zip(equation.outvars, outputs, strict=True))
    return total, [is_dependent(atom) for atom in jaxpr.outvars]


def _count_scan(parameters: dict[str, Any], inputs: list[bool]) -> tuple[float, list[bool]]:
    """Counts a loop: its body times its length, once it is known what depends in any iteration."""
    inner, inputs = parameters["jaxpr"].jaxpr, list(inputs)
    num_constants, num_carry = parameters["num_consts"], parameters["num_carry"]
    carried = slice(num_constants, num_constants + num_carry)
    for _ in range(num_carry + 1):  # each pass adds at least one carried value, or none is left
        operations, outputs = _count(inner, inputs)
        inputs[carried] = [
            a or b for a, b in zip(inputs[carried], outputs[:num_carry], strict=True)
        ]
    return operations * parameters["length"], outputs


def _inner(parameters: dict[str, Any]) -> core.Jaxpr | None:
    """Returns the program that an equation calls with its operands, such as a jitted function."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in parameters:
            program = parameters[name]
            return getattr(program, "jaxpr", program)
    return None


def _product(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2.0 * inner * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: core.JaxprEqn) -> float:
    kernel = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    features = kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
