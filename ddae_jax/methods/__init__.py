"""Methods: what each predicts, against what, and how its errors are supervised.

A file of this folder that has a ``SPEC`` is a method; docs/adding_a_method.md shows how to write
one. Packages add methods of their own by an entry point ``ddae_jax.methods`` that names a
:class:`ddae_jax.methods.spec.MethodSpec`, and scripts by :func:`register_method`.
"""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from ddae_jax.methods.spec import MethodSpec
from ddae_jax.suggestions import did_you_mean

_methods: dict[str, MethodSpec] = {}

METHODS: Mapping[str, MethodSpec] = MappingProxyType(_methods)
"""Every method by name."""


def register_method(spec: MethodSpec) -> None:
    """Makes a method known by its name, to configs, commands and model cards.

    Raises:
        ValueError: if another method has that name.
    """
    if _methods.get(spec.name, spec) != spec:
        raise ValueError(f"there is a method {spec.name!r} already; call this one otherwise")
    _methods[spec.name] = spec


def find_method(name: str) -> MethodSpec:
    """Returns the method of that name. Raises ``ValueError`` naming the known ones."""
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"method={name!r}; known: {known}{did_you_mean(name, METHODS)}")
    return METHODS[name]


def _discover() -> None:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        spec = getattr(importlib.import_module(module.name), "SPEC", None)
        if spec is not None:
            register_method(spec)
    for entry in importlib.metadata.entry_points(group="ddae_jax.methods"):
        register_method(entry.load())


_discover()
