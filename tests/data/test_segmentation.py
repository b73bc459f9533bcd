"""Pairs of image and annotation: what is read, what the labels mean, and what is refused."""

import io
import json
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from annotated import CAMVID, CAMVID_RULE, needs_camvid, write_pair, write_pairs
from ddae_jax.data import eval_pairs as eval_pairs_module
from ddae_jax.data.annotations import IGNORED, BadAnnotation, LabelRule, LazyAnnotation
from ddae_jax.data.eval_pairs import check_pairs, eval_pairs
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.segmentation import make_pair_source


def folder(root: Path, **options):
    return make_pair_source("folder", data_dir=str(root), **({"num_classes": 5} | options))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def annotation(image: Image.Image, **rule) -> LazyAnnotation:
    return LazyAnnotation(lambda: encoded(image), "a.png", LabelRule(**({"num_classes": 5} | rule)))


class TestLabels:
    def test_are_the_numbers_of_the_file_and_one_label_for_what_is_ignored(self):
        stored = np.array([[0, 4], [7, 2]], np.uint8)
        found = annotation(Image.fromarray(stored), ignore_label=7).labels()
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, [[0, 4], [IGNORED, 2]])

    def test_reduced_zero_is_ignored_and_the_others_count_from_zero(self):
        """As ADE20K: 0 is other, 1 to 150 are the classes 0 to 149."""
        stored = np.array([[0, 1], [150, 255]], np.uint8)
        rule = {"num_classes": 150, "reduce_zero_label": True}
        found = annotation(Image.fromarray(stored), **rule).labels()
        np.testing.assert_array_equal(found, [[IGNORED, 0], [149, IGNORED]])

    @pytest.mark.parametrize("mode", ["P", "RGB", "I;16"])
    def test_may_be_stored_as_palette_grey_colour_or_sixteen_bits(self, mode):
        stored = np.array([[0, 4], [3, 2]], np.uint8)
        image = Image.fromarray(stored)
        if mode == "P":
            image.putpalette(np.arange(768)[::-1].astype(np.uint8).tobytes())
        else:
            image = (
                Image.fromarray(stored.astype(np.uint16)) if mode == "I;16" else image.convert(mode)
            )
        np.testing.assert_array_equal(annotation(image).labels(), stored)

    def test_sixteen_bits_may_hold_a_high_label_to_be_ignored(self):
        image = Image.fromarray(np.array([[3, 65535]], np.uint16))
        found = annotation(image, ignore_label=65535).labels()
        assert found.tolist() == [[3, IGNORED]]
        with pytest.raises(BadAnnotation, match="label 65535 on 1 pixels"):
            annotation(image, ignore_label=300).labels()

    def test_of_no_class_are_named_with_their_pixels(self):
        stored = np.array([[0, 9], [9, 77]], np.uint8)
        with pytest.raises(
            BadAnnotation, match=r"a\.png has the label 9 on 2 pixels, 77 on 1 pixels; .* 0 to 4"
        ):
            annotation(Image.fromarray(stored)).labels()

    def test_one_too_many_hints_at_what_may_be_meant(self):
        stored = np.array([[1, 5]], np.uint8)
        with pytest.raises(BadAnnotation, match=r"set ignore_label=5; .*reduce_zero_label=True"):
            annotation(Image.fromarray(stored)).labels()

    def test_as_colours_are_refused(self):
        with pytest.raises(BadAnnotation, match=r"a\.png is of mode RGB; .*one class number"):
            annotation(Image.new("RGB", (2, 2), (1, 2, 0))).labels()

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ({"num_classes": 0}, "num_classes=0"),
            ({"num_classes": 256}, "num_classes=256; from 1 to 255"),
            ({"num_classes": 12, "ignore_label": 11}, "ignore_label=11 is one of .* 0 to 11"),
            ({"num_classes": 3, "ignore_label": -1}, "ignore_label=-1"),
        ],
    )
    def test_rule_that_contradicts_itself_is_refused(self, rule, message):
        with pytest.raises(ValueError, match=message):
            LabelRule(**rule)


class TestFolder:
    def test_pairs_are_found_by_their_names_in_order(self, tmp_path):
        write_pairs(tmp_path, 3)
        source = folder(tmp_path)
        assert [Path(source.name(i)).name for i in range(len(source))] == [
            "000.png",
            "001.png",
            "002.png",
        ]
        pair = source[1]
        np.testing.assert_array_equal(pair["image"][..., 0], 10 * pair["annotation"])
        with pytest.raises(IndexError):
            source[3]

    def test_sub_folders_are_paired_too(self, tmp_path):
        write_pair(tmp_path, "city/a", np.full((4, 4), 7), np.full((4, 4), 2))
        assert folder(tmp_path, channels=1)[0]["annotation"].tolist() == [[2] * 4] * 4

    @pytest.mark.parametrize("axis", [0, -1])
    def test_images_may_be_arrays_of_any_number_of_channels(self, tmp_path, axis):
        write_pairs(tmp_path, 2)
        stacks = np.random.default_rng(1).integers(0, 256, (2, 20, 24, 5), np.uint8)
        for number, stack in enumerate(stacks):
            path = tmp_path / "images" / "training" / f"00{number}.png"
            np.save(path.with_suffix(".npy"), np.moveaxis(stack, -1, axis))
        source = folder(tmp_path, channels=5)
        assert source.channels == 5
        for index, stack in enumerate(stacks):
            np.testing.assert_array_equal(source[index]["image"], stack)
        np.testing.assert_array_equal(
            source[1]["annotation"], folder(tmp_path, channels=3)[1]["annotation"]
        )

    def test_images_without_annotation_are_counted_and_named(self, tmp_path):
        write_pairs(tmp_path, 3)
        for number in (0, 2):
            (tmp_path / "annotations" / "training" / f"00{number}.png").unlink()
        with pytest.raises(ValueError, match=r"2 of 3 images have no annotation: 000\.png, 002"):
            folder(tmp_path)

    def test_annotations_without_image_are_counted_and_named(self, tmp_path):
        write_pairs(tmp_path, 3)
        (tmp_path / "images" / "training" / "001.png").unlink()
        with pytest.raises(ValueError, match=r"1 of 3 annotations have no image: 001\.png"):
            folder(tmp_path)

    def test_images_that_share_an_annotation_are_named(self, tmp_path):
        write_pairs(tmp_path, 2)
        Image.new("RGB", (24, 20)).save(tmp_path / "images" / "training" / "001.jpg")
        with pytest.raises(ValueError, match=r"2 images share .*001\.jpg, 001\.png"):
            folder(tmp_path)

    def test_missing_split_says_what_is_expected_and_there(self, tmp_path):
        write_pairs(tmp_path, 1)
        with pytest.raises(
            FileNotFoundError,
            match=r"no folder .*images/train;.*annotations/train\. .*\(training\)",
        ):
            folder(tmp_path, split="train")

    def test_folder_without_images_is_refused(self, tmp_path):
        for kind in ("images", "annotations"):
            (tmp_path / kind / "training").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"no image in .*contains nothing"):
            folder(tmp_path)

    def test_survives_pickling(self, tmp_path):
        write_pairs(tmp_path, 2)
        source = folder(tmp_path)
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(copy[1]["annotation"], source[1]["annotation"])

    def test_fingerprint_is_of_the_names_wherever_they_lie(self, tmp_path):
        fingerprints = []
        for name, count in (("a", 3), ("b", 3), ("c", 2)):
            write_pairs(tmp_path / name, count)
            fingerprints.append(folder(tmp_path / name).fingerprint)
        assert fingerprints[0] == fingerprints[1] != fingerprints[2]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"channels": 0}, "channels=0"),
            ({"class_names": ("a", "b")}, "2 class_names, but num_classes=5"),
            ({"data_dir": ""}, "needs data_dir"),
        ],
    )
    def test_bad_options_are_refused(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            make_pair_source("folder", **({"data_dir": str(tmp_path), "num_classes": 5} | options))

    def test_other_channels_are_of_folders_alone(self):
        with pytest.raises(ValueError, match=r"channels=5; .* by source='folder'"):
            make_pair_source("tfds", name="a", num_classes=2, channels=5)

    def test_unknown_kind_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"'foldr'.*did you mean 'folder'"):
            make_pair_source("foldr", num_classes=2)


class TestCheck:
    def test_annotations_of_another_size_are_counted_and_named(self, tmp_path):
        write_pairs(tmp_path, 4)
        write_pair(tmp_path, "odd", np.zeros((20, 24, 3)), np.zeros((24, 20)))
        source = folder(tmp_path)
        with pytest.raises(
            BadAnnotation, match=r"1 of 5 .*odd\.png is 24 x 20 pixels, its image 20 x 24"
        ):
            check_pairs(source)
        with pytest.raises(BadAnnotation, match=r"odd\.png is 24 x 20"):
            source[4]

    def test_labels_of_no_class_are_found_where_it_looks(self, tmp_path):
        write_pairs(tmp_path, 4)
        write_pair(tmp_path, "000", np.zeros((2, 2, 3)), np.full((2, 2), 9))
        source = folder(tmp_path)
        check_pairs(source, num_decoded=0)
        with pytest.raises(BadAnnotation, match=r"000\.png has the label 9 on 4 pixels"):
            check_pairs(source, num_decoded=2)

    def test_every_annotation_is_looked_at(self, tmp_path):
        write_pairs(tmp_path, 100)
        write_pair(tmp_path, "077", np.zeros((2, 2, 3)), np.full((2, 2), 9))
        source = folder(tmp_path)
        check_pairs(source, num_decoded=10)
        with pytest.raises(BadAnnotation, match=r"077\.png has the label 9 on 4 pixels"):
            check_pairs(source)

    def test_what_annotations_hold_is_told(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, "ddae_jax")
        for name, row in (("a", [0, 1, 255, 255]), ("b", [0, 0, 0, 255])):
            write_pair(tmp_path, name, np.zeros((1, 4, 3)), np.array([row]))
        held = check_pairs(folder(tmp_path), what="the 'training' split")
        assert held.pixels.tolist() == [4, 1, 0, 0, 0, 3]
        assert (held.num_images, held.ignored_share, held.missing) == (2, 3 / 8, [2, 3, 4])
        assert (
            "the 'training' split: 2 annotations looked at: 2 of 5 classes occur, 37.5 % of the "
            "pixels are ignored" in caplog.text
        )
        assert "3 of the 5 classes (2, 3, 4). Is data.num_classes too large" in caplog.text

    def test_masks_of_0_and_255_are_no_two_classes(self, tmp_path):
        write_pair(tmp_path, "a", np.zeros((1, 4, 3)), np.array([[0, 255, 255, 255]]))
        source = folder(tmp_path, num_classes=2)
        check_pairs(source)
        message = r"count have the same class, 0; 75\.0 % .*0 and 255, say, have to be written as 0"
        with pytest.raises(BadAnnotation, match=message):
            check_pairs(source, must_differ=True)

    def test_a_split_in_which_all_is_ignored_is_refused(self, tmp_path):
        write_pair(tmp_path, "a", np.zeros((1, 4, 3)), np.full((1, 4), 255))
        with pytest.raises(BadAnnotation, match=r"no pixel of 1 annotations has a class: 100\.0 %"):
            check_pairs(folder(tmp_path))

    def test_a_zero_that_is_a_class_shows_by_what_is_ignored(self, tmp_path, caplog):
        write_pair(tmp_path, "a", np.zeros((1, 4, 3)), np.array([[0, 0, 0, 1]]))
        check_pairs(folder(tmp_path, reduce_zero_label=True))
        assert "75.0 % of the pixels are ignored. data.ignore_label or" in caplog.text

    @pytest.mark.parametrize(("orientation", "is_turned"), [(1, False), (3, True), (6, True)])
    def test_images_that_are_turned_are_named(self, tmp_path, caplog, orientation, is_turned):
        write_pair(tmp_path, "a", np.zeros((4, 4, 3)), np.eye(4))
        path = tmp_path / "images" / "training" / "a.png"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(path).save(path, exif=exif)
        held = check_pairs(folder(tmp_path))
        assert held.turned == ([str(path)] if is_turned else [])
        assert ("1 images are turned upright" in caplog.text) == is_turned

    def test_a_turned_image_of_another_size_is_told_why(self, tmp_path):
        write_pair(tmp_path, "a", np.zeros((2, 4, 3)), np.zeros((2, 4)))
        path = tmp_path / "images" / "training" / "a.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)
        with pytest.raises(BadAnnotation, match="2 x 4 pixels, its image 4 x 2, turned upright as"):
            check_pairs(folder(tmp_path))

    def test_what_takes_long_is_told(self, tmp_path, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "ddae_jax")
        monkeypatch.setattr(eval_pairs_module, "_TELL_EVERY_S", -1)
        write_pairs(tmp_path, 3)
        check_pairs(folder(tmp_path))
        assert "compared the sizes of 3 of 3 annotations" in caplog.text
        assert "looked at the labels of 2 of 3 annotations" in caplog.text

    def test_what_cannot_be_decoded_is_left_to_the_loader(self, tmp_path):
        write_pairs(tmp_path, 3)
        (tmp_path / "annotations" / "training" / "000.png").write_bytes(b"broken")
        (tmp_path / "images" / "training" / "001.png").write_bytes(b"broken")
        check_pairs(folder(tmp_path))


class TestEvaluation:
    def test_every_pair_once_over_all_processes_whole(self, tmp_path):
        write_pairs(tmp_path, 5)
        write_pair(tmp_path, "large", np.zeros((31, 40, 3)), np.ones((31, 40)))
        source = folder(tmp_path)
        parts = [list(eval_pairs(source, process_index=i, process_count=4)) for i in range(4)]
        assert [len(part) for part in parts] == [2, 2, 1, 1]
        by_index = {int(pair["index"]): pair for part in parts for pair in part}
        assert sorted(by_index) == list(range(6))
        for index, pair in by_index.items():
            np.testing.assert_array_equal(pair["image"], source[index]["image"])
            np.testing.assert_array_equal(pair["annotation"], source[index]["annotation"])

    def test_limit_spreads_evenly_and_corrupt_pairs_are_left_out_and_named(self, tmp_path, caplog):
        write_pairs(tmp_path, 6)
        (tmp_path / "annotations" / "training" / "003.png").write_bytes(b"broken")
        source = folder(tmp_path)
        assert [int(pair["index"]) for pair in eval_pairs(source, limit=2)] == [0]
        assert "003.png" in caplog.text
        assert [int(pair["index"]) for pair in eval_pairs(source)] == [0, 1, 2, 4, 5]

    def test_more_processes_than_pairs(self, tmp_path):
        write_pairs(tmp_path, 1)
        assert list(eval_pairs(folder(tmp_path), process_index=1, process_count=2)) == []

    @pytest.mark.parametrize("options", [{"limit": 0}, {"process_index": 2, "process_count": 2}])
    def test_bad_options_are_refused(self, tmp_path, options):
        write_pairs(tmp_path, 1)
        with pytest.raises(
            ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"
        ):
            eval_pairs(folder(tmp_path), **options)


def write_tfds(root: Path, pairs: list[tuple[bytes, bytes]], feature: str = "annotation") -> None:
    """A dataset "tiny" of images and annotations in ArrayRecord, as TFDS lays it out."""
    target = root / "tiny" / "1.0.0"
    target.mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(target / "tiny-train.array_record-00000-of-00001"), "group_size:1"
    )
    for image, labels in pairs:
        message = tf_example_pb2.Example()
        message.features.feature["image"].bytes_list.value.append(image)
        message.features.feature[feature].bytes_list.value.append(labels)
        writer.write(message.SerializeToString())
    writer.close()
    package = "tensorflow_datasets.core.features"
    image_feature = {
        "pythonClassName": f"{package}.image_feature.Image",
        "image": {
            "shape": {"dimensions": ["-1", "-1", "3"]},
            "dtype": "uint8",
            "encodingFormat": "png",
        },
    }
    features = {
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": image_feature, feature: image_feature}},
    }
    split = {
        "name": "train",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": "1",
        "shardLengths": [str(len(pairs))],
    }
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (target / "features.json").write_text(json.dumps(features))
    (target / "dataset_info.json").write_text(json.dumps(info))


class TestTfds:
    LABELS = np.array([[1, 2, 0], [2, 1, 1]], np.uint8)

    def source(self, root: Path, **options):
        options = {"num_classes": 2, "reduce_zero_label": True, "split": "train"} | options
        return make_pair_source("tfds", name="tiny", data_dir=str(root), **options)

    @pytest.mark.parametrize("feature", ["annotation", "segmentation_mask"])
    def test_reads_images_and_annotations(self, tmp_path, feature):
        image = encoded(Image.new("RGB", (3, 2), (9, 8, 7)))
        pairs = [(image, b"broken"), (image, encoded(Image.fromarray(self.LABELS)))]
        write_tfds(tmp_path, pairs, feature)
        source = pickle.loads(pickle.dumps(self.source(tmp_path)))
        assert (len(source), source.num_classes, source.image_size) == (2, 2, None)
        pair = source[1]
        assert pair["image"].shape == (2, 3, 3)
        np.testing.assert_array_equal(pair["annotation"], [[0, 1, IGNORED], [1, 0, 0]])
        with pytest.raises(CorruptImage, match=r"tiny/train\[0\]"):
            source[0]
        check_pairs(source)
        assert [int(pair["index"]) for pair in eval_pairs(source)] == [1]

    @pytest.mark.parametrize("name", ["scene_parse150", "scene_parse150:1.0.0"])
    def test_instances_in_place_of_classes_are_refused_before_any_download(self, name, monkeypatch):
        import tensorflow_datasets as tfds

        def opened(*_, **__):
            raise AssertionError("the dataset was opened")

        monkeypatch.setattr(tfds, "builder", opened)
        with pytest.raises(ValueError, match=rf"{name}'.*instances.*data\.source='folder'"):
            make_pair_source("tfds", name=name, num_classes=150)

    def test_dataset_without_annotations_says_what_it_has(self, tmp_path):
        image = encoded(Image.new("RGB", (3, 2)))
        write_tfds(tmp_path, [(image, image)], "depth")
        with pytest.raises(ValueError, match=r"'tiny' has no annotation or .*only depth, image"):
            self.source(tmp_path)


@needs_camvid
def test_camvid_is_what_it_is_said_to_be():
    for split, count in (("training", 367), ("validation", 101)):
        source = folder(CAMVID, split=split, **CAMVID_RULE)
        assert len(source) == count
        check_pairs(source, num_decoded=16)
    pair = source[7]
    path = re.sub("images", "annotations", source.name(7)).replace(".jpg", ".png")
    stored = np.asarray(Image.open(path))
    np.testing.assert_array_equal(pair["annotation"], np.where(stored == 11, IGNORED, stored))
    assert pair["image"].shape == (360, 480, 3)
