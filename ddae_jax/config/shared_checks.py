"""What the checks of all jobs share: each key by itself, and keys that any job may ignore."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.keys import KEYS
from ddae_jax.config.schema import Key, flatten
from ddae_jax.config.values import check_keys, on_command_line, type_in_words
from ddae_jax.models.weight_decay import check_decay_also
from ddae_jax.suggestions import did_you_mean

Ignored = tuple[bool, tuple[str, ...], str]
"""Whether keys with some prefixes have no effect, and why."""


def check_each_key(config: ConfigDict) -> None:
    """Raises ``ValueError``, naming key, value and what is allowed, for what no config may hold."""
    check_keys(config)
    flat = flatten(config)
    keys = KEYS[config.job]
    for name, key in keys.items():
        check_words(name, key, flat[name])
    for name, key in keys.items():
        if key.kind is tuple:
            _check_length(name, key.length, flat)
            for value in flat[name]:
                _check_number(name, key, value, shown=flat[name])
        elif key.kind in (int, float):
            _check_number(name, key, flat[name])
    with named_by_key(decay_also="optimizer.decay_also"):
        check_decay_also(config.optimizer.decay_also)
    for name, key in keys.items():
        if key.ascends and flat[name][0] > flat[name][1]:
            raise ValueError(f"{name}={flat[name]}; its start must not exceed its end")
        if key.not_above and flat[name] > flat[key.not_above]:
            raise ValueError(
                f"{name}={flat[name]} must not exceed {key.not_above}={flat[key.not_above]}"
            )
    if config.data.source == "tfds" and not config.data.name:
        raise ValueError(
            "data.source='tfds' needs the name of a dataset, such as data.name='cifar10'"
        )


def check_words(name: str, key: Key, value: Any) -> None:
    """Raises ``ValueError`` for a value that is none of the words which a key may hold."""
    words = key.words
    if words and value not in words:
        raise ValueError(f"{name}={value!r}; known: {_listed(words)}{did_you_mean(value, words)}")


def ignored_of_data(config: ConfigDict) -> list[Ignored]:
    """Returns the keys of the data that its source does not ask for."""
    source = config.data.source
    return [
        (source != "tfds", ("data.name",), f"data.source={source!r} reads no dataset by name"),
        (source == "digits", ("data.data_dir",), "data.source='digits' comes with scikit-learn"),
    ]


def ignored_of_weight_decay(config: ConfigDict) -> list[Ignored]:
    """Returns the key that adds to what is decayed, where nothing is."""
    is_none = config.optimizer.weight_decay == 0
    return [(is_none, ("optimizer.decay_also",), "optimizer.weight_decay=0 decays nothing")]


@contextlib.contextmanager
def named_by_key(**keys: str) -> Iterator[None]:
    """Lets an error about a function's argument name the key that it comes from."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, key in keys.items():
            message = re.sub(rf"(?<![\w.]){name}=", f"{key}=", message)
        raise ValueError(message) from None


def _check_number(name: str, key: Key, value: float, shown: Any = None) -> None:
    if key.has_in_range(value):
        return
    it_is = f"{value}; it is" if shown is None else f"{shown}; each is"
    raise ValueError(f"{name}={it_is} {key.range_in_words(value)}")


def _check_length(name: str, length: int | str | None, flat: Mapping[str, Any]) -> None:
    values = flat[name]
    if isinstance(length, str):
        count = flat[length]
        if len(values) != count:
            message = (
                f"{name}={values}; {length}={count} asks for {_count(count, 'value')} in each of "
                "data.mean and data.std: set both"
            )
            if count not in (1, 3):
                raise ValueError(
                    f"{message}; python -m ddae_jax.pixel_statistics, with the same --config "
                    "arguments, computes them of the images"
                )
            such_as = (0.5,) if count == 1 else KEYS[flat["job"]][name].default
            raise ValueError(
                f"{message}, such as {name}={such_as} in the config file, or "
                f"--config.{name}={on_command_line(such_as)}"
            )
    elif length is not None and len(values) != length:
        raise ValueError(f"{name}={values}; it is {type_in_words(name, flat['job'])}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(known: Iterable) -> str:
    return ", ".join(repr(word) for word in known)
