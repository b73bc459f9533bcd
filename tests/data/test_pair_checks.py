"""The check of annotations before a run trains on them: what it refuses, and what it logs."""

import logging

import numpy as np
import pytest
from PIL import Image

from annotated import pair_source, write_pair, write_pairs, write_rows
from ddae_jax.data import pair_checks
from ddae_jax.data.annotations import BadAnnotation
from ddae_jax.data.pair_checks import check_pairs
from ddae_jax.data.readable import NothingReadable
from ddae_jax.data.segmentation import make_pair_source


def warnings_of(root, caplog, num_classes=2, **options) -> str:
    caplog.clear()
    source = make_pair_source("folder", data_dir=str(root), num_classes=num_classes, **options)
    with caplog.at_level(logging.WARNING):
        check_pairs(source, what="the 'training' split", must_differ=True)
    return caplog.text


def test_masks_of_0_and_255_among_others_are_counted_and_named(tmp_path, caplog):
    write_rows(tmp_path, [0, 1, 0, 1], [0, 255, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255])
    message = warnings_of(tmp_path, caplog)
    assert (
        "the 'training' split: 3 of 4 annotations have no class but 0, beside pixels that are "
        "ignored. If they are masks of 0 and 255, write these as 0 and 1" in message
    )
    for number in (1, 2, 3):
        assert str(tmp_path / "annotations" / "training" / f"{number}.png") in message


def test_one_such_mask_among_many_is_enough_for_two_classes_and_a_tenth_for_more(tmp_path, caplog):
    write_rows(tmp_path / "two", [0, 255], *[[0, 1]] * 30)
    assert "1 of 31 annotations have no class but 0" in warnings_of(tmp_path / "two", caplog)
    write_rows(tmp_path / "few", [0, 255], *[[1, 2]] * 30)
    assert warnings_of(tmp_path / "few", caplog, 3) == ""
    write_rows(tmp_path / "many", *[[0, 255]] * 4, *[[1, 2]] * 30)
    assert "4 of 34 annotations have no class but 0" in warnings_of(tmp_path / "many", caplog, 3)


def test_a_border_to_be_ignored_and_an_empty_mask_are_no_such_masks(tmp_path, caplog):
    write_rows(tmp_path, [0, 1, 255], [0, 0, 0], [1, 255, 1], [1, 1, 1])
    assert warnings_of(tmp_path, caplog) == ""


def test_annotations_of_which_nothing_counts_are_counted_and_named(tmp_path, caplog):
    write_rows(tmp_path, [0, 1, 2, 1, 2], [0, 255, 0, 0, 0], [1, 2, 1, 2, 1])
    message = warnings_of(tmp_path, caplog, reduce_zero_label=True)
    name = tmp_path / "annotations" / "training" / "1.png"
    assert f"all pixels of 1 of 3 annotations are ignored: {name}" in message


class TestCheck:
    def test_annotations_of_another_size_are_counted_and_named(self, tmp_path):
        write_pairs(tmp_path, 4)
        write_pair(tmp_path, "odd", np.zeros((20, 24, 3)), np.zeros((24, 20)))
        source = pair_source(tmp_path)
        with pytest.raises(
            BadAnnotation, match=r"1 of 5 .*odd\.png is 24 x 20 pixels, its image 20 x 24"
        ):
            check_pairs(source)
        with pytest.raises(BadAnnotation, match=r"odd\.png is 24 x 20"):
            source[4]

    def test_labels_of_no_class_are_found_in_decoded_pairs(self, tmp_path):
        write_pairs(tmp_path, 4)
        write_pair(tmp_path, "000", np.zeros((2, 2, 3)), np.full((2, 2), 9))
        source = pair_source(tmp_path)
        check_pairs(source, num_decoded=0)
        with pytest.raises(BadAnnotation, match=r"000\.png has the label 9 on 4 pixels"):
            check_pairs(source, num_decoded=2)

    def test_every_annotation_is_looked_at(self, tmp_path):
        write_pairs(tmp_path, 100)
        write_pair(tmp_path, "077", np.zeros((2, 2, 3)), np.full((2, 2), 9))
        source = pair_source(tmp_path)
        check_pairs(source, num_decoded=10)
        with pytest.raises(BadAnnotation, match=r"077\.png has the label 9 on 4 pixels"):
            check_pairs(source)

    def test_what_annotations_hold_is_logged(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, "ddae_jax")
        for name, row in (("a", [0, 1, 255, 255]), ("b", [0, 0, 0, 255])):
            write_pair(tmp_path, name, np.zeros((1, 4, 3)), np.array([row]))
        summary = check_pairs(pair_source(tmp_path), what="the 'training' split")
        assert summary.pixels.tolist() == [4, 1, 0, 0, 0, 3]
        assert (summary.num_images, summary.ignored_share, summary.missing) == (2, 3 / 8, [2, 3, 4])
        assert (
            "the 'training' split: 2 annotations looked at: 2 of 5 classes occur, 37.5 % of the "
            "pixels are ignored" in caplog.text
        )
        assert "3 of the 5 classes (2, 3, 4). Is data.num_classes too large" in caplog.text

    def test_masks_of_0_and_255_are_no_two_classes(self, tmp_path):
        write_pair(tmp_path, "a", np.zeros((1, 4, 3)), np.array([[0, 255, 255, 255]]))
        source = pair_source(tmp_path, num_classes=2)
        check_pairs(source)
        message = r"count have the same class, 0; 75\.0 % .*0 and 255, say, have to be written as 0"
        with pytest.raises(BadAnnotation, match=message):
            check_pairs(source, must_differ=True)

    def test_a_split_in_which_all_is_ignored_is_refused(self, tmp_path):
        write_pair(tmp_path, "a", np.zeros((1, 4, 3)), np.full((1, 4), 255))
        with pytest.raises(BadAnnotation, match=r"no pixel of 1 annotations has a class: 100\.0 %"):
            check_pairs(pair_source(tmp_path))

    def test_a_zero_that_is_a_class_shows_by_what_is_ignored(self, tmp_path, caplog):
        write_pair(tmp_path, "a", np.zeros((1, 4, 3)), np.array([[0, 0, 0, 1]]))
        check_pairs(pair_source(tmp_path, reduce_zero_label=True))
        assert "75.0 % of the pixels are ignored. data.ignore_label or" in caplog.text

    @pytest.mark.parametrize(("orientation", "is_turned"), [(1, False), (3, True), (6, True)])
    def test_images_that_are_turned_are_named(self, tmp_path, caplog, orientation, is_turned):
        write_pair(tmp_path, "a", np.zeros((4, 4, 3)), np.eye(4))
        path = tmp_path / "images" / "training" / "a.png"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(path).save(path, exif=exif)
        summary = check_pairs(pair_source(tmp_path))
        assert summary.turned == ([str(path)] if is_turned else [])
        assert ("1 images are turned upright" in caplog.text) == is_turned

    def test_a_turned_image_of_another_size_says_why(self, tmp_path):
        write_pair(tmp_path, "a", np.zeros((2, 4, 3)), np.zeros((2, 4)))
        path = tmp_path / "images" / "training" / "a.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)
        with pytest.raises(BadAnnotation, match="2 x 4 pixels, its image 4 x 2, turned upright as"):
            check_pairs(pair_source(tmp_path))

    def test_a_long_check_logs_its_progress(self, tmp_path, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "ddae_jax")
        monkeypatch.setattr(pair_checks, "_LOG_EVERY_S", -1)
        write_pairs(tmp_path, 3)
        check_pairs(pair_source(tmp_path))
        assert "compared the sizes of 3 of 3 annotations" in caplog.text
        assert "looked at the labels of 2 of 3 annotations" in caplog.text

    def test_pairs_that_cannot_be_decoded_are_left_to_the_loader(self, tmp_path):
        write_pairs(tmp_path, 3)
        (tmp_path / "annotations" / "training" / "000.png").write_bytes(b"broken")
        (tmp_path / "images" / "training" / "001.png").write_bytes(b"broken")
        check_pairs(pair_source(tmp_path))


class TestUnreadable:
    def source(self, root):
        write_rows(root, [0, 1], [0, 1], [1, 0])
        return make_pair_source("folder", data_dir=str(root), num_classes=2)

    @pytest.mark.parametrize("kind", ["images", "annotations"])
    def test_a_split_of_which_nothing_can_be_decoded_is_refused_by_cause(self, tmp_path, kind):
        source = self.source(tmp_path)
        for path in (tmp_path / kind / "training").iterdir():
            path.write_bytes(b"junk")
        message = r"the 'validation' split: none of 3 examples can be decoded \(3 no image\): "
        message += (
            rf"{tmp_path}/{kind}/training/0\.png cannot be decoded: it is of none of the formats"
        )
        with pytest.raises(NothingReadable, match=message):
            check_pairs(source, what="the 'validation' split")

    def test_images_with_a_whole_header_alone_are_found_too(self, tmp_path):
        source = self.source(tmp_path)
        for path in (tmp_path / "images" / "training").iterdir():
            whole = path.read_bytes()
            path.write_bytes(whole[: whole.index(b"IDAT") + 6])
        with pytest.raises(NothingReadable, match=r"none of 3 .*\(3 truncated\)"):
            check_pairs(source)

    def test_one_readable_pair_is_enough(self, tmp_path):
        source = self.source(tmp_path)
        for number in (0, 2):
            (tmp_path / "images" / "training" / f"{number}.png").write_bytes(b"junk")
        check_pairs(source)


def test_a_split_in_which_all_is_ignored_is_refused_before_single_files_are_named(tmp_path, caplog):
    write_rows(tmp_path, [255, 255], [255, 255])
    with pytest.raises(BadAnnotation, match="no pixel of 2 annotations has a class"):
        warnings_of(tmp_path, caplog)
    assert "annotations are ignored:" not in caplog.text
