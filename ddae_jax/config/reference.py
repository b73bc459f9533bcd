"""The reference of all config keys, as ``--help`` and docs/config.md show it.

python -m ddae_jax.config.reference > docs/config.md
"""

import textwrap
from collections.abc import Mapping

from ddae_jax.config.keys import ALL_KEYS, KEYS
from ddae_jax.config.schema import Key
from ddae_jax.config.values import on_command_line

WIDTH = 80
"""Columns of a terminal, which no line of the help exceeds."""

_HOW_TO_SET = (
    "Keys of the config, each with its default. --config.KEY=VALUE sets one: "
    "--config.epochs=50. Several numbers are separated by commas: "
    "--config.model.image_size=96,96. A key that is True or False is also set by "
    "--config.KEY and --noconfig.KEY."
)

_PAGE = """# Keys of the config

`--config.KEY=VALUE` sets a key on the command line, as in `--config.epochs=50`; a config file sets
it as an attribute, `config.epochs = 50.0`. Several numbers are separated by commas on the command
line, `--config.model.image_size=96,96`, and are a tuple in a file. A key that is True or False is
also set by `--config.KEY` and `--noconfig.KEY`.

A key means the same in all jobs, but may have another default. Keys with "yes" in the last column
may differ when a run is continued: they do not change what is computed, or only say where something
is. For any other change, start with `--allow_config_changes` or a new workdir.

`python -m ddae_jax.config.reference` makes this page of the table in `ddae_jax/config/keys.py`.
"""


def key_listing(job: str) -> str:
    """Lists the keys of a job with default, explanation and what they may be, for ``--help``.

    By section, in lines of at most :data:`WIDTH` columns.
    """
    lines = [textwrap.fill(_HOW_TO_SET, WIDTH)]
    for section, keys in _by_section(KEYS[job]).items():
        lines += ["", f"{section or 'run'}:"]
        for name, key in keys.items():
            lines.append(f"  {name}={shown(key.default)}")
            text = f"{key.doc} ({allowed_in_words(key)})"
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def allowed_in_words(key: Key) -> str:
    """Describes the values that a key may have: ``a whole number in [1, 16384]``."""
    if key.words:
        *words, last = (word or "empty" for word in key.words)
        return f"{', '.join(words)} or {last}"
    text = key.type_in_words()
    if isinstance(key.length, str):
        text = f"as many numbers as {key.length}"
    if key.within:
        text += f"{', each' if key.kind is tuple else ''} {key.range_in_words()}"
    if key.ascends:
        text += ", ascending"
    return f"{text}, at most {key.not_above}" if key.not_above else text


def shown(value: object) -> str:
    """Writes a value as on the command line, and an empty one so that it can be seen."""
    return repr(value) if value in ((), "") else on_command_line(value)


def page() -> str:
    """Makes docs/config.md: a table of all keys for each section."""
    lines = [_PAGE]
    for section, keys in _by_section(ALL_KEYS).items():
        lines += [
            f"## {section or 'The run'}\n",
            "| key | default | what it is | what it may be | jobs | may change |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(name, key) for name, key in keys.items()]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, key: Key) -> str:
    defaults = {job: keys[name].default for job, keys in KEYS.items() if name in keys}
    if len(set(defaults.values())) == 1:
        default = f"`{shown(key.default)}`"
    else:
        default = ", ".join(f"{job}: `{shown(value)}`" for job, value in defaults.items())
    jobs = "all" if len(defaults) == len(KEYS) else ", ".join(defaults)
    cells = (
        f"`{name}`",
        default,
        key.doc,
        allowed_in_words(key),
        jobs,
        "yes" if key.is_free else "",
    )
    return f"| {' | '.join(cells)} |"


def _by_section(keys: Mapping[str, Key]) -> dict[str, dict[str, Key]]:
    sections = {}
    for name, key in keys.items():
        sections.setdefault(name.rpartition(".")[0], {})[name] = key
    return sections


if __name__ == "__main__":
    print(page(), end="")
