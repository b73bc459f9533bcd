"""Command lines: flags, and the config that ``--config`` and ``--config.KEY`` make."""

import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags as absl_flags
from ml_collections import ConfigDict

from ddae_jax.config.checks import check_config
from ddae_jax.config.schema import DEFAULTS_VERSION, defaults_by_key
from ddae_jax.config.values import (
    check_keys,
    job_of,
    parse_value,
    type_in_words,
    unknown_key,
)
from ddae_jax.jobs.exits import CommandEnded

_PACKAGE = pathlib.Path(__file__).parents[1]


def require(name: str, value: str, flags: absl_flags.FlagValues) -> None:
    """Lets :func:`parse_flags` ask for a flag that is missing, whose value looks like ``value``."""
    absl_flags.register_validator(
        name, lambda given: given is not None, f"--{name}={value} is missing", flag_values=flags
    )


def parse_flags(
    argv: Sequence[str] | None, usage: str, define: Callable[[absl_flags.FlagValues], None]
) -> absl_flags.FlagValues:
    """The command line's flags; ``--help`` shows the usage and ends.

    Args:
        argv: arguments after the program's name; the command line's by default.
        usage: what the command does.
        define: adds the command's flags.

    Raises:
        absl.flags.Error: for unknown flags or arguments that are no flags.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    flags = absl_flags.FlagValues()
    define(flags)
    if {"--help", "-h", "-help"} & set(argv):
        print(f"{usage.strip()}\n\nFlags:\n{_describe(flags)}")
        raise CommandEnded(0)
    rest = flags([usage.split(None, 1)[0], *argv])
    if len(rest) > 1:
        raise absl_flags.Error(f"{rest[1]!r} is no flag; flags look like --workdir=FOLDER")
    absl_flags.FLAGS.mark_as_parsed()  # libraries may look at the global ones
    return flags


def parse_config_flags(
    argv: Sequence[str] | None,
    usage: str,
    define: Callable[[absl_flags.FlagValues], None],
    job: str | None = "pretrain",
) -> absl_flags.FlagValues:
    """:func:`parse_flags` with ``--config=FILE`` and ``--config.KEY=VALUE``; the config is checked.

    Tuples are written with commas, ``--config.model.image_size=224,224``; keys that are True or
    False also as ``--config.data.flip`` and ``--noconfig.data.flip``. The last of several values
    counts. ``flags.config`` is the config.

    Args:
        argv, usage, define: see :func:`parse_flags`.
        job: that the config must be for; None for whatever job the config names.

    Raises:
        ValueError: naming the nearest known key, or what its value may be; for another job's
            config.
        FileNotFoundError: if there is no such config file.
        absl.flags.Error: as :func:`parse_flags`.
    """
    flags, _ = read_config_flags(argv, usage, define, job)
    check_config(flags.config)
    return flags


def read_config_flags(
    argv: Sequence[str] | None,
    usage: str,
    define: Callable[[absl_flags.FlagValues], None],
    job: str | None = "pretrain",
) -> tuple[absl_flags.FlagValues, frozenset[str]]:
    """:func:`parse_config_flags` without the check, which whoever changes the config has to do.

    Returns:
        The flags; and which keys ``--config.KEY=VALUE`` sets.
    """

    def define_all(flags):
        absl_flags.DEFINE_string(
            "config",
            None,
            "Config file, such as configs/digits.py; --config.KEY=VALUE changes one of its keys.",
            flag_values=flags,
        )
        define(flags)

    argv = sys.argv[1:] if argv is None else list(argv)
    argv = absl_flags.FlagValues().read_flags_from_files(argv)
    job = job or _job_of_config(argv)
    changes, rest = _split_changes(argv, job)
    flags = parse_flags(rest, usage, define_all)
    if not flags.config or flags.config.startswith("-"):
        raise ValueError("--config=FILE is missing; configs/digits.py runs anywhere")
    config = load_config(flags.config, job)
    for change in changes:
        config.update_from_flattened_dict({change.key: change.value()})
    if config.defaults_version != DEFAULTS_VERSION:
        raise ValueError(
            f"config.defaults_version={config.defaults_version} is not to be set: it tells of a "
            f"stored config which defaults it began with; those of today are {DEFAULTS_VERSION}"
        )
    flags["config"].value = config
    return flags, frozenset(change.key for change in changes)


def load_config(path: str, job: str | None = "pretrain") -> ConfigDict:
    """What a config file's ``get_config()`` returns; ``FILE:ARGUMENT`` hands it an argument.

    The file may import its neighbours, as ``configs.NAME``, wherever they lie. ``job`` is the one
    that it must be for; None for any.

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


class _Change(NamedTuple):
    """A key that the command line changes, as it was written there."""

    key: str
    text: str | None
    is_negated: bool
    job: str

    def value(self) -> bool | int | float | str | tuple:
        """Raises ``ValueError`` for what is no key or no value of it."""
        is_boolean = _is_boolean(self.key, self.job)
        if self.is_negated and (self.text is not None or is_boolean is False):
            raise ValueError(
                f"--noconfig.{self.key} is for keys that are True or False, and takes no value; "
                f"write --config.{self.key}=VALUE"
            )
        if self.text is None and is_boolean:
            return not self.is_negated
        if self.text is None and is_boolean is False:
            raise ValueError(
                f"--config.{self.key} has no value; write --config.{self.key}=VALUE, where VALUE "
                f"is {type_in_words(self.key, self.job)}"
            )
        return parse_value(self.key, self.text or "", self.job)


def _job_of_config(argv: Sequence[str]) -> str:
    """The job of the config that a command line names; pretraining if it names none."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            return job_of(load_config(found[1] or following, None))
    return "pretrain"


def _split_changes(argv: Sequence[str], job: str) -> tuple[list[_Change], list[str]]:
    """What a command line changes in the config, and its other arguments."""
    changes, rest = [], []
    given = list(argv)
    while given:
        argument = given.pop(0)
        found = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if argument == "--":
            return changes, [*rest, argument, *given]
        if not found:
            rest.append(argument)
            continue
        is_negated, key, text = bool(found[1]), found[2], found[3]
        takes_value = text is None and not is_negated and _is_boolean(key, job) is False
        if takes_value and given and not re.match("--?[A-Za-z]", given[0]):
            text = given.pop(0)
        changes.append(_Change(key, text, is_negated, job))
    return changes, rest


def _is_boolean(key: str, job: str) -> bool | None:
    """Whether a key is True or False; None for what is no key."""
    defaults = defaults_by_key(job)
    return isinstance(defaults[key], bool) if key in defaults else None


def _explain_config_error(file: str, error: Exception, job: str) -> str:
    """What a config file does wrong, and in which line of it or of its neighbours."""
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
    """What is wrong with the key that a line sets or reads; None if that is not what is wrong."""
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
    if key not in defaults_by_key(job):
        return unknown_key(key, job)
    return f"config.{key} is of the wrong type; it is {type_in_words(key, job)}"


def _describe(flags: absl_flags.FlagValues) -> str:
    lines = []
    for name in sorted(flags):
        flag = flags[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)
