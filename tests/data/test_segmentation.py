"""Sources of images and their annotations: which belong together, and what is refused."""

import io
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from annotated import (
    CAMVID,
    CAMVID_RULE,
    needs_camvid,
    pair_source,
    write_pair,
    write_pairs,
    write_rows,
)
from ddae_jax.data.annotations import IGNORED
from ddae_jax.data.eval_pairs import eval_pairs
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.pair_checks import check_pairs
from ddae_jax.data.segmentation import make_pair_source


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


class TestFolder:
    def test_pairs_are_found_by_their_names_in_order(self, tmp_path):
        write_pairs(tmp_path, 3)
        source = pair_source(tmp_path)
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
        assert pair_source(tmp_path, channels=1)[0]["annotation"].tolist() == [[2] * 4] * 4

    @pytest.mark.parametrize("axis", [0, -1])
    def test_images_may_be_arrays_of_any_number_of_channels(self, tmp_path, axis):
        write_pairs(tmp_path, 2)
        stacks = np.random.default_rng(1).integers(0, 256, (2, 20, 24, 5), np.uint8)
        for number, stack in enumerate(stacks):
            path = tmp_path / "images" / "training" / f"00{number}.png"
            np.save(path.with_suffix(".npy"), np.moveaxis(stack, -1, axis))
        source = pair_source(tmp_path, channels=5)
        assert source.channels == 5
        for index, stack in enumerate(stacks):
            np.testing.assert_array_equal(source[index]["image"], stack)
        np.testing.assert_array_equal(
            source[1]["annotation"], pair_source(tmp_path, channels=3)[1]["annotation"]
        )

    def test_images_without_annotation_are_counted_and_named(self, tmp_path):
        write_pairs(tmp_path, 3)
        for number in (0, 2):
            (tmp_path / "annotations" / "training" / f"00{number}.png").unlink()
        with pytest.raises(ValueError, match=r"2 of 3 images have no annotation: 000\.png, 002"):
            pair_source(tmp_path)

    def test_annotations_without_image_are_counted_and_named(self, tmp_path):
        write_pairs(tmp_path, 3)
        (tmp_path / "images" / "training" / "001.png").unlink()
        with pytest.raises(ValueError, match=r"1 of 3 annotations have no image: 001\.png"):
            pair_source(tmp_path)

    def test_images_that_share_an_annotation_are_named(self, tmp_path):
        write_pairs(tmp_path, 2)
        Image.new("RGB", (24, 20)).save(tmp_path / "images" / "training" / "001.jpg")
        with pytest.raises(ValueError, match=r"2 images share .*001\.jpg, 001\.png"):
            pair_source(tmp_path)

    def test_missing_split_says_what_is_expected_and_there(self, tmp_path):
        write_pairs(tmp_path, 1)
        with pytest.raises(
            FileNotFoundError,
            match=r"no folder .*images/train;.*annotations/train\. .*\(training\)",
        ):
            pair_source(tmp_path, split="train")

    def test_folder_without_images_is_refused(self, tmp_path):
        for kind in ("images", "annotations"):
            (tmp_path / kind / "training").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"no image in .*contains nothing"):
            pair_source(tmp_path)

    def test_survives_pickling(self, tmp_path):
        write_pairs(tmp_path, 2)
        source = pair_source(tmp_path)
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(copy[1]["annotation"], source[1]["annotation"])

    def test_fingerprint_is_of_the_names_wherever_they_lie(self, tmp_path):
        fingerprints = []
        for name, count in (("a", 3), ("b", 3), ("c", 2)):
            write_pairs(tmp_path / name, count)
            fingerprints.append(pair_source(tmp_path / name).fingerprint)
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


class TestNames:
    def test_annotations_that_link_to_one_file_belong_to_their_images(self, tmp_path):
        write_rows(tmp_path, [0, 1], [0, 0], [0, 0], [0, 0])
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
        write_rows(tmp_path, [0, 1], [1, 1], [0, 0])
        images = tmp_path / "images" / "training"
        (images / "2.png").unlink()
        (images / "2.png").symlink_to("1.png")
        source = make_pair_source("folder", data_dir=str(tmp_path), num_classes=2)
        assert [source[index]["annotation"].tolist() for index in (1, 2)] == [[[1, 1]], [[0, 0]]]

    def test_a_suffix_may_be_written_in_capitals_but_not_in_both_ways(self, tmp_path):
        write_rows(tmp_path, [0, 1], [1, 1])
        annotations = tmp_path / "annotations" / "training"
        (annotations / "1.png").rename(annotations / "1.PNG")
        source = make_pair_source("folder", data_dir=str(tmp_path), num_classes=2)
        assert source[1]["annotation"].tolist() == [[1, 1]]
        (annotations / "1.png").write_bytes((annotations / "1.PNG").read_bytes())
        with pytest.raises(ValueError, match=r"1 images have another annotation too: 1\.PNG"):
            make_pair_source("folder", data_dir=str(tmp_path), num_classes=2)


def write_tfds(root: Path, pairs: list[tuple[bytes, bytes]], feature: str = "annotation") -> None:
    """Writes a dataset "tiny" of images and annotations in ArrayRecord, as TFDS lays it out."""
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
        source = pair_source(CAMVID, split=split, **CAMVID_RULE)
        assert len(source) == count
        check_pairs(source, num_decoded=16)
    pair = source[7]
    path = re.sub("images", "annotations", source.name(7)).replace(".jpg", ".png")
    stored = np.asarray(Image.open(path))
    np.testing.assert_array_equal(pair["annotation"], np.where(stored == 11, IGNORED, stored))
    assert pair["image"].shape == (360, 480, 3)
