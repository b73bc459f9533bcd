"""What the jobs' command lines share: flags, devices, and how errors reach the person."""

import contextlib
import errno
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from ddae_jax.config import check_config, flatten, unknown_key
from ddae_jax.data.pipeline import TooManyCorruptImages
from ddae_jax.training.agreement import OtherProcessFailed
from ddae_jax.training.checkpoint import CheckpointError
from ddae_jax.training.logging import set_up_logging
from ddae_jax.training.loop import NonFiniteLoss
from ddae_jax.training.workdir import WorkdirInUse

_BAD_INPUT = (ValueError, OSError, WorkdirInUse, CheckpointError, absl_flags.Error)
_BAD_INPUT += (OtherProcessFailed,)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUN_ENDERS = (CheckpointError, NonFiniteLoss, TooManyCorruptImages)


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
        _end(error, 1)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        _end(OSError(f"{error}; make room, and the same command continues the run"), 1)


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
    argv: Sequence[str] | None, usage: str, define: Callable[[absl_flags.FlagValues], None]
) -> absl_flags.FlagValues:
    """:func:`parse_flags` with ``--config=FILE`` and ``--config.key=value``; the config is checked.

    Raises:
        ValueError: naming the nearest known key, or what its value may be.
    """
    argv = sys.argv[1:] if argv is None else list(argv)

    def define_all(flags):
        config_flags.DEFINE_config_file(
            "config",
            None,
            "Config file, such as configs/digits.py; --config.KEY=VALUE changes one of its keys.",
            flag_values=flags,
            sys_argv=["", *argv],
        )
        define(flags)

    _check_config_arguments(argv)
    try:
        flags = parse_flags(argv, usage, define_all)
    except absl_flags.Error as error:
        raise ValueError(_explain_override(argv, error)) from error
    if flags.config is None:
        raise ValueError("--config=FILE is missing; configs/digits.py runs anywhere")
    check_config(flags.config)
    return flags


def start_devices(is_distributed: bool) -> bool:
    """Joins the other processes, if any, and sets up the log. True in the first process."""
    if is_distributed:
        jax.distributed.initialize()
    is_primary = jax.process_index() == 0
    set_up_logging(is_primary)
    return is_primary


def use_compilation_cache(folder: pathlib.Path) -> None:
    """Keeps compiled programs in a folder, so that a restart need not compile them again."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _check_config_arguments(argv: Sequence[str]) -> None:
    """Finds a missing config file, and unknown keys, before the flag library trips over them."""
    path = _value_of("config", argv)
    if path is None:
        return
    file = path.partition(":")[0]
    if not os.path.isfile(file):
        raise FileNotFoundError(f"--config={file}: there is no such file; see configs/")
    # Config files may import their neighbours, as configs.NAME, wherever they lie.
    sys.path.append(str(pathlib.Path(file).resolve().parent.parent))
    known = flatten(load_config(path))
    for given in argv:
        name = given.lstrip("-").partition("=")[0]
        for prefix in ("config.", "noconfig."):
            key = name.removeprefix(prefix)
            if given.startswith("-") and name.startswith(prefix) and key not in known:
                raise ValueError(unknown_key(key))


def load_config(path: str) -> ConfigDict:
    """What a config file's ``get_config()`` returns; ``FILE:ARGUMENT`` hands it an argument.

    Raises ``ValueError`` if the file has none, or sets a key that does not exist.
    """
    file, has_argument, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("config_file", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument) if has_argument else module.get_config()
    except Exception as error:  # whatever somebody's own program does wrong
        text = " ".join(str(error).split())
        raise ValueError(f"--config={file}: {type(error).__name__}: {text}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"--config={file}: get_config() gives {config!r}, not a ConfigDict")
    return config


def _explain_override(argv: Sequence[str], error: Exception) -> str:
    path = _value_of("config", argv)
    text = " ".join(str(error).split())
    if path is None:
        return text
    known = flatten(load_config(path))
    for given in argv:
        name, _, value = given.lstrip("-").partition("=")
        key = name.removeprefix("config.")
        if name.startswith("config.") and key in known and name in text:
            kind = type(known[key]).__name__
            return (
                f"config.{key}={value!r} is of the wrong type; it is of type {kind}, "
                f"such as {known[key]!r}"
            )
    return text


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    for position, given in enumerate(argv):
        name, has_value, value = given.lstrip("-").partition("=")
        if given.startswith("-") and name == flag:
            following = argv[position + 1] if position + 1 < len(argv) else None
            return value if has_value else following
    return None


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
