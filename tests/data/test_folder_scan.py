"""Scanning a folder: what is left out, and that the log says so."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data import folder_scan, warn_once
from ddae_jax.data.folder_scan import scan
from ddae_jax.data.sources import make_source


def save(path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path, **options)


def names(root: Path, **options) -> list[str]:
    return [os.fsdecode(path) for path in scan(root, **options)[0]]


@pytest.fixture
def log_of(caplog):
    caplog.set_level(logging.INFO)

    def of(root: Path) -> list[tuple[str, str]]:
        caplog.clear()
        scan(root)
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    return of


class TestNames:
    def test_hidden_images_are_counted_with_what_is_left_out(self, tmp_path, log_of):
        for name in ("a.png", "b.png", "c.png", ".pics/x.png", ".pics/deep/y.png", ".z.JPG"):
            save(tmp_path / name)
        ((level, message),) = log_of(tmp_path)
        assert level == "INFO"
        assert "3 files are left out beside 3 images" in message
        assert message.endswith(": 3 hidden images")
        save(tmp_path / "more" / ".w.png")
        ((level, message),) = log_of(tmp_path)
        assert (level, "4 hidden images" in message) == ("WARNING", True)

    def test_hidden_copies_of_images_are_none(self, tmp_path, log_of):
        for name in ("a.png", "._a.png", ".thumbnails/a.png", ".git/annex/a.png", ".cache/a.png"):
            save(tmp_path / name)
        assert log_of(tmp_path) == []

    def test_a_folder_of_hidden_images_alone_says_so(self, tmp_path):
        save(tmp_path / ".pics" / "x.png")
        with pytest.raises(ValueError, match=r"contains 1 hidden files or folders \(\.pics\)"):
            make_source("folder", data_dir=str(tmp_path))

    @pytest.mark.parametrize(("suffix", "what"), [(".npy", ".npy"), ("", "without a suffix")])
    def test_files_that_outnumber_the_images_are_warned_of(self, tmp_path, log_of, suffix, what):
        save(tmp_path / "a.png")
        (tmp_path / f"b0{suffix}").write_bytes(b"")
        assert log_of(tmp_path)[0][0] == "INFO"
        for number in range(1, 20):
            (tmp_path / f"b{number}{suffix}").write_bytes(b"")
        ((level, message),) = log_of(tmp_path)
        assert level == "WARNING"
        assert "20 files are left out beside 1 images" in message
        assert message.endswith(f": 20 {what}")


class TestLinks:
    def test_hard_links_count_once_and_are_named(self, tmp_path, log_of):
        save(tmp_path / "a" / "x.png")
        save(tmp_path / "b" / "y.png")
        (tmp_path / "b" / "x.png").hardlink_to(tmp_path / "a" / "x.png")
        (tmp_path / "a" / "z.png").symlink_to(tmp_path / "b" / "y.png")
        ((level, message),) = log_of(tmp_path)
        assert names(tmp_path) == ["a/x.png", "b/y.png"]
        assert level == "WARNING"
        assert message.endswith("2 links to images that are there already: a/z.png, b/x.png")

    def test_all_names_count_where_that_is_asked_for(self, tmp_path):
        save(tmp_path / "a.png")
        (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
        (tmp_path / "c.png").symlink_to("a.png")
        assert names(tmp_path, keeps_links=True) == ["a.png", "b.png", "c.png"]

    def test_a_disk_that_lists_one_number_for_all_files_has_no_hard_links(
        self, tmp_path, monkeypatch
    ):
        for name in ("a.png", "b.png", "c.png"):
            save(tmp_path / name)
        add = folder_scan._FoundImages.add

        class Listed:
            def __init__(self, entry):
                self._entry = entry

            def inode(self):
                return 2**32 - 1

            def is_symlink(self):
                return False

        def added(images, path, top, entry, *rest):
            add(images, path, top, Listed(entry), *rest)

        monkeypatch.setattr(folder_scan._FoundImages, "add", added)
        assert len(names(tmp_path)) == 3

    def test_a_link_to_what_the_split_lies_in_brings_no_other_split_in(self, tmp_path, log_of):
        save(tmp_path / "set" / "train" / "a" / "x.png")
        save(tmp_path / "set" / "val" / "a" / "y.png")
        for number, target in enumerate((tmp_path, tmp_path / "set", tmp_path / "set" / "train")):
            (tmp_path / "set" / "train" / f"loop{number}").symlink_to(target)
        root = tmp_path / "set" / "train"
        ((level, message),) = log_of(root)
        assert names(root) == ["a/x.png"]
        assert level == "WARNING"
        assert "left out 3 links to folders that they lie in" in message

    def test_nor_does_it_where_the_split_itself_is_a_link(self, tmp_path):
        save(tmp_path / "disk" / "train" / "a" / "x.png")
        save(tmp_path / "disk" / "val" / "a" / "y.png")
        (tmp_path / "disk" / "train" / "loop").symlink_to(tmp_path / "disk")
        (tmp_path / "disk" / "train" / "other").symlink_to(tmp_path / "set")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "train").symlink_to(tmp_path / "disk" / "train")
        assert names(tmp_path / "set" / "train") == ["a/x.png"]


class TestRuns:
    @pytest.fixture
    def run(self, tmp_path):
        run = tmp_path / "data" / "run"
        save(run / "figures" / "loss.png")
        for name in ("config.json", "metrics.jsonl", "report.html"):
            (run / name).write_text("{}")
        save(tmp_path / "data" / "a.png")
        return run

    def test_a_run_that_was_copied_without_its_lock_is_left_out(self, run, log_of):
        assert names(run.parent) == ["a.png"]
        assert f"folders of runs, whose pictures are no examples: {run}" in log_of(run.parent)[0][1]

    def test_a_run_as_the_folder_itself_is_refused(self, run):
        with pytest.raises(ValueError, match=f"{run} is the folder of a run, whose pictures are"):
            make_source("folder", data_dir=str(run))

    def test_a_config_alone_is_no_run(self, run):
        shutil.copy(run / "config.json", run.parent)
        for name in ("metrics.jsonl", "report.html"):
            (run / name).unlink()
        assert names(run.parent) == ["a.png", "run/figures/loss.png"]


class TestPages:
    @pytest.fixture(autouse=True)
    def nothing_warned_of(self, monkeypatch):
        monkeypatch.setattr(warn_once, "_given", set())

    def pages(self, path: Path, count: int = 3, **options) -> None:
        first, *others = (Image.fromarray(np.full((8, 8), 99 * n, np.uint8)) for n in range(count))
        first.save(path, save_all=True, append_images=others, **options)

    @pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
    def test_further_pages_are_warned_of_once_when_the_first_is_read(self, tmp_path, caplog, name):
        for other in ("", "b"):
            self.pages(tmp_path / f"{other}{name}")
        source = make_source("folder", data_dir=str(tmp_path), channels=1)
        assert not caplog.records
        assert source[0]["image"].max() <= 1  # the first page, up to lossy compression
        assert len(source) == 2
        source[1]
        (record,) = caplog.records
        assert f"the first one alone is read, such as of {tmp_path}/{name};" in record.getMessage()

    @pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png", "a.jpg"])
    def test_a_single_image_is_not_warned_of(self, tmp_path, caplog, name):
        save(tmp_path / name)
        make_source("folder", data_dir=str(tmp_path))[0]
        assert not caplog.records

    @pytest.mark.parametrize("shapes", [[(5, 8, 8)], [(5, 8, 8), (5, 4, 4)]])
    def test_further_stacks_are_warned_of_too(self, tmp_path, caplog, shapes):
        tifffile = pytest.importorskip("tifffile")
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for shape in shapes:
                writer.write(np.zeros(shape, np.uint8), photometric="minisblack")
        source = make_source("folder", data_dir=str(tmp_path), channels=5)
        assert source[0]["image"].shape == (8, 8, 5)
        assert len(caplog.records) == len(shapes) - 1

    def test_a_smaller_version_beside_the_image_is_no_page(self, tmp_path, caplog):
        tifffile = pytest.importorskip("tifffile")
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(np.full((16, 16), 7, np.uint8))
            writer.write(np.full((8, 8), 7, np.uint8), subfiletype=1)
        assert make_source("folder", data_dir=str(tmp_path))[0]["image"].shape == (16, 16, 3)
        assert not caplog.records

    def test_a_damaged_second_page_does_not_cost_the_first(self, tmp_path):
        self.pages(tmp_path / "a.gif", 2)
        whole = (tmp_path / "a.gif").read_bytes()
        (tmp_path / "a.gif").write_bytes(whole[: len(whole) - 12])
        assert make_source("folder", data_dir=str(tmp_path))[0]["image"].max() == 0
