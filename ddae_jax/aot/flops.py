"""How many operations a model asks for, read off its own definition."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jaxtyping import PyTree


def model_flops(function: Callable, params: PyTree, *inputs: PyTree) -> float:
    """Operations of the matrix products and convolutions of a loss and of its gradient.

    The forward pass is traced, not compiled. Each product counts ``2 m n k``: once for the value,
    and once more for each of its factors that depends on ``params``, as that is what its gradient
    takes. So a product with parameters counts three times, the first layer, whose input has no
    gradient, twice, and a teacher's once. What is element-wise is left out, and so is whatever a
    compiler or rematerialisation does twice.

    Args:
        function: ``(params, *inputs) -> loss``, or a tuple that begins with it.
        params: what the gradient is by; arrays or their shapes.
        inputs: the rest.

    Source: the convention of Chowdhery et al. 2022, PaLM, appendix B (model FLOPs), with the
    attention's products counted too.
    """
    jaxpr = jax.make_jaxpr(function)(params, *inputs)
    num_params = len(jax.tree.leaves(params))
    depends = [index < num_params for index in range(len(jaxpr.jaxpr.invars))]
    return _count(jaxpr.jaxpr, depends)[0]


def _count(jaxpr: core.Jaxpr, depends: list[bool]) -> tuple[float, list[bool]]:
    """Operations of a program, and which of its results depend on the parameters."""
    known = dict(zip(jaxpr.invars, depends, strict=True))

    def is_dependent(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and known.get(atom, False)

    total = 0.0
    for equation in jaxpr.eqns:
        needed = [is_dependent(atom) for atom in equation.invars]
        name, parameters = equation.primitive.name, equation.params
        outputs = [any(needed)] * len(equation.outvars)
        if name == "dot_general":
            total += _product(equation) * (1 + sum(needed))
        elif name == "conv_general_dilated":
            total += _convolution(equation) * (1 + sum(needed))
        elif name == "stop_gradient":
            outputs = [False] * len(outputs)
        elif name == "scan":
            inner = parameters["jaxpr"].jaxpr
            num_constants, num_carry = parameters["num_consts"], parameters["num_carry"]
            for _ in range(num_carry + 1):  # until what depends does no longer grow
                operations, outputs = _count(inner, needed)
                carry = needed[num_constants : num_constants + num_carry]
                grown = [a or b for a, b in zip(carry, outputs[:num_carry], strict=True)]
                needed[num_constants : num_constants + num_carry] = grown
            total += operations * parameters["length"]
        elif name == "cond":
            counted = [_count(b.jaxpr, needed[1:]) for b in parameters["branches"]]
            total += max(operations for operations, _ in counted)
            outputs = [any(each) for each in zip(*(o for _, o in counted), strict=True)]
        elif inner := _inner(parameters):
            operations, outputs = _count(inner, needed[: len(inner.invars)])
            total += operations
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return total, [is_dependent(atom) for atom in jaxpr.outvars]


def _inner(parameters: dict[str, Any]) -> core.Jaxpr | None:
    """The program that an equation calls with its own operands, such as a jitted function."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in parameters:
            found = parameters[name]
            return getattr(found, "jaxpr", found)
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
