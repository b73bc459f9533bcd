"""What is said of annotations, file by file, before a run trains on them."""

import logging
import os

import numpy as np
import pytest

from annotated import write_pair
from ddae_jax.data.annotations import BadAnnotation
from ddae_jax.data.eval_pairs import check_pairs
from ddae_jax.data.readable import NothingReadable
from ddae_jax.data.segmentation import make_pair_source


def write(root, *rows) -> None:
    """One image of a single row for each row of labels."""
    for number, row in enumerate(rows):
        write_pair(root, str(number), np.zeros((1, len(row), 3)), np.array([row]))


def told(root, caplog, num_classes=2, **options) -> str:
    caplog.clear()
    source = make_pair_source("folder", data_dir=str(root), num_classes=num_classes, **options)
    with caplog.at_level(logging.WARNING):
        check_pairs(source, what="the 'training' split", must_differ=True)
    return caplog.text


def test_masks_of_0_and_255_among_others_are_counted_and_named(tmp_path, caplog):
    write(tmp_path, [0, 1, 0, 1], [0, 255, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255])
    message = told(tmp_path, caplog)
    assert (
        "the 'training' split: 3 of 4 annotations have no class but 0, beside pixels that are "
        "ignored. If they are masks of 0 and 255, write these as 0 and 1" in message
    )
    for number in (1, 2, 3):
        assert str(tmp_path / "annotations" / "training" / f"{number}.png") in message


def test_one_such_mask_among_many_is_enough_for_two_classes_and_a_tenth_for_more(tmp_path, caplog):
    write(tmp_path / "two", [0, 255], *[[0, 1]] * 30)
    assert "1 of 31 annotations have no class but 0" in told(tmp_path / "two", caplog)
    write(tmp_path / "few", [0, 255], *[[1, 2]] * 30)
    assert told(tmp_path / "few", caplog, 3) == ""
    write(tmp_path / "many", *[[0, 255]] * 4, *[[1, 2]] * 30)
    assert "4 of 34 annotations have no class but 0" in told(tmp_path / "many", caplog, 3)


def test_a_border_to_be_ignored_and_an_empty_mask_are_no_such_masks(tmp_path, caplog):
    write(tmp_path, [0, 1, 255], [0, 0, 0], [1, 255, 1], [1, 1, 1])
    assert told(tmp_path, caplog) == ""


def test_annotations_of_which_nothing_counts_are_counted_and_named(tmp_path, caplog):
    write(tmp_path, [0, 1, 2, 1, 2], [0, 255, 0, 0, 0], [1, 2, 1, 2, 1])
    message = told(tmp_path, caplog, reduce_zero_label=True)
    name = tmp_path / "annotations" / "training" / "1.png"
    assert f"all pixels of 1 of 3 annotations are ignored: {name}" in message


class TestUnreadable:
    def source(self, root):
        write(root, [0, 1], [0, 1], [1, 0])
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

    def test_images_with_a_head_alone_are_found_too(self, tmp_path):
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


class TestNames:
    def test_annotations_that_link_to_one_file_belong_to_their_images(self, tmp_path):
        write(tmp_path, [0, 1], [0, 0], [0, 0], [0, 0])
        annotations = tmp_path / "annotations" / "training"
        for number, link in ((2, os.symlink), (3, os.link)):
            (annotations / f"{number}.png").unlink()
            link(annotations / "1.png", annotations / f"{number}.png")
        source = make_pair_source("folder", data_dir=str(tmp_path), num_classes=2)
        assert [pair["annotation"].tolist() for pair in map(source.__getitem__, range(4))] == [
            [[0, 1]],
            [[0, 0]],
            [[0, 0]],
            [[0, 0]],
        ]

    def test_names_of_one_image_have_annotations_of_their_own(self, tmp_path):
        write(tmp_path, [0, 1], [1, 1], [0, 0])
        images = tmp_path / "images" / "training"
        (images / "2.png").unlink()
        (images / "2.png").symlink_to("1.png")
        source = make_pair_source("folder", data_dir=str(tmp_path), num_classes=2)
        assert [source[index]["annotation"].tolist() for index in (1, 2)] == [[[1, 1]], [[0, 0]]]

    def test_a_suffix_may_be_written_in_capitals_but_not_in_both_ways(self, tmp_path):
        write(tmp_path, [0, 1], [1, 1])
        annotations = tmp_path / "annotations" / "training"
        (annotations / "1.png").rename(annotations / "1.PNG")
        source = make_pair_source("folder", data_dir=str(tmp_path), num_classes=2)
        assert source[1]["annotation"].tolist() == [[1, 1]]
        (annotations / "1.png").write_bytes((annotations / "1.PNG").read_bytes())
        with pytest.raises(ValueError, match=r"1 images have another annotation too: 1\.PNG"):
            make_pair_source("folder", data_dir=str(tmp_path), num_classes=2)


def test_what_holds_nothing_but_what_is_ignored_is_refused_before_single_files(tmp_path, caplog):
    write(tmp_path, [255, 255], [255, 255])
    with pytest.raises(BadAnnotation, match="no pixel of 2 annotations has a class"):
        told(tmp_path, caplog)
    assert "annotations are ignored:" not in caplog.text
