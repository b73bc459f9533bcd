"""Which folders count as splits and as label maps, in the layouts that people use."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from annotated import CAMVID, needs_camvid
from ddae_jax.data.folder_names import FolderName
from ddae_jax.data.segmentation import make_pair_source
from ddae_jax.data.sources import make_source
from ddae_jax.data.splits import warn_of_parts, warn_of_shared_examples


def lay_out(root: Path, *folders: str, count: int = 1) -> None:
    """Puts an image into each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (2, 2)).save(root / folder / f"{number}.png")


def warnings_of(root: Path, caplog, split: str = "train") -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        make_source("folder", data_dir=str(root), split=split)
    return "\n".join(record.getMessage() for record in caplog.records)


LAYOUTS = {
    "ADE20K": (
        ("images/training", "images/validation", "annotations/training", "annotations/validation"),
        ("images/training", "images/validation"),
    ),
    "YOLO": (
        ("images/train2017", "images/val2017", "images/test2017", "labels/train2017"),
        ("images/train2017", "images/val2017"),
    ),
    "YOLO, labels as text": (("images/train", "images/val"), ("images/train", "images/val")),
    "Cityscapes": (
        [
            "leftImg8bit/train/a",
            "leftImg8bit/val/b",
            "leftImg8bit/test",
            "gtFine/train/a",
            "gtFine/val/b",
        ],
        ("leftImg8bit/train", "leftImg8bit/val"),
    ),
    "CycleGAN": (("trainA", "trainB", "testA", "testB"), ("trainA", "testA")),
    "Intel": (
        [
            "seg_train/seg_train/a",
            "seg_train/seg_train/b",
            "seg_test/seg_test/a",
            "seg_pred/seg_pred",
        ],
        ("seg_train/seg_train", "seg_test/seg_test"),
    ),
    "DIV2K": (("DIV2K_train_HR", "DIV2K_valid_HR"), ("DIV2K_train_HR", "DIV2K_valid_HR")),
    "sets": (("trainset/a", "testset/a"), ("trainset", "testset")),
    "a folder around": (("tiny/train/a", "tiny/val/a"), ("tiny/train", "tiny/val")),
    "ImageNet": (
        ("ILSVRC/Data/CLS-LOC/train/n1", "ILSVRC/Data/CLS-LOC/val", "ILSVRC/Data/CLS-LOC/test"),
        ("ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"),
    ),
    "STL-10": (
        ("train_images", "test_images", "unlabeled_images"),
        ("train_images", "test_images"),
    ),
    "Market-1501": (
        ("bounding_box_train", "bounding_box_test", "query"),
        ("bounding_box_train", "bounding_box_test"),
    ),
    "a test beside": (("images/train", "images/val", "test"), ("images/train", "images/val")),
    "words": (("Training Data/a", "Testing Data/a"), ("Training Data", "Testing Data")),
    "sets apart": (("training_set/a", "holdout/a"), ("training_set", "holdout")),
    "MVTec": (
        ["bottle/train", "bottle/test", "bottle/ground_truth", "cable/train", "cable/ground_truth"],
        ("bottle/train", "bottle/test"),
    ),
    "images and masks in each": (
        ("Train/images", "Train/masks", "Val/images", "Val/masks"),
        ("Train/images", "Val/images"),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_of_a_set_are_warned_of_until_the_advice_is_followed(name, tmp_path, caplog):
    folders, (train, test) = LAYOUTS[name]
    lay_out(tmp_path, *folders)
    message = warnings_of(tmp_path, caplog)
    assert message.endswith(f"If so, set data.train_split={train!r} and data.test_split={test!r}")
    for split in (train, test):
        assert warnings_of(tmp_path, caplog, split) == ""


@pytest.mark.parametrize(
    ("folders", "maps", "images"),
    [
        (("JPEGImages", "SegmentationClass", "SegmentationObject"), "SegmentationClass", "JPEGIm"),
        (("v/VOC2012/JPEGImages", "v/VOC2012/SegmentationClass"), "v/VOC2012/Segm", "v/VOC2012/JP"),
        (("scenes", "masks"), "masks", "scenes"),
        (("img", "mask"), "mask", "img"),
        (("photos/a", "photos/b", "annotations/trimaps"), "annotations", "photos"),
        (("input", "ground_truth"), "ground_truth", "input"),
    ],
)
def test_label_maps_beside_images_are_warned_of(folders, maps, images, tmp_path, caplog):
    lay_out(tmp_path, *folders)
    message = warnings_of(tmp_path, caplog)
    assert f"By their names, folders there hold label maps ({maps}" in message
    assert f"If so, set data.train_split='{images}" in message


def test_label_maps_within_a_split_are_warned_of_for_its_key(tmp_path, caplog):
    lay_out(tmp_path, "train/images", "train/masks", "validation/images", "validation/masks")
    assert "data.train_split='train/images'" in warnings_of(tmp_path, caplog)
    message = warnings_of(tmp_path, caplog, "validation")
    assert "data.test_split='validation/images'" in message
    assert "train_split" not in message


def test_label_maps_of_many_folders_and_beside_loose_images_have_to_be_moved(tmp_path, caplog):
    lay_out(tmp_path / "many", "one/images", "one/masks", "two/images", "two/masks")
    message = warnings_of(tmp_path / "many", caplog)
    assert (
        "hold label maps (one/masks, two/masks). If so, move the images out from among" in message
    )
    lay_out(tmp_path, "loose", "loose/mask")
    assert "hold label maps (mask). If so, move" in warnings_of(tmp_path / "loose", caplog)


@pytest.mark.parametrize(
    "classes",
    [
        ("car", "train", "bus"),
        ("Car", "Train", "Bus"),
        ("bicycle", "pickup_truck", "streetcar", "train", "tank"),
        ("test_tube", "training_shoe", "validator", "beaker"),
        ("bullet_train", "train_station", "train_interior", "test_bench"),
        ("trains", "valley", "devil", "testament", "evaluations"),
        ("valid", "invalid"),
        ("boxing", "running", "training"),
        ("with_mask", "without_mask"),
        ("mask", "no_mask"),
        ("gas mask", "ski_mask", "label", "bottle"),
        ("Ford GT Coupe 2006", "Audi TT 2011", "Dodge Challenger 2011"),
        ("étrain", "protest", "contest"),
        ("a/1", "a/2", "b/1", "b/2"),
        ("cat/indoors", "cat/outdoors/test", "dog/indoors"),
    ],
)
def test_ordinary_classes_raise_no_alarm(classes, tmp_path, caplog):
    lay_out(tmp_path / "split" / "train", *classes)
    assert warnings_of(tmp_path / "split", caplog) == ""
    if "train" not in classes:  # else it would be the split
        lay_out(tmp_path / "whole", *classes)
        assert warnings_of(tmp_path / "whole", caplog) == ""


def test_a_folder_beside_the_split_that_is_a_split_or_holds_labels_is_no_class(tmp_path, caplog):
    lay_out(tmp_path, "train/a", "test1", "holdout", "train_masks")
    assert warnings_of(tmp_path, caplog) == ""
    lay_out(tmp_path, "bus")
    assert "not those in the folders beside it (bus)" in warnings_of(tmp_path, caplog)


def test_a_lone_name_of_a_split_is_warned_of(tmp_path, caplog):
    lay_out(tmp_path / "one", "cats", "dogs", "test")
    message = warnings_of(tmp_path / "one", caplog)
    assert "parts of a data set (test). If so, set data.test_split='test'" in message
    lay_out(tmp_path / "two", "Train/cats", "Train/dogs")
    message = warnings_of(tmp_path / "two", caplog)
    assert "parts of a data set (Train). If so, set data.train_split='Train'" in message


@needs_camvid
def test_camvid_as_a_folder_of_images(caplog):
    warn_of_parts(str(CAMVID), CAMVID, [b"images/training/a.jpg", b"images/validation/b.jpg"])
    message = warnings_of(CAMVID, caplog)
    assert "data.train_split='images/training' and data.test_split='images/validation'" in message
    assert "others hold label maps (annotations)" in message


@pytest.mark.parametrize(
    ("text", "kind", "around", "is_plain"),
    [
        ("train2017", "train", "*2017", True),
        ("trainB", "train", "*b", False),
        ("seg_test", "test", "seg_*", False),
        ("DIV2K_valid_HR", "validation", "div2k_*_hr", False),
        ("val-set", "validation", "*", True),
        ("held_out", "test", "*", True),
        ("trainval", "train", "*", True),
        ("TrainVal", "train", "*", True),
        ("contest", None, "contest", False),
        ("trainer", None, "trainer", False),
    ],
)
def test_a_name_parts_at_case_digits_and_punctuation(text, kind, around, is_plain):
    name = FolderName.parse(text)
    assert (name.kind, name.around, name.is_plain) == (kind, around, is_plain)


@pytest.mark.parametrize(
    ("folders", "split", "hint"),
    [
        (("train", "val", "test"), "validation", "data.test_split='val'"),
        (("train", "test"), "validation", "data.test_split='test'"),
        (("train", "val", "testing"), "test", "data.test_split='testing'"),
        (("train2017", "val2017", "test2017"), "validation", "data.test_split='val2017'"),
        (("train", "holdout"), "validation", "data.test_split='holdout'"),
        (("trainA", "trainB", "testA", "testB"), "validation", "data.test_split='testA'"),
        (("seg_train/seg_train", "seg_test/seg_test"), "test", "data.test_split='seg_test/seg_te"),
        (("tiny/train", "tiny/val"), "validation", "data.test_split='tiny/val'"),
        (("train", "validation"), "training", "data.train_split='train'"),
        (("train", "fold_7"), "fold7", "data.test_split='fold_7'"),
        (("train",), "validation", None),
        (("train", "training"), "validation", None),
        (("train", "cats"), "validation", None),
        (("train_masks", "val_masks", "train_images"), "validation", None),
    ],
)
def test_a_split_that_is_not_there_is_proposed_by_its_kind(folders, split, hint, tmp_path):
    lay_out(tmp_path, *folders)
    with pytest.raises(FileNotFoundError) as raised:
        make_source("folder", data_dir=str(tmp_path), split=split)
    message = str(raised.value)
    assert f"did you mean {hint}" in message if hint else "did you mean" not in message


@pytest.mark.parametrize(
    ("split", "hint"),
    [("training", "data.train_split='train'"), ("validation", "data.test_split='val'")],
)
def test_the_split_of_pairs_is_proposed_where_both_have_it(split, hint, tmp_path):
    lay_out(tmp_path, "images/train", "images/val", "annotations/train", "annotations/val")
    lay_out(tmp_path, "images/valid")
    with pytest.raises(FileNotFoundError, match=rf"did you mean {hint}\?$"):
        make_pair_source("folder", data_dir=str(tmp_path), split=split, num_classes=2)


class TestSharedExamples:
    @pytest.mark.parametrize(
        ("train", "test", "is_shared"),
        [
            ("train", "train", True),
            ("train", "./train", True),
            ("train", "linked", True),
            ("train", "train/a", True),
            ("nowhere", "val", True),  # the whole folder is read
            ("train", "val", False),
        ],
    )
    def test_of_folders_are_found_by_where_they_lie(self, train, test, is_shared, tmp_path, caplog):
        lay_out(tmp_path, "train/a", "val/a")
        (tmp_path / "linked").symlink_to("train")
        warn_of_shared_examples("folder", str(tmp_path), train, test)
        warning = f"data.test_split={test!r} are among those of data.train_split={train!r}"
        assert (warning in caplog.text) == is_shared

    def test_of_pairs_lie_among_the_images(self, tmp_path, caplog):
        lay_out(tmp_path, "images/training", "images/validation")
        warn_of_shared_examples("folder", str(tmp_path), "training", "validation", "images")
        assert not caplog.records
        warn_of_shared_examples("folder", str(tmp_path), "training", "training", "images")
        assert len(caplog.records) == 1

    @pytest.mark.parametrize(
        ("train", "test", "is_shared"),
        [
            ("train", "test", False),
            ("train", "train", True),
            ("train", "train[:10%]", True),
            ("train[:80%]", "train[80%:]", False),
            ("train[:81%]", "train[80%:]", True),
            ("train[:-10%]", "train[-10%:]", False),
            ("train[:-10%]", "train[-20%:]", True),
            ("train+validation", "validation", True),
            ("train[:500]", "train[:500]", True),
        ],
    )
    def test_of_tfds_are_found_by_slices(self, train, test, is_shared, caplog):
        warn_of_shared_examples("tfds", "", train, test)
        assert bool(caplog.records) == is_shared
