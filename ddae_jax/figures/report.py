"""One page that shows a whole run: a single HTML file that needs nothing beside itself."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from numbers import Integral, Real
from pathlib import Path

import jinja2

from ddae_jax.suggestions import printable
from ddae_jax.training.workdir import write_atomically


@dataclass(frozen=True)
class Summary:
    """A key number: what it is, its value as text, and a few words to judge it by."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Captioned:
    """A PNG, what to see in it, and the title of the section that it stands in."""

    path: Path
    caption: str
    section: str


def write_report(
    path: Path,
    *,
    title: str,
    step: int,
    num_steps: int,
    summary: Sequence[Summary],
    figures: Sequence[Captioned],
    results: Mapping[str, Mapping[str, object]],
    config: Mapping[str, object],
    environment: Mapping[str, object],
    notes: Sequence[str] = (),
    state: str | None = None,
) -> None:
    """Writes the report of a run, replacing an earlier one at once and as a whole.

    The page holds its style and its pictures, refers to nothing outside, and needs no script.

    Args:
        path: the HTML file to write; its folder is made.
        title: the name of the run.
        step: the step that the run has reached.
        num_steps: the step at which it is complete.
        summary: the cards at the top.
        figures: in the order to show; those next to each other with the same section share it. One
            whose file is not there is left out, as figures without data are never written.
        results: a row each, of a value per column, such as
            ``{"k-NN": {"trained": 0.95, "untrained": 0.7, "raw pixels": 0.9}}``. A float in [0,
            1] is an accuracy, shown as a percentage, the highest of its row in bold; anything else
            is shown as text.
        config: the run's configuration, nested mappings as a tree.
        environment: where it runs: devices, versions, nested mappings as a tree.
        notes: a paragraph each, for what the reader should know first.
        state: what the run is doing; "complete" or "running", by its step, unless given.
    """
    is_complete = step >= num_steps
    page = _template().render(
        title=title,
        step=step,
        num_steps=num_steps,
        is_complete=is_complete,
        state=state or ("complete" if is_complete else "running"),
        progress=min(1.0, step / max(1, num_steps)),
        written=datetime.now(UTC),
        summary=summary,
        sections=_sections(figures),
        columns=list(dict.fromkeys(column for row in results.values() for column in row)),
        results=results,
        config=config,
        environment=environment,
        notes=notes,
    )
    write_atomically(path, printable(page))


def _sections(figures: Sequence[Captioned]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The title of each section; the data URI and the caption of each figure that exists."""
    written = [figure for figure in figures if figure.path.is_file()]
    return [
        (section, [(_data_uri(figure.path), figure.caption) for figure in members])
        for section, members in groupby(written, key=lambda figure: figure.section)
    ]


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode("ascii")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["as_text"] = _as_text
    environment.tests["accuracy"] = _is_accuracy
    return environment.get_template("report.html.jinja")


def _is_accuracy(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, Integral) and 0 <= value <= 1


def _as_text(value: object) -> str:
    """A leaf as somebody would write it; quotes show where a text is blank."""
    return str(value) if str(value).strip() else repr(value)
