"""Tests of the report of a run: a self-contained file that shows exactly what it was given."""

import base64
import os
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from ddae_jax.figures.report import Captioned, Summary, write_report

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Contents of a page, whose elements are checked to be closed in the right order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())

    def values(self, *names):
        return [value for name, value in self.attributes if name in names]


@pytest.fixture
def figures(tmp_path):
    for name in ("loss", "beta", "knn"):
        (tmp_path / f"{name}.png").write_bytes(PNG + name.encode())
    return [
        Captioned(tmp_path / "loss.png", "It should fall.", "Training"),
        Captioned(tmp_path / "beta.png", "It should rise.", "Training"),
        Captioned(tmp_path / "missing.png", "Never drawn.", "Nothing"),
        Captioned(tmp_path / "knn.png", "It should be high.", "Accuracy"),
    ]


@pytest.fixture
def write(tmp_path, figures):
    def write(**changes):
        contents = {
            "title": "a digits run",
            "step": 1500,
            "num_steps": 6000,
            "summary": [Summary("k-NN accuracy", "94.5 %", "71.0 % untrained")],
            "figures": figures,
            "results": {"k-NN": {"trained": 0.945, "untrained": np.float32(0.71), "images": 360}},
            "config": {
                "seed": 7,
                "name": "",
                "model": {"depth": 12, "supervised_depths": (6, 8), "path": {"drop": 0.1}},
            },
            "environment": {"devices": "8 x TPU v5e", "versions": {"jax": "0.10.2"}},
            "notes": ["Three images were skipped."],
        }
        path = tmp_path / "run" / "report.html"
        write_report(path, **contents | changes)
        return path.read_text(encoding="utf-8")

    return write


def test_report_refers_to_nothing_outside_itself(write, tmp_path):
    html = write()
    page = Page(html)
    for reference in page.values("src", "href", "srcset", "data", "poster", "action"):
        assert reference.startswith(("data:image/png;base64,", "#"))
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert str(tmp_path) not in html
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_report_links_lead_to_its_sections(write):
    page = Page(write())
    anchors = {link.removeprefix("#") for link in page.values("href")}
    assert anchors == {"results", "section-1", "section-2", "config", "environment"}
    assert anchors == set(page.values("id"))


def test_report_holds_every_figure_and_caption_and_skips_a_missing_one(write, figures):
    page = Page(write())
    held = [base64.b64decode(uri.split(",", 1)[1]) for uri in page.values("src")]
    drawn = [figure for figure in figures if figure.path.exists()]
    assert held == [figure.path.read_bytes() for figure in drawn]
    assert [text for text in page.texts if text.startswith("It should")] == [
        figure.caption for figure in drawn
    ]
    assert page.tags.count("figure") == 3
    assert "Nothing" not in page.texts


def test_report_shows_config_environment_summary_and_notes(write):
    texts = Page(write()).texts
    pairs = set(pairwise(texts))
    assert {
        ("seed", "7"),
        ("name", "''"),
        ("supervised_depths", "(6, 8)"),
        ("path", "drop"),
        ("drop", "0.1"),
        ("devices", "8 x TPU v5e"),
        ("versions", "jax"),
        ("jax", "0.10.2"),
        ("k-NN accuracy", "94.5 %"),
    } <= pairs
    assert "Three images were skipped." in texts


def test_report_shows_results_as_percentages_and_marks_the_best(write):
    html = write()
    cells = re.findall(r"<td(?P<mark>[^>]*)>(?P<value>[^<]*)", html)
    assert cells == [(' class="best"', "94.5 %"), ("", "71.0 %"), ("", "360")]


def test_a_result_that_is_not_there_is_a_dash(write):
    html = write(results={"k-NN": {"trained": 0.9}, "note": {"raw pixels": "none", "nan": np.nan}})
    cells = re.findall(r"<td[^>]*>([^<]*)", html)
    assert cells == ["90.0 %", "–", "–", "–", "none", "nan"]


@pytest.mark.parametrize(
    ("step", "state", "shown"),
    [(1500, None, "running"), (6000, None, "complete"), (1500, "stopped", "stopped")],
)
def test_report_tells_the_state_and_the_step(write, step, state, shown):
    texts = Page(write(step=step, state=state)).texts
    assert shown in texts
    assert f"step {step:,} of 6,000" in texts


def test_report_of_a_run_that_has_just_begun_is_a_page(write):
    page = Page(
        write(step=0, num_steps=0, summary=[], figures=[], results={}, environment={}, notes=[])
    )
    assert "a digits run" in page.texts
    assert "Results" not in page.texts


def test_markup_in_a_value_is_shown_not_obeyed(write):
    evil = "<script>alert('x')</script>\"&"
    page = Page(
        write(
            title=evil,
            config={evil: {"nested": evil}, "list": [evil]},
            environment={evil: evil},
            results={evil: {evil: evil}},
            notes=[evil],
            summary=[Summary(evil, evil, evil)],
            state=evil,
        )
    )
    assert "script" not in page.tags
    assert page.texts.count(evil) == 13


def test_report_replaces_the_earlier_one_and_leaves_nothing_beside_it(write, tmp_path):
    write(title="first")
    assert "first" not in Page(write(title="second")).texts
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["report.html"]


def test_a_report_that_fails_leaves_the_earlier_one(write, tmp_path, monkeypatch):
    before = write()

    def disk_is_full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        write(title="second")
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == before
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["report.html"]
