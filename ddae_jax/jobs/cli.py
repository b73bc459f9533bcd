"""What the jobs' command lines share: flags, devices, and how errors reach the person."""

import contextlib
import importlib.util
import inspect
import logging
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn

import jax
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
from ddae_jax.data.annotations import BadAnnotation
from ddae_jax.data.disks import ReadFailed
from ddae_jax.data.files import NoMemoryLeft
from ddae_jax.data.labels import BadLabel
from ddae_jax.data.readable import NothingReadable
from ddae_jax.data.train_loader import DataChanged, TooManyCorruptImages
from ddae_jax.data.uniform_size import OddSize
from ddae_jax.data.workers import WorkerLost
from ddae_jax.training.checkpoint import CheckpointError
from ddae_jax.training.loop import NonFiniteLoss
from ddae_jax.training.multihost import OtherProcessFailed
from ddae_jax.training.reading import ReadingHangs
from ddae_jax.training.workdir import DISK_FULL, WorkdirInUse

_BAD_INPUT = (ValueError, OSError, WorkdirInUse, CheckpointError, absl_flags.Error)
_BAD_INPUT += (OtherProcessFailed, NoMemoryLeft)
_RUN_ENDERS = (CheckpointError, DataChanged, NonFiniteLoss, TooManyCorruptImages)
_RUN_ENDERS += (OtherProcessFailed, BadAnnotation, BadLabel, NothingReadable)
_RUN_ENDERS += (NoMemoryLeft, OddSize, ReadFailed, ReadingHangs, WorkerLost)


_PACKAGE = pathlib.Path(__file__).parent


class CommandEnded(SystemExit):
    """The command ends here, with a message already shown. ``code`` is its exit status."""


@contextlib.contextmanager
def bad_input_is_explained() -> Iterator[None]:
    """Shows what is wrong with the input in a line or two, and ends with status 2."""
    try:
        yield
    except _BAD_INPUT as error:
        _end(error, 2)


@contextlib.contextmanager
def run_ends_are_explained() -> Iterator[None]:
    """Shows why a run could not go on, and ends with status 1; bugs keep their traceback."""
    try:
        yield
    except _RUN_ENDERS as error:
        _end(error, getattr(error, "exit_status", 1))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _end(OSError(f"{error}; make room, and the same command continues the run"), 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _end(
            MemoryError(
                f"{str(error).splitlines()[0]} Less memory is needed with "
                "optimizer.micro_batches=2, which takes the same batch in two parts, and with "
                "model.rematerialization=full; a run that has begun goes on with either by "
                "--allow_config_changes. A smaller batch_size or model.size takes a new --workdir."
            ),
            1,
        )


def run(main: Callable[[], int]) -> NoReturn:
    """Ends the process with a job's status, at once.

    Threads that still compile, download or compute what nobody waits for any more would keep it,
    or crash an interpreter that is being taken down under them.
    """
    try:
        status = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        status = 1
    if jax.process_count() > 1:
        sys.exit(status)  # the others are told
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def one_ends_all() -> Iterator[None]:
    """Ends this process at once if the body fails and there are others, with a message.

    The others wait for this one in their next collective operation. So would this one, if it left
    in good order: closing checkpoints takes all processes. JAX ends them when it misses this one.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, _RUN_ENDERS):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError) and _is_of_others(error):
            print(
                f"error: another process of this run is gone, or cannot be reached: "
                f"{str(error).splitlines()[0]}\nThe same command, started on all of them again, "
                "continues from the latest checkpoint.",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(getattr(error, "exit_status", 1))


def _is_of_others(error: Exception) -> bool:
    """Whether an error is about what the processes of a run send each other."""
    words = ("gloo", "collective", "connection", "heartbeat", "unavailable", "peer", "coordination")
    return any(word in str(error).lower() for word in words)


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


def _end(error: Exception, status: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise CommandEnded(status) from error
