"""A key of a config: its default, what it means, and what it may hold.

:mod:`ddae_jax.config.keys` is the table of all keys; :mod:`ddae_jax.config.defaults` makes the
configs of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

ABOVE_0 = 5e-324
"""The smallest number there is: the least of a key that must be more than 0."""

MANY = 10**9
"""The most of whatever is counted: more can only be a slip of the keyboard."""

_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


@dataclasses.dataclass(frozen=True)
class Key:
    """A row of the table: all that is known of one key.

    Attributes:
        default: the value it has where nobody sets another; its type is the key's.
        doc: one line that explains the key by itself.
        within: the least and the most that a number may be, or each number of a tuple; a least of
            :data:`ABOVE_0` excludes 0. None for what the checks of several keys decide.
        choices: the words that the key may hold, or a function that returns them, for words that
            belong to a module which takes long to import.
        length: how many values a tuple has: a number, or the key that holds this number; None for
            any number of values.
        item: the type of a tuple's values.
        ascends: whether the first of two values must not exceed the second.
        not_above: the key whose value this one must not exceed.
        example: a value to show where the default is empty.
        reason: why the values lie in their range, for messages.
        is_free: whether it may differ when a run is continued: it does not change what the run
            computes, or says where something is, not what.
        names_folder: whether the value is a path. It is stored as an absolute one, so that it can
            be found from elsewhere.
    """

    default: bool | int | float | str | tuple
    doc: str
    _: dataclasses.KW_ONLY
    within: tuple[float, float] | None = None
    choices: tuple[str, ...] | Callable[[], Iterable[str]] = ()
    length: int | str | None = None
    item: type = float
    ascends: bool = False
    not_above: str | None = None
    example: Any = None
    reason: str = ""
    is_free: bool = False
    names_folder: bool = False

    @property
    def kind(self) -> type:
        """The type of its values: bool, int, float, str or tuple."""
        return type(self.default)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it may hold; empty for a key that is not limited to words."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    @property
    def shown(self) -> bool | int | float | str | tuple:
        """A value to show in messages: the example, or else the default."""
        return self.default if self.example is None else self.example

    def type_in_words(self) -> str:
        """Describes the type, as ``2 whole numbers``."""
        if self.kind is not tuple:
            return _KINDS[self.kind]
        words = "whole numbers" if self.item is int else "numbers"
        return f"{self.length} {words}" if isinstance(self.length, int) else words

    def range_in_words(self, value: float = 0) -> str:
        """Describes the range, as ``in [0, 1]``; empty if there is none.

        Args:
            value: that is outside. If it is not finite, the text says that it must be.
        """
        if self.within is None:
            return ""
        least, most = self.within
        is_finite = abs(value) < math.inf
        if least == ABOVE_0 and most == math.inf:
            allowed = "more than 0" if is_finite else "a finite number, more than 0"
        elif least == ABOVE_0:
            allowed = f"more than 0, at most {most}"
        elif most < math.inf:
            allowed = f"in [{least}, {most}]"
        else:
            allowed = f"at least {least}" if is_finite else f"finite, at least {least}"
        return f"{allowed}, {self.reason}" if self.reason else allowed

    def has_in_range(self, value: float) -> bool:
        """Tells whether a number is finite and in the range; NaN never is."""
        if self.within is None:
            return True
        least, most = self.within
        return least <= value <= most and abs(value) < math.inf


def make_config(keys: Mapping[str, Key]) -> ConfigDict:
    """Makes a config that has each key with its default; keys cannot be added to it.

    Args:
        keys: by their names, in which a dot separates section and key.
    """
    config = ConfigDict()
    for name, key in keys.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[last] = key.default
    config.lock()
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns values by dotted key: ``{"model.size": "B", ...}``."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
