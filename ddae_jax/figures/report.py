"""Report of a run: one self-contained HTML page."""

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
    """Key number of a run: its name, its value as text, and a short note to judge it by."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Captioned:
    """Figure of a report: its PNG file, its caption, and the title of its section."""

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
    """Writes the report of a run, atomically.

    The page contains its style and its images, refers to nothing outside, and needs no script.

    Args:
        path: the HTML file to write; its folder is made.
        title: name of the run.
        step: step that the run has reached.
        num_steps: step at which the run is complete.
        summary: cards at the top of the page.
        figures: figures in their order; adjacent figures with the same section title share a
            section. A figure whose file does not exist is left out: figures without data are never
            written.
        results: rows of a table by name, each with values by column, such as
            ``{"k-NN": {"trained": 0.95, "untrained": 0.7, "raw pixels": 0.9}}``. A float in [0,
            1] is an accuracy: it is shown as a percentage, and in bold if it is the highest of its
            row. Other values are shown as text.
        config: configuration of the run; nested mappings are shown as a tree.
        environment: devices, versions and the like; nested mappings are shown as a tree.
        notes: paragraphs that the reader should see first.
        state: word for the state of the run; by default "complete" or "running", by its step.
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
    """Returns the title of each section, with data URI and caption of each figure that exists."""
    existing = [figure for figure in figures if figure.path.is_file()]
    return [
        (section, [(_data_uri(figure.path), figure.caption) for figure in members])
        for section, members in groupby(existing, key=lambda figure: figure.section)
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
    """Formats a leaf of a tree as text, in quotes if it is blank."""
    return str(value) if str(value).strip() else repr(value)
