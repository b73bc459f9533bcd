"""Checks of the shapes and dtypes in signatures, at every call: jaxtyping with beartype.

jaxtyping's import hook decorates each function, method and dataclass of the rooms below when their
modules are imported. The axes of a signature are compared within one call.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import jaxtyping
from beartype import beartype

ROOMS = tuple(
    f"ddae_jax.{name}"
    for name in ("masking", "distance", "dynamic_loss", "patches", "models", "methods")
)
"""The modules that are checked, and the packages, with every module in them."""


def install() -> None:
    """Lets everything that is imported from the rooms after this call be checked."""
    jaxtyping.install_import_hook(ROOMS, f"{__name__}.check_arrays")


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Switches the checks off: for tests of what users are told, who run without them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def check_arrays(function: Callable) -> Callable:
    """Checks a function's arrays with beartype, and nothing else.

    Words, numbers and configs of a wrong type or value are left to the package's own errors, which
    the tests ask for.
    """
    hints = function.__annotations__
    for name, hint in hints.items():
        if not _is_of_arrays(hint):
            hints[name] = Any
    if all(hint is Any for hint in hints.values()):
        return function
    checked = beartype(function)
    return _for_arrays_only(checked) if function.__name__ == "__init__" else checked


def _for_arrays_only(init: Callable) -> Callable:
    """Skips the check where JAX rebuilds a tree around shapes, NumPy arrays or other stand-ins."""
    signature = inspect.signature(init)
    names = [name for name, hint in init.__annotations__.items() if hint is not Any]

    @functools.wraps(init)
    def checked(*args, **kwargs):
        values = signature.bind(*args, **kwargs).arguments
        leaves = jax.tree.leaves([values.get(name) for name in names])
        if leaves and all(isinstance(leaf, jax.Array) for leaf in leaves):
            return init(*args, **kwargs)

    return checked


def _is_of_arrays(hint: object) -> bool:
    """Whether a type is one of arrays, or made of such."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray | jax.Array):
        return True
    return any(_is_of_arrays(part) for part in get_args(hint))
