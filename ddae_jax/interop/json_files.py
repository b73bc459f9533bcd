"""JSON files beside weights: configs, settings of image processors, and indices of weights."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ddae_jax.data.disks import is_file, read_file
from ddae_jax.interop.file_signatures import SIGNATURE_BYTES, describe_wrong_file

_OF_SERVERS = {"error", "errors", "message", "detail", "error_code"}
"""Keys of what servers answer with."""


def read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    """The keys and values in a file.

    Raises ``FileNotFoundError``, saying ``what`` it is for, or ``ValueError`` if it has none.
    """
    if not is_file(path):
        raise FileNotFoundError(f"{path} is missing: {what}")
    raw = read_file(path)
    try:
        found = json.loads(raw)  # of any encoding that JSON may have
    except ValueError as error:
        other = describe_wrong_file(raw[:SIGNATURE_BYTES])
        told = f"is {other}" if other else f"is {'no JSON' if raw else 'empty'}: {error}"
        raise ValueError(f"{path} {told}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds {found!r}; it must hold keys and values, in {{}}")
    if found and found.keys() <= _OF_SERVERS:
        raise ValueError(f"{path} is {describe_wrong_file(raw[:SIGNATURE_BYTES])}")
    return dict(found)


def settings_at(key: str, config: Mapping[str, Any], file: pathlib.Path) -> Mapping[str, Any]:
    """Settings that lie under a key of a config; none if there is no such key.

    Raises ``ValueError``, naming the file, for what is none.
    """
    found = config.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(f"{file}: {key!r} is {found!r}; it must hold keys and values, in {{}}")
    return found or {}
