"""Config files: Python files whose ``get_config()`` returns a config."""

import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback

from ml_collections import ConfigDict

from ddae_jax.config.keys import KEYS
from ddae_jax.config.unknown_keys import unknown_key
from ddae_jax.config.values import check_keys, job_of, type_in_words

_PACKAGE = pathlib.Path(__file__).parents[1]


def load_config(path: str, job: str | None = "pretrain") -> ConfigDict:
    """Returns the config of a file's ``get_config()``; ``FILE:ARGUMENT`` hands that an argument.

    The file may import its neighbours, as ``configs.NAME``, wherever they lie.

    Args:
        path: the file, and after a colon the argument, if there is one.
        job: that the config must be for; None for any.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Python file with a ``get_config()``, or the config lacks a key, has
            one that does not exist, or a value of the wrong type; naming file, line and key.
    """
    file, has_argument, argument = path.partition(":")
    if not os.path.isfile(file):
        what = "it is a folder, not a file" if os.path.isdir(file) else "there is no such file"
        raise FileNotFoundError(f"--config={file}: {what}; see configs/")
    if not file.endswith(".py"):
        raise ValueError(f"--config={file}: a config is a Python file (.py) with a get_config()")
    above = str(pathlib.Path(file).resolve().parent.parent)
    if above not in sys.path:
        sys.path.append(above)
    spec = importlib.util.spec_from_file_location("config_file", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        takes_argument = get_config and inspect.signature(get_config).parameters
        if get_config and (takes_argument or not has_argument):
            config = get_config(argument) if has_argument else get_config()
    except Exception as error:  # whatever somebody's own program does wrong
        explained = _explain_config_error(file, error, job or "pretrain")
        raise ValueError(f"--config={file}{explained}") from error
    if get_config is None:
        raise ValueError(f"--config={file}: it has no function get_config()")
    if has_argument and not takes_argument:
        raise ValueError(
            f"--config={file} takes no ':{argument}'; those that take a method and a supervision "
            "are configs/cifar10.py, configs/folder.py and configs/imagenet.py"
        )
    if not isinstance(config, ConfigDict):
        raise ValueError(f"--config={file}: get_config() gives {config!r}, not a ConfigDict")
    try:
        check_keys(config)
    except ValueError as error:
        raise ValueError(f"--config={file}: {error}") from None
    if job not in (None, job_of(config)):
        raise ValueError(
            f"--config={file} is a config of `python -m ddae_jax.{config.job}`, not of {job}"
        )
    config.lock()
    return config


def _explain_config_error(file: str, error: Exception, job: str) -> str:
    """Says what a config file does wrong, and in which line of it or of its neighbours."""
    folder = pathlib.Path(file).resolve().parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).resolve().parent == folder
    ]
    text = " ".join(str(error).split())
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, ValueError) and pathlib.Path(raised_in).is_relative_to(_PACKAGE):
        return f": {text}"  # it was written for people
    if not frames:
        return f": {type(error).__name__}: {text}"
    line = frames[-1].line
    where = f" ({pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno}: {line})"
    return f"{where}: {_explain_key(error, line, job) or f'{type(error).__name__}: {text}'}"


def _explain_key(error: Exception, line: str, job: str) -> str | None:
    """Says what is wrong with the key that a line sets or reads; None if the key is right."""
    said_by_config_dict = (
        r"\W*Key \"(\w+)\" does not exist"  # where it is set
        if isinstance(error, AttributeError | KeyError)
        else r"Could not override field '(\w+)'"
    )
    found = re.match(said_by_config_dict, str(error))
    if isinstance(error, AttributeError):
        found = found or re.match(r"[\\']*(\w+)[\\']*(?:nDid you mean|$)", str(error))  # read
    if not found:
        return None
    path = re.search(rf"\.((?:\w+\.)*{found[1]}\b(?:\.\w+)*)", line)
    key = path[1] if path else found[1]
    if key not in KEYS[job]:
        return unknown_key(key, job)
    return f"config.{key} is of the wrong type; it is {type_in_words(key, job)}"
