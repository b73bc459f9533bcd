"""The pretraining methods, and their registry.

Each module of this folder that defines a ``SPEC`` is a method; docs/adding_a_method.md shows how to
write one. Other packages add methods by entry points of the group ``ddae_jax.methods``, each naming
a :class:`ddae_jax.methods.spec.MethodSpec`; scripts call :func:`register_method`.
"""

import ast
import functools
import importlib
import importlib.metadata
import pathlib
import pkgutil
import types
from collections.abc import Iterator, Mapping

from ddae_jax.methods.spec import MethodSpec
from ddae_jax.suggestions import did_you_mean

_registered: dict[str, MethodSpec] = {}


class _Methods(Mapping[str, MethodSpec]):
    """Mapping of names to methods. Its first use imports all methods, and with them JAX."""

    def __getitem__(self, name: str) -> MethodSpec:
        _discover()
        return _registered[name]

    def __iter__(self) -> Iterator[str]:
        _discover()
        return iter(sorted(_registered))

    def __len__(self) -> int:
        _discover()
        return len(_registered)


METHODS: Mapping[str, MethodSpec] = _Methods()
"""Every method by name, in alphabetical order."""


def __getattr__(name: str) -> types.ModuleType:
    """Imports a module of this folder on first access, as in ``ddae_jax.methods.mae``."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error


def register_method(spec: MethodSpec) -> None:
    """Registers a method under its name, for configs, commands and model cards.

    Raises:
        ValueError: if another method already has this name.
    """
    if _registered.get(spec.name, spec) != spec:
        raise ValueError(f"there is a method {spec.name!r} already; call this one otherwise")
    _registered[spec.name] = spec


def find_method(name: str) -> MethodSpec:
    """Returns the method called ``name``.

    Raises:
        ValueError: if there is none; the message lists the known names.
    """
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"method={name!r}; known: {known}{did_you_mean(name, METHODS)}")
    return METHODS[name]


def summaries() -> dict[str, str]:
    """Returns a one-line summary of each method by name, without importing this package's methods.

    Names and summaries are parsed from their source files, so that ``--help`` does not wait for
    JAX.
    """
    _load_entry_points()
    lines = {name: spec.summary for name, spec in _registered.items()}
    for path in pathlib.Path(__file__).parent.glob("*.py"):
        lines |= _summary_in(path.read_text(encoding="utf-8"))
    return dict(sorted(lines.items()))


def _summary_in(source: str) -> dict[str, str]:
    """Returns ``{name: summary}`` of the ``SPEC`` in a module's source; {} if it has none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SPEC":
            values = {keyword.arg: keyword.value for keyword in node.value.keywords}
            return {ast.literal_eval(values["name"]): ast.literal_eval(values["summary"])}
    return {}


@functools.cache
def _discover() -> None:
    """Registers the methods of this folder and of entry points, once."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        spec = getattr(importlib.import_module(module.name), "SPEC", None)
        if spec is not None:
            register_method(spec)
    _load_entry_points()


@functools.cache
def _load_entry_points() -> None:
    """Registers the methods of other packages, once."""
    for entry in importlib.metadata.entry_points(group="ddae_jax.methods"):
        register_method(entry.load())
