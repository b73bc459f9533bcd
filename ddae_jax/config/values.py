"""Values of keys: their types, how they are stored and typed in, and how two configs differ.

``job`` names the command that a config belongs to (see :data:`ddae_jax.config.defaults.JOBS`).
Configs stored before this key existed are pretraining configs.
"""

import contextlib
import json
import os
from collections.abc import Container, Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.defaults import JOBS, defaults_by_key, defaults_of
from ddae_jax.config.earlier import DEFAULTS_VERSION, EARLIER_DEFAULTS, RENAMED, RETIRED
from ddae_jax.config.keys import ALL_KEYS, KEYS
from ddae_jax.config.schema import Key, flatten
from ddae_jax.config.unknown_keys import unknown_key

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def check_keys(config: ConfigDict) -> None:
    """Raises ``ValueError`` unless a config has every key, no other one, and the right types."""
    flat = flatten(config)
    job = job_of(flat)
    for key, value in flat.items():
        typed(key, value, job)
    missing = [key for key in defaults_by_key(job) if key not in flat]
    if missing:
        raise ValueError(
            f"config.{missing[0]} is missing; a config starts from "
            f"ddae_jax.config.{JOBS[job].__name__}(), which has every key"
        )


def job_of(config: Mapping[str, Any]) -> str:
    """Returns the job that a config is for. Raises ``ValueError`` if it is for none."""
    job = config.get("job", "pretrain")
    if not isinstance(job, str):
        raise ValueError(f"config.job={job!r} is of the wrong type; it is text, such as 'pretrain'")
    if job not in JOBS:
        raise ValueError(f"config.job={job!r}; known: {', '.join(map(repr, JOBS))}")
    return job


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as nested dicts and lists, as JSON stores it."""
    return json.loads(config.to_json())


def from_plain(plain: Mapping[str, Any], file: str | os.PathLike = "config.json") -> ConfigDict:
    """Reads a stored config; keys renamed since get their new names, retired ones are left out.

    Keys that are younger than the stored config get the value of what was done before there was a
    choice: see :data:`ddae_jax.config.earlier.EARLIER_DEFAULTS`.

    Args:
        plain: the config as :func:`to_plain` returns it.
        file: the file that it was read from, for messages.

    Raises:
        ValueError: naming file and key, if ``plain`` is no dict, has keys that no config has or
            values of the wrong type, or is of a later version than this one.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{file} holds {plain!r}; it must hold the keys of a config, in {{}}")
    try:
        job = job_of(plain)
        config = defaults_of(job, _version_of(plain, job))
        for key, value in flatten(plain).items():
            if key in RETIRED:
                continue
            key = RENAMED.get(key, key)
            config.update_from_flattened_dict({key: typed(key, value, job)})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return config


def take_stored(
    config: ConfigDict,
    stored: Mapping[str, Any],
    given: Container[str],
    file: str | os.PathLike = "config.json",
    *,
    only_defaults: bool = False,
) -> dict[str, Any]:
    """Replaces a config's values by those of a run that began with earlier defaults.

    Where the two differ, nothing tells whether a default has changed since or somebody has edited
    the config file. The stored value then counts, except for keys that are given on the command
    line or that are free to change. Nothing is taken from a run of another method.

    Args:
        config: the config to continue the run with; is changed in place.
        stored, file: see :func:`from_plain`, which also says what is raised.
        given: keys that the command line sets.
        only_defaults: whether to leave alone keys whose defaults have not changed since.

    Returns:
        The values that were replaced, by key.
    """
    before = from_plain(stored, file)
    was, now = flatten(before), flatten(config)
    is_meant = all(was.get(key) == now.get(key) for key in ("job", "method"))
    if before.defaults_version == DEFAULTS_VERSION or not is_meant:
        return {}
    since = range(before.defaults_version, DEFAULTS_VERSION)
    changed = {key for version in since for key in EARLIER_DEFAULTS[version].get(was["job"], {})}
    replaced = {
        key: value
        for key, value in now.items()
        if was[key] != value
        and key not in given
        and not is_free(key)
        and (key in changed or not only_defaults)
    }
    config.update_from_flattened_dict({key: was[key] for key in replaced})
    config.defaults_version = before.defaults_version
    return replaced


def contradictions(
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    file: str | os.PathLike = "config.json",
) -> list[str]:
    """Returns a line for each key in which a run's config contradicts the one to continue it with.

    Args:
        stored, file: the run's config, see :func:`from_plain`, which also says what is raised.
        given: the config to continue it with, as :func:`to_plain` returns it.
    """
    stored, given = flatten(to_plain(from_plain(stored, file))), flatten(given)
    return [
        f"{key}: {stored[key]!r} in the workdir, {value!r} given"
        for key, value in given.items()
        if stored[key] != value and not is_free(key)
    ]


def typed(key: str, value: Any, job: str = "pretrain") -> Any:
    """Converts a value to the type of its key: lists to tuples, whole numbers to floats.

    Raises ``ValueError`` for a value of the wrong type, and for a name that is no key.
    """
    row = _row(key, job)
    kind = row.kind
    if kind is tuple and isinstance(value, list | tuple):
        if all(_is_number(item, row.item) for item in value):
            return tuple(value)
    elif kind in (int, float):
        if _is_number(value, kind):
            with contextlib.suppress(OverflowError):
                return kind(value)
    elif isinstance(value, kind):
        return value
    raise ValueError(
        f"config.{key}={value!r} is of the wrong type; it is {type_in_words(key, job)}"
    )


def parse_value(key: str, text: str, job: str = "pretrain") -> Any:
    """Reads the value of a key from a command line: ``3``, ``true``, ``224,224``.

    Raises ``ValueError`` for a text that is no such value, and for a name that is no key.
    """
    row = _row(key, job)
    with contextlib.suppress(ValueError, KeyError):
        if row.kind is bool:
            return _BOOLEANS[text.strip().lower()]
        if row.kind is not tuple:
            return row.kind(text)
        values = typed(key, _parse_numbers(text), job)
        if not isinstance(row.length, int) or len(values) == row.length:
            return values
    raise ValueError(
        f"config.{key}={text!r} is of the wrong type; it is {row.type_in_words()}, such as "
        f"--config.{key}={on_command_line(row.shown)}"
    )


def type_in_words(key: str, job: str = "pretrain") -> str:
    """Describes the value of a key: ``2 whole numbers, such as (224, 224)``."""
    row = KEYS[job][key]
    words = row.type_in_words()
    return words if row.kind is bool else f"{words}, such as {row.shown!r}"


def _version_of(plain: Mapping[str, Any], job: str) -> int:
    """Returns the version of the defaults that a stored config began with.

    Configs of the first version do not store it.
    """
    version = typed("defaults_version", plain.get("defaults_version", 1), job)
    if not 1 <= version <= DEFAULTS_VERSION:
        raise ValueError(
            f"config.defaults_version={version}; this ddae_jax knows 1 to {DEFAULTS_VERSION}: "
            "update it to read what a later one has stored"
        )
    return version


def _parse_numbers(text: str) -> tuple[float, ...]:
    """Reads numbers separated by commas, in brackets or not; ``ValueError`` for anything else."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    items = [item.strip() for item in text.split(",")]
    if items[-1] == "":  # (), or the comma of (1,)
        items.pop()
    return tuple(_parse_number(item) for item in items)


def _parse_number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)


def _row(key: str, job: str) -> Key:
    """Finds the row of a key. Raises ``ValueError`` for a name that is no key of the job."""
    if key not in KEYS[job]:
        raise ValueError(unknown_key(key, job))
    return KEYS[job][key]


def on_command_line(value: Any) -> str:
    """Writes a value as it stands after ``--config.KEY=``."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def is_free(key: str) -> bool:
    """Tells whether a key may differ when a run is continued."""
    return ALL_KEYS[key].is_free
