"""JSON files beside weights: configs, settings of image processors, and indices of weights."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ddae_jax.data.disks import is_file, read_file
from ddae_jax.interop.file_signatures import SIGNATURE_BYTES, describe_wrong_file

_SERVER_KEYS = {"error", "errors", "message", "detail", "error_code"}
"""Keys of the JSON that servers answer with instead of a file."""


def read_json(path: pathlib.Path, purpose: str) -> dict[str, Any]:
    """Reads a JSON object, in any encoding that JSON allows.

    Args:
        path: the file.
        purpose: what it is needed for, for the error if it is missing.

    Raises:
        FileNotFoundError: if there is no such file.
        ReadFailed: if the disk or the network is at fault.
        ValueError: if the file is no JSON, no object, or a server's error message.
    """
    if not is_file(path):
        raise FileNotFoundError(f"{path} is missing: {purpose}")
    raw = read_file(path)
    try:
        values = json.loads(raw)
    except ValueError as error:
        wrong_file = describe_wrong_file(raw[:SIGNATURE_BYTES])
        fault = wrong_file or f"{'no JSON' if raw else 'empty'}: {error}"
        raise ValueError(f"{path} is {fault}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds {values!r}; it must hold keys and values, in {{}}")
    if values and values.keys() <= _SERVER_KEYS:
        wrong_file = describe_wrong_file(raw[:SIGNATURE_BYTES]) or "a message of a server"
        raise ValueError(f"{path} is {wrong_file}")
    return dict(values)


def settings_at(key: str, config: Mapping[str, Any], file: pathlib.Path) -> Mapping[str, Any]:
    """Returns the JSON object under a key of a config; an empty one if there is no such key.

    Raises:
        ValueError: if the value is no JSON object. The message names ``file``.
    """
    settings = config.get(key)
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"{file}: {key!r} is {settings!r}; it must hold keys and values, in {{}}")
    return settings or {}
