"""The three sources: what they read, how they decode it, and what they say when they cannot."""

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow_datasets.proto import tf_example_pb2

from ddae_jax.data import sources
from ddae_jax.data.folder_scan import image_suffixes
from ddae_jax.data.images import CorruptImage
from ddae_jax.data.sources import (
    ArraySource,
    TfdsSource,
    in_memory,
    make_source,
    reading_threads,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WRITTEN_SUFFIXES = [s for s in image_suffixes() if Image.registered_extensions()[s] in Image.SAVE]
RED, GREEN = (200, 30, 40), (20, 180, 60)


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def rgb_folder(tmp_path: Path) -> Path:
    """Two classes in nested folders, and things that are no images."""
    for number, name in enumerate(["cat/b.png", "cat/deep/a.PNG", "ant/c.jpg", "ant/d.JPEG"]):
        save(Image.new("RGB", (6, 4), (number, 0, 0)), tmp_path / name)
    save(Image.new("RGB", (6, 4)), tmp_path / "cat" / ".hidden.png")
    save(Image.new("RGB", (6, 4)), tmp_path / ".cache" / "thumb.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    return tmp_path


class TestMakeSource:
    def test_unknown_kind_names_the_nearest_and_the_known(self):
        with pytest.raises(ValueError, match=r"'foldr'.*'folder'.*digits, tfds, folder"):
            make_source("foldr")

    def test_other_channels_are_refused(self):
        with pytest.raises(ValueError, match="channels=4"):
            make_source("digits", channels=4)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_example_has_uint8_image_and_int32_label(self, channels):
        example = make_source("digits", channels=channels)[0]
        assert example["image"].shape == (8, 8, channels)
        assert example["image"].dtype == np.uint8
        assert example["label"].dtype == np.int32
        assert example["label"].shape == ()

    @pytest.mark.parametrize("index", [-1, 1442])
    def test_index_outside_raises(self, index):
        with pytest.raises(IndexError):
            make_source("digits")[index]


class TestDigits:
    def test_splits_part_the_dataset_into_four_fifths_and_one_of_each_class(self):
        train, test = make_source("digits"), make_source("digits", split="test")
        assert len(train) + len(test) == 1797
        shares = [
            np.bincount([source[i]["label"] for i in range(len(source))], minlength=10)
            for source in (train, test)
        ]
        share = shares[1] / (shares[0] + shares[1])
        assert np.all((share > 0.19) & (share <= 0.2))

    def test_images_are_scikit_learns_scaled_to_255(self):
        digits = load_digits()
        source = make_source("digits", channels=1)
        image = source[0]["image"][..., 0]
        np.testing.assert_allclose(image, digits.images[0] * 255 / 16, atol=0.5)
        assert source[0]["label"] == digits.target[0]

    def test_describes_itself(self):
        source = make_source("digits", split="test")
        assert (source.num_classes, source.image_size) == (10, (8, 8))
        assert source.class_names == tuple("0123456789")
        assert source.name(17) == "digits/test[17]"

    def test_unknown_split_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"'tset'.*'test'"):
            make_source("digits", split="tset")


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

    def test_what_is_called_otherwise_is_counted_by_suffix(self, tmp_path, caplog):
        for name in ("a.png", "b.heic", "c.HEIC", "d.nef", "notes.txt"):
            save(Image.new("RGB", (2, 2)), tmp_path / "photos" / name, format="png")
        assert len(make_source("folder", data_dir=str(tmp_path))) == 1
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "4 files are left out beside 1 images" in record.message
        assert "2 .heic, 1 .nef, 1 .txt" in record.message

    def test_what_is_no_image_for_anybody_is_no_warning(self, rgb_folder, caplog):
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
        scandir = os.scandir  # root may read what it likes

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
    def test_folders_that_are_called_as_splits_are_warned_of(
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


def encoded(image: Image.Image, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix)
    return buffer.getvalue()


def write_tfds(root: Path, examples: list[dict], *, has_label: bool, side: int | None) -> None:
    """A dataset "tiny" in ArrayRecord, laid out as TFDS lays it out."""
    folder = root / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(folder / "tiny-train.array_record-00000-of-00001"), "group_size:1"
    )
    for example in examples:
        message = tf_example_pb2.Example()
        message.features.feature["image"].bytes_list.value.append(example["image"])
        if has_label:
            message.features.feature["label"].int64_list.value.append(example["label"])
        writer.write(message.SerializeToString())
    writer.close()
    package = "tensorflow_datasets.core.features"
    shape = {"dimensions": [str(side or -1), str(side or -1), "3"]}
    features = {
        "image": {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"},
        }
    }
    if has_label:
        features["label"] = {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "2"},
        }
        (folder / "label.labels.txt").write_text("red\ngreen\n")
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{package}.features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    split = {
        "name": "train",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": "1",
        "shardLengths": [str(len(examples))],
    }
    (folder / "dataset_info.json").write_text(
        json.dumps(
            {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
        )
    )


class TestTfds:
    @pytest.fixture
    def tiny(self, tmp_path: Path) -> TfdsSource:
        examples = [
            {"image": encoded(Image.new("RGB", (4, 4), RED)), "label": 0},
            {"image": b"broken", "label": 0},
            {"image": encoded(Image.new("RGB", (4, 4), GREEN)), "label": 1},
        ]
        write_tfds(tmp_path, examples, has_label=True, side=4)
        return make_source("tfds", name="tiny", data_dir=str(tmp_path))

    def test_reads_images_labels_and_names(self, tiny):
        assert len(tiny) == 3
        assert tuple(tiny[2]["image"][0, 0]) == GREEN
        assert tiny[2]["label"] == 1
        assert (tiny.image_size, tiny.num_classes) == ((4, 4), 2)
        assert tiny.class_names == ("red", "green")
        assert tiny.name(2) == "tiny/train[2]"

    def test_opens_in_the_order_asked(self, tiny):
        assert [label for _, label in tiny.open([2, 0, 2])] == [1, 0, 1]

    def test_corrupt_record_is_named(self, tiny):
        with pytest.raises(CorruptImage, match=r"tiny/train\[1\] cannot be decoded"):
            tiny[1]

    def test_survives_pickling(self, tiny):
        copy = pickle.loads(pickle.dumps(tiny))
        assert tuple(copy[0]["image"][0, 0]) == RED

    def test_without_labels_and_of_many_sizes(self, tmp_path):
        examples = [{"image": encoded(Image.new("RGB", (side, 3), RED))} for side in (2, 5)]
        write_tfds(tmp_path, examples, has_label=False, side=None)
        source = make_source("tfds", name="tiny", data_dir=str(tmp_path), channels=1)
        assert source[1]["label"] == -1
        assert source[1]["image"].shape == (3, 5, 1)
        assert (source.image_size, source.num_classes, source.class_names) == (None, None, None)

    def test_slice_of_a_split(self, tiny, tmp_path):
        source = make_source("tfds", name="tiny", data_dir=str(tmp_path), split="train[2:]")
        assert len(source) == 1
        assert source[0]["label"] == 1

    def test_unknown_split_names_the_available(self, tiny, tmp_path):
        with pytest.raises(ValueError, match=r"no split 'test'.*it has train"):
            make_source("tfds", name="tiny", data_dir=str(tmp_path), split="test")

    def test_unknown_name_names_the_nearest(self, tmp_path):
        with pytest.raises(ValueError, match=r"no dataset 'cifr10'; did you mean 'cifar10'\?"):
            make_source("tfds", name="cifr10", data_dir=str(tmp_path))

    def test_dataset_in_another_format_says_how_to_prepare_it(self, tiny, tmp_path):
        info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
        with pytest.raises(ValueError, match=r"tfrecord.*file_format=\"array_record\""):
            make_source("tfds", name="tiny", data_dir=str(tmp_path))

    def test_missing_name_is_asked_for(self):
        with pytest.raises(ValueError, match="needs the name"):
            make_source("tfds")

    def test_failed_download_says_what_to_put_where(self, tmp_path, monkeypatch):
        import tensorflow_datasets as tfds

        (tmp_path / "mine").mkdir()

        def no_network(self, **_):
            (tmp_path / "downloads" / "cifar10").mkdir(parents=True)
            raise ConnectionError("no route to host")

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
        with pytest.raises(FileNotFoundError, match=r"cifar10/3\.0\.2.*no route.*features\.json"):
            make_source("tfds", name="cifar10", data_dir=str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_a_dataset_one_folder_below_is_pointed_at_and_not_downloaded(self, tmp_path):
        prepared = tmp_path / "tfds" / "cifar10" / "3.0.2"
        prepared.mkdir(parents=True)
        (prepared / "dataset_info.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match=f"but in {tmp_path}/tfds: give that as data."):
            make_source("tfds", name="cifar10", data_dir=str(tmp_path))

    def test_cifar10_agrees_with_tfds_own_decoding(self):
        if not (SHARED / "tfds" / "cifar10").is_dir():
            pytest.skip("no CIFAR-10 in ../shared/data/tfds")
        import tensorflow_datasets as tfds

        data_dir = str(SHARED / "tfds")
        source = make_source("tfds", name="cifar10", data_dir=data_dir, split="test")
        oracle = tfds.data_source("cifar10", split="test", data_dir=data_dir)
        assert len(source) == len(oracle) == 10_000
        for index in (0, 4321, 9999):
            np.testing.assert_array_equal(source[index]["image"], oracle[index]["image"])
            assert source[index]["label"] == oracle[index]["label"]
        assert source.class_names[:2] == ("airplane", "automobile")


class TestFingerprint:
    def test_of_a_folder_is_of_its_names_wherever_it_lies(self, rgb_folder, tmp_path):
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

    def test_of_a_copy_in_memory_is_the_original_s(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        assert in_memory(source).fingerprint == source.fingerprint

    def test_of_digits_tells_the_splits_apart(self):
        assert len({make_source("digits", split=s).fingerprint for s in ("train", "test")}) == 2


class TestInMemory:
    def test_examples_keep_their_names(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        assert in_memory(source).name(0) == source.name(0)

    def test_an_image_of_another_size_is_named(self, tmp_path, monkeypatch):
        for index in range(12):
            side = 4 if index == 7 else 6
            save(Image.new("RGB", (side, side)), tmp_path / f"{index:02d}.png")
        monkeypatch.setattr(sources, "_SIZE_SAMPLE", 3)  # which does not meet number 7
        source = make_source("folder", data_dir=str(tmp_path))
        with pytest.raises(ValueError, match=r"07\.png is 4 x 4 pixels, others are 6 x 6"):
            in_memory(source)

    def test_what_takes_long_is_told(self, rgb_folder, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(sources, "_TELL_EVERY_S", -1)
        source = make_source("folder", data_dir=str(rgb_folder))
        in_memory(source)
        assert f"decoded {len(source)} of {len(source)} images" in caplog.text

    def test_holds_the_same_examples(self, rgb_folder):
        source = make_source("folder", data_dir=str(rgb_folder))
        copy = in_memory(source)
        assert isinstance(copy, ArraySource)
        assert (copy.image_size, copy.class_names) == (source.image_size, source.class_names)
        for index in range(len(source)):
            np.testing.assert_array_equal(copy[index]["image"], source[index]["image"])
            assert copy[index]["label"] == source[index]["label"]

    def test_corrupt_image_stays_corrupt_under_its_own_name(self, rgb_folder):
        (rgb_folder / "cat" / "b.png").write_bytes(b"broken")
        copy = in_memory(make_source("folder", data_dir=str(rgb_folder)))
        with pytest.raises(CorruptImage, match=r"cat/b\.png"):
            copy[2]
        assert copy[3]["label"] == 1

    def test_images_of_many_sizes_are_refused(self, rgb_folder):
        save(Image.new("RGB", (7, 4)), rgb_folder / "cat" / "z.png")
        with pytest.raises(ValueError, match="share one size"):
            in_memory(make_source("folder", data_dir=str(rgb_folder)))


def test_small_images_are_read_by_one_thread(tmp_path):
    assert reading_threads(make_source("digits")) == 1
    save(Image.new("RGB", (500, 400)), tmp_path / "a.png")
    assert reading_threads(make_source("folder", data_dir=str(tmp_path))) == 4


def test_photographs_decode():
    if not (SHARED / "photos").is_dir():
        pytest.skip("no photographs in ../shared/data/photos")
    source = make_source("folder", data_dir=str(SHARED / "photos"))
    assert len(source) == 160
    image = source[0]["image"]
    assert image.ndim == 3
    assert image.std() > 10


def test_nothing_here_imports_tensorflow(tmp_path):
    """In a fresh interpreter, for every source and the loader."""
    write_tfds(
        tmp_path,
        [{"image": encoded(Image.new("RGB", (4, 4))), "label": 0}] * 2,
        has_label=True,
        side=4,
    )
    program = f"""
import sys
from ddae_jax.data import augment, pipeline, sources
for kind, name, folder in (("digits", "", ""), ("tfds", "tiny", {str(tmp_path)!r})):
    source = sources.make_source(kind, name=name, data_dir=folder)
    with pipeline.TrainLoader(
        source, pipeline.Augmentation((4, 4)), batch_size=2, seed=0
    ) as loader:
        next(loader)
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")])
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
