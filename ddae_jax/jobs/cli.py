"""Command lines: flags, and the config set by ``--config=FILE`` and ``--config.KEY=VALUE``.

Nothing here imports JAX, so that ``--help`` is shown at once.
"""

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags as absl_flags

from ddae_jax.config.earlier import DEFAULTS_VERSION
from ddae_jax.config.files import load_config
from ddae_jax.config.keys import KEYS
from ddae_jax.config.reference import WIDTH, key_listing
from ddae_jax.config.values import job_of, parse_value, type_in_words

_WHERE_KEYS_ARE = "--config.KEY=VALUE sets a key of the config. docs/config.md lists the keys."


class CommandEnded(SystemExit):
    """The exception that ends a command whose message is already shown; ``code`` is its status."""


def require(name: str, value: str, flags: absl_flags.FlagValues) -> None:
    """Makes :func:`parse_flags` raise if a flag is missing; ``value`` is the message's example."""
    absl_flags.register_validator(
        name, lambda given: given is not None, f"--{name}={value} is missing", flag_values=flags
    )


def asks_for_help(argv: Sequence[str]) -> bool:
    """Returns whether a command line asks for help."""
    return not {"--help", "-h", "-help"}.isdisjoint(argv)


def parse_flags(
    argv: Sequence[str] | None,
    usage: str,
    define: Callable[[absl_flags.FlagValues], None],
    describe_more: Callable[[], str] | None = None,
) -> absl_flags.FlagValues:
    """Parses the command line's flags; ``--help`` prints the usage and raises ``CommandEnded``.

    Args:
        argv: arguments after the program's name; the command line's by default.
        usage: what the command does.
        define: adds the command's flags.
        describe_more: returns what ``--help`` shows after the flags.

    Raises:
        CommandEnded: after ``--help``.
        absl.flags.Error: for unknown flags, and arguments that are no flags.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    flags = absl_flags.FlagValues()
    define(flags)
    if asks_for_help(argv):
        more = f"\n\n{describe_more()}" if describe_more else ""
        print(f"{_to_width(usage)}\n\nFlags:\n{_describe(flags)}{more}")
        raise CommandEnded(0)
    rest = flags([usage.split(None, 1)[0], *argv])
    if len(rest) > 1:
        raise absl_flags.Error(f"{rest[1]!r} is no flag; flags look like --workdir=FOLDER")
    absl_flags.FLAGS.mark_as_parsed()  # libraries may read the global flags
    return flags


def parse_config_flags(
    argv: Sequence[str] | None,
    usage: str,
    define: Callable[[absl_flags.FlagValues], None],
    job: str | None = "pretrain",
) -> absl_flags.FlagValues:
    """Parses flags with ``--config=FILE`` and ``--config.KEY=VALUE``, and checks the config.

    Tuples are written with commas: ``--config.model.image_size=224,224``. Boolean keys can also be
    written ``--config.data.flip`` and ``--noconfig.data.flip``. The last of several values counts.
    ``flags.config`` of the returned flags is the config.

    Args:
        argv, usage, define: see :func:`parse_flags`.
        job: that the config must be for; None for any job.

    Raises:
        ValueError: for an unknown key (the nearest known one is named), an invalid value (the
            allowed ones are named), or another job's config.
        FileNotFoundError: if there is no such config file.
        absl.flags.Error: as :func:`parse_flags`.
    """
    from ddae_jax.config.checks import check_config  # imports JAX

    flags, _ = read_config_flags(argv, usage, define, job)
    check_config(flags.config)
    return flags


def read_config_flags(
    argv: Sequence[str] | None,
    usage: str,
    define: Callable[[absl_flags.FlagValues], None],
    job: str | None = "pretrain",
) -> tuple[absl_flags.FlagValues, frozenset[str]]:
    """Does what :func:`parse_config_flags` does, but leaves checking the config to the caller.

    Returns:
        The flags; and the keys that ``--config.KEY=VALUE`` sets.
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
    takes_any_job = job is None
    job = job or _job_of_config(argv)
    changes, rest = _split_changes(argv, job)
    describe_keys = (lambda: _WHERE_KEYS_ARE) if takes_any_job else lambda: key_listing(job)
    flags = parse_flags(rest, usage, define_all, describe_keys)
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


class _Change(NamedTuple):
    """A change of a config key, as written on the command line."""

    key: str
    text: str | None
    is_negated: bool
    job: str

    def value(self) -> bool | int | float | str | tuple:
        """Returns the new value; raises ``ValueError`` for an unknown key or an invalid value."""
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
    """Returns the job of the config file on a command line; ``pretrain`` if there is none."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            return job_of(load_config(match[1] or following, None))
    return "pretrain"


def _split_changes(argv: Sequence[str], job: str) -> tuple[list[_Change], list[str]]:
    """Splits a command line into changes of the config and its other arguments."""
    changes, rest = [], []
    queue = list(argv)
    while queue:
        argument = queue.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if argument == "--":
            return changes, [*rest, argument, *queue]
        if not match:
            rest.append(argument)
            continue
        is_negated, key, text = bool(match[1]), match[2], match[3]
        takes_value = text is None and not is_negated and _is_boolean(key, job) is False
        if takes_value and queue and not re.match("--?[A-Za-z]", queue[0]):
            text = queue.pop(0)
        changes.append(_Change(key, text, is_negated, job))
    return changes, rest


def _is_boolean(key: str, job: str) -> bool | None:
    """Returns whether a key is boolean; None if there is no such key."""
    return KEYS[job][key].kind is bool if key in KEYS[job] else None


def _describe(flags: absl_flags.FlagValues) -> str:
    """Returns the help of all flags, in alphabetical order, wrapped."""
    lines = []
    for name in sorted(flags):
        flag = flags[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        text = f"--{name}: {flag.help}{default}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 6)
    return "\n".join(lines)


def _to_width(usage: str) -> str:
    """Wraps the paragraphs of a usage text, except indented ones, which are commands."""
    paragraphs = usage.replace("``", "").strip().split("\n\n")
    return "\n\n".join(
        text if text.startswith(" ") else textwrap.fill(text, WIDTH) for text in paragraphs
    )
