"""TFDS datasets in ArrayRecord files: reading them, and the errors that say what to prepare."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from ddae_jax.data.images import CorruptImage
from ddae_jax.data.sources import make_source
from ddae_jax.data.tfds_source import TfdsSource

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RED, GREEN = (200, 30, 40), (20, 180, 60)


def encoded(image: Image.Image, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix)
    return buffer.getvalue()


def write_tfds(root: Path, examples: list[dict], *, has_label: bool, side: int | None) -> None:
    """Writes a dataset "tiny" in ArrayRecord, as TFDS lays it out."""
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


@pytest.mark.slow
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
from ddae_jax.data import augment, sources, train_loader
for kind, name, folder in (("digits", "", ""), ("tfds", "tiny", {str(tmp_path)!r})):
    source = sources.make_source(kind, name=name, data_dir=folder)
    with train_loader.TrainLoader(
        source, augment.Augmentation((4, 4)), batch_size=2, seed=0
    ) as loader:
        next(loader)
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")])
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
