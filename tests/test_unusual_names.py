"""Tests of unusual names: dollar signs and bytes that are not UTF-8 are drawn and written."""

import os

import numpy as np
import pytest
from pyarrow import parquet

from ddae_jax.data.folder_scan import scan
from ddae_jax.evaluation.embeddings import Embedded, write_embeddings
from ddae_jax.figures import style
from ddae_jax.figures.confusion import confusion_figure
from ddae_jax.figures.report import write_report
from ddae_jax.suggestions import printable
from drawn import picture

NO_UTF8 = os.fsdecode(b"caf\xe9")
NAMES = ("$_{", "100 $ and $ more", NO_UTF8, "grün")


def test_bytes_that_are_no_utf8_are_shown_as_such():
    assert printable(NO_UTF8) == r"caf\xe9"
    assert printable("grün 100 %") == "grün 100 %"
    assert style.label("$_{") == r"\$_{"


def test_they_are_drawn(tmp_path):
    path = tmp_path / "confusion.png"
    confusion_figure(path, np.eye(4, dtype=int) + 1, NAMES)
    assert picture(path).std() > 0.02


def test_they_stand_in_the_report(tmp_path):
    path = tmp_path / "report.html"
    results = {"accuracy": dict.fromkeys(NAMES, 0.5)}
    write_report(
        path,
        title=NO_UTF8,
        step=1,
        num_steps=2,
        summary=[],
        figures=[],
        results=results,
        config={},
        environment={},
    )
    page = path.read_text(encoding="utf-8")
    assert r"caf\xe9" in page
    assert "100 $ and $ more" in page


def test_they_are_written_beside_features(tmp_path):
    batch = Embedded(np.zeros((4, 2), np.float32), np.arange(4), NAMES)
    for path in (tmp_path / "a.parquet", tmp_path / "a.npz"):
        assert write_embeddings(path, [batch]) == (4, 2)
    assert parquet.read_table(tmp_path / "a.parquet")["name"].to_pylist()[2] == r"caf\xe9"
    assert np.load(tmp_path / "a.npz")["names"][2] == NO_UTF8


def test_a_folder_of_them_is_a_class(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with open(os.path.join(folder, b"a.png"), "wb") as file:
        file.write(b"never opened")
    paths, labels, names = scan(tmp_path)
    assert (paths, labels.tolist(), names) == ([b"caf\xe9/a.png"], [0], (NO_UTF8,))
