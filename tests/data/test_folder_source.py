"""Folders of image files: which files are read, their labels, and what the log and errors name."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data.folder_scan import image_suffixes
from ddae_jax.data.sources import make_source
from image_folders import save

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WRITTEN_SUFFIXES = [s for s in image_suffixes() if Image.registered_extensions()[s] in Image.SAVE]
RED, GREEN = (200, 30, 40), (20, 180, 60)


class TestFolder:
    def test_a_class_that_is_called_train_is_warned_of(self, tmp_path, caplog):
        for name in ("train", "test", "plane", "ship"):
            save(Image.new("RGB", (2, 2)), tmp_path / name / "a.png")
        assert len(make_source("folder", data_dir=str(tmp_path))) == 1
        assert "not those in the folders beside it (plane, ship); if 'train' is" in caplog.text
        caplog.clear()
        for name in ("plane", "ship"):
            shutil.rmtree(tmp_path / name)
        make_source("folder", data_dir=str(tmp_path))
        assert caplog.text == ""

    def test_sorted_nested_labelled_and_hidden_files_left_out(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        names = [os.path.relpath(source.name(i), rgb_folder) for i in range(len(source))]
        assert names == ["ant/c.jpg", "ant/d.JPEG", "cat/b.png", "cat/deep/a.PNG"]
        assert [int(source[i]["label"]) for i in range(4)] == [0, 0, 1, 1]
        assert source.class_names == ("ant", "cat")
        assert source.num_classes == 2
        assert source.image_size == (4, 6)

    def test_flat_folder_has_no_labels(self, tmp_path):
        save(Image.new("RGB", (2, 2)), tmp_path / "a.webp", lossless=True)
        source = make_source("folder", data_dir=str(tmp_path))
        assert source[0]["label"] == -1
        assert source.num_classes is None

    def test_split_folder_is_used_if_there(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder), split="cat")
        assert len(source) == 2
        assert [int(source[i]["label"]) for i in range(2)] == [-1, 0]

    def test_missing_split_says_what_is_expected_and_there(self, rgb_folder):
        with pytest.raises(FileNotFoundError, match=r"expected the folder .*val.*ant, cat, empty"):
            make_source("folder", data_dir=str(rgb_folder), split="val")

    def test_missing_folder_is_named_with_what_lies_above(self, rgb_folder):
        with pytest.raises(FileNotFoundError, match=r"no folder .*dog.*contains .*ant, cat"):
            make_source("folder", data_dir=str(rgb_folder / "dog"))

    def test_image_free_folder_says_what_it_looked_for_and_found(self, tmp_path):
        (tmp_path / "table.csv").write_text("1,2")
        with pytest.raises(ValueError, match=r"no image in .*\.webp.*1 other files \(\.csv\)"):
            make_source("folder", data_dir=str(tmp_path))

    def test_file_instead_of_folder_is_refused(self, tmp_path):
        (tmp_path / "table.csv").write_text("1,2")
        with pytest.raises(NotADirectoryError, match="expected a folder"):
            make_source("folder", data_dir=str(tmp_path / "table.csv"))

    def test_linked_folder_is_followed_but_not_in_circles(self, tmp_path):
        save(Image.new("RGB", (2, 2)), tmp_path / "elsewhere" / "a.png")
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "root")
        source = make_source("folder", data_dir=str(tmp_path / "root"))
        assert len(source) == 1
        assert source.class_names == ("link",)

    @pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
    def test_what_pillow_reads_is_read(self, tmp_path, suffix):
        grey = Image.fromarray(np.full((8, 6), 80, np.uint8)).convert("RGB")
        save(grey, tmp_path / f"a{suffix.upper()}")
        source = make_source("folder", data_dir=str(tmp_path), channels=1)
        assert len(source) == 1
        np.testing.assert_allclose(source[0]["image"], 80, atol=1)

    def test_a_moving_picture_shows_its_first_frame(self, tmp_path):
        first, *others = (Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, RED))
        first.save(tmp_path / "a.gif", save_all=True, append_images=others)
        source = make_source("folder", data_dir=str(tmp_path))
        assert tuple(source[0]["image"][0, 0]) == RED

    def test_files_with_other_suffixes_are_counted_by_suffix(self, tmp_path, caplog):
        for name in ("a.png", "b.heic", "c.HEIC", "d.nef", "notes.txt"):
            save(Image.new("RGB", (2, 2)), tmp_path / "photos" / name, format="png")
        assert len(make_source("folder", data_dir=str(tmp_path))) == 1
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "4 files are left out beside 1 images" in record.message
        assert "2 .heic, 1 .nef, 1 .txt" in record.message

    def test_files_that_nobody_takes_for_images_are_no_warning(self, rgb_folder, caplog):
        (rgb_folder / "labels.csv").write_text("")
        with caplog.at_level(logging.WARNING):
            make_source("folder", data_dir=str(rgb_folder))
        assert not caplog.records

    def test_links_and_folders_that_lead_nowhere_are_named_and_skipped(self, tmp_path, caplog):
        save(Image.new("RGB", (2, 2)), tmp_path / "cat" / "a.png")
        (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (tmp_path / "cat" / "itself.png").symlink_to("itself.png")
        (tmp_path / "dog").symlink_to(tmp_path / "no_folder")
        source = make_source("folder", data_dir=str(tmp_path))
        assert (len(source), source.class_names) == (1, ("cat",))
        assert "left out 3 links that lead nowhere" in caplog.text
        for name in ("cat/gone.png", "cat/itself.png", "dog"):
            assert str(tmp_path / name) in caplog.text

    def test_a_folder_that_may_not_be_read_is_skipped_and_named(
        self, rgb_folder, monkeypatch, caplog
    ):
        scandir = os.scandir  # replaced, as root may read any folder

        def refuse(path):
            if Path(path).name == "deep":
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        source = make_source("folder", data_dir=str(rgb_folder))
        assert len(source) == 3
        assert f"may not be read, or lead to themselves: {rgb_folder}/cat/deep" in caplog.text

    def test_an_image_that_links_lead_to_as_well_counts_once(self, tmp_path, caplog):
        save(Image.new("RGB", (2, 2)), tmp_path / "root" / "cat" / "a.png")
        save(Image.new("RGB", (2, 2)), tmp_path / "elsewhere" / "b.png")
        root = tmp_path / "root"
        (root / "ant").mkdir()
        (root / "ant" / "the_cat.png").symlink_to(root / "cat" / "a.png")
        (root / "dog").symlink_to(tmp_path / "elsewhere")
        (root / "elk").symlink_to(tmp_path / "elsewhere")
        source = make_source("folder", data_dir=str(root))
        names = [os.path.relpath(source.name(i), root) for i in range(len(source))]
        assert names == ["cat/a.png", "dog/b.png"]
        assert source.class_names == ("cat", "dog")
        assert "left out 2 links to images that are there already" in caplog.text

    @pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN"])
    def test_folders_of_the_system_are_no_classes(self, rgb_folder, name, caplog):
        save(Image.new("RGB", (6, 4)), rgb_folder / name / "thumb.png")
        save(Image.new("RGB", (6, 4)), rgb_folder / "cat" / name / "thumb.png")
        source = make_source("folder", data_dir=str(rgb_folder))
        assert (len(source), source.class_names) == (4, ("ant", "cat"))

    @pytest.mark.parametrize("where", ["run", "cat/run"])
    def test_the_pictures_of_a_run_are_no_examples(self, rgb_folder, where, caplog):
        before = make_source("folder", data_dir=str(rgb_folder))
        run = rgb_folder / where
        save(Image.new("RGB", (6, 4)), run / "figures" / "loss.png")
        (run / "lock").touch()
        (run / "config.json").write_text("{}")
        source = make_source("folder", data_dir=str(rgb_folder))
        assert source.fingerprint == before.fingerprint
        assert source.class_names == before.class_names
        assert f"folders of runs, whose pictures are no examples: {run}" in caplog.text

    @pytest.mark.parametrize(
        ("names", "proposed"),
        [
            (
                ("train2017", "val2017"),
                "data.train_split='train2017' and data.test_split='val2017'",
            ),
            (
                ("test_set", "training_set"),
                "data.train_split='training_set' and data.test_split='te",
            ),
            (("Validation", "cats"), "data.test_split='Validation'"),
        ],
    )
    def test_folders_with_the_names_of_splits_are_warned_of(
        self, tmp_path, caplog, names, proposed
    ):
        for name in names:
            save(Image.new("RGB", (2, 2)), tmp_path / name / "a.png")
        assert len(make_source("folder", data_dir=str(tmp_path))) == 2
        assert proposed in caplog.text

    def test_classes_that_begin_as_splits_do_are_no_splits(self, tmp_path, caplog):
        for name in ("trains", "valley", "devil", "testament", "evaluations"):
            save(Image.new("RGB", (2, 2)), tmp_path / name / "a.png")
        make_source("folder", data_dir=str(tmp_path))
        assert not caplog.records

    def test_a_split_of_another_name_is_proposed(self, tmp_path):
        for name in ("train", "val"):
            save(Image.new("RGB", (2, 2)), tmp_path / name / "a.png")
        with pytest.raises(FileNotFoundError, match=r"did you mean data.test_split='val'\?"):
            make_source("folder", data_dir=str(tmp_path), split="validation")

    def test_different_sizes_share_none(self, rgb_folder):
        save(Image.new("RGB", (7, 4)), rgb_folder / "cat" / "z.png")
        assert make_source("folder", data_dir=str(rgb_folder)).image_size is None

    def test_survives_pickling(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        copy = pickle.loads(pickle.dumps(source))
        assert copy.name(3) == source.name(3)
        np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])

    def test_folder_of_umlauts_and_spaces(self, tmp_path):
        save(Image.new("RGB", (2, 2), RED), tmp_path / "grüne äpfel" / "ein apfel.png")
        source = make_source("folder", data_dir=str(tmp_path))
        assert source.class_names == ("grüne äpfel",)
        assert tuple(source[0]["image"][0, 0]) == RED

    def test_fingerprint_is_of_the_names_wherever_the_folder_lies(self, rgb_folder, tmp_path):
        def fingerprint(folder):
            return make_source("folder", data_dir=str(folder)).fingerprint

        before = fingerprint(rgb_folder)
        moved = shutil.copytree(rgb_folder, tmp_path.parent / "elsewhere")
        assert fingerprint(moved) == before
        some = moved / "ant" / "c.jpg"
        some.rename(some.with_name("renamed.jpg"))
        renamed = fingerprint(moved)
        assert renamed != before
        (some.parent / "renamed.jpg").unlink()
        assert fingerprint(moved) not in (before, renamed)


def test_photographs_decode():
    if not (SHARED / "photos").is_dir():
        pytest.skip("no photographs in ../shared/data/photos")
    source = make_source("folder", data_dir=str(SHARED / "photos"))
    assert len(source) == 160
    image = source[0]["image"]
    assert image.ndim == 3
    assert image.std() > 10
