"""Batches are the same for any number of processes, workers and threads, and after a restart."""

import json
import logging
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data import augment
from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.augment import Augmentation
from ddae_jax.data.batches import batches_per_epoch, log_corrupt
from ddae_jax.data.sources import make_source
from ddae_jax.data.train_loader import DataChanged, TooManyCorruptImages, TrainLoader
from ddae_jax.data.uniform_size import OddSize
from numbered import assert_same, numbered_source

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CROP = Augmentation((8, 8))
AS_IS = Augmentation((8, 8), augment_in="device")


def take(loader: TrainLoader, count: int) -> list[dict[str, np.ndarray]]:
    return [next(loader) for _ in range(count)]


def batches_of(source, count: int, *, augmentation=CROP, start: int = 0, **options) -> list[dict]:
    options = {"batch_size": 8, "seed": 3} | options
    with TrainLoader(source, augmentation, **options) as loader:
        loader.set_state({"step": start, "corrupt": []})
        return take(loader, count)


def labels_of(batches: list[dict]) -> list[int]:
    return np.concatenate([batch["label"] for batch in batches]).tolist()


class TestBatches:
    @pytest.mark.parametrize(("augmentation", "shape"), [(CROP, (8, 8)), (AS_IS, (12, 10))])
    def test_shapes_and_types(self, augmentation, shape):
        (batch,) = batches_of(numbered_source(20), 1, augmentation=augmentation)
        assert set(batch) == {"image", "label"}
        assert batch["image"].shape == (8, *shape, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (8,)
        assert batch["label"].dtype == np.int32

    def test_images_are_handed_out_whole_where_the_device_crops(self):
        source = numbered_source(20)
        (batch,) = batches_of(source, 1, augmentation=AS_IS)
        for image, label in zip(batch["image"], batch["label"], strict=True):
            np.testing.assert_array_equal(image, source[int(label)]["image"])

    def test_each_epoch_is_another_permutation(self):
        """20 examples in batches of 8: five batches are two epochs, the third holds both."""
        labels = labels_of(batches_of(numbered_source(20), 10))
        epochs = [labels[start : start + 20] for start in range(0, 80, 20)]
        assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 4

    def test_neighbouring_seeds_share_no_epoch(self):
        source = numbered_source(20)
        runs = [batches_of(source, 3, batch_size=20, seed=seed) for seed in range(3)]
        epochs = {tuple(batch["label"].tolist()) for run in runs for batch in run}
        assert len(epochs) == 9

    def test_example_is_cropped_anew_in_each_epoch(self):
        batches = batches_of(numbered_source(1), 2, batch_size=1)
        assert not np.array_equal(batches[0]["image"], batches[1]["image"])

    def test_source_smaller_than_a_batch_is_repeated(self):
        (batch,) = batches_of(numbered_source(3), 1)
        assert sorted(np.bincount(batch["label"]).tolist()) == [2, 3, 3]

    def test_seed_decides(self):
        source = numbered_source(20)
        assert_same(batches_of(source, 3), batches_of(source, 3))
        first, other = batches_of(source, 1), batches_of(source, 1, seed=4)
        assert labels_of(first) != labels_of(other)


class TestSameBatchesWhoeverReads:
    """Batches over two epochs of 20 examples, against those of one process and one thread."""

    @pytest.fixture(scope="class")
    def expected(self) -> list[dict]:
        return batches_of(numbered_source(20), 6, num_threads=1)

    @pytest.mark.parametrize("process_count", [2, 4])
    @pytest.mark.parametrize("start", [0, 2])
    def test_processes_together(self, expected, process_count, start):
        parts = [
            batches_of(
                numbered_source(20),
                6 - start,
                start=start,
                process_index=index,
                process_count=process_count,
            )
            for index in range(process_count)
        ]
        together = [
            {key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_same(together, expected[start:])

    def test_threads(self, expected):
        assert_same(batches_of(numbered_source(20), 6, num_threads=4), expected)

    @pytest.mark.slow
    def test_workers(self, expected):
        source = numbered_source(20)
        assert_same(batches_of(source, 4, start=2, num_workers=2), expected[2:])

    @pytest.mark.parametrize("step", [1, 3])
    def test_after_set_state_amid_an_epoch(self, expected, step):
        with TrainLoader(numbered_source(20), CROP, batch_size=8, seed=3) as loader:
            take(loader, step)
            state = json.loads(json.dumps(loader.get_state()))
        source = "numbers, 20 examples"
        assert state == {"step": step, "corrupt": [], "causes": [], "source": source}
        with TrainLoader(numbered_source(20), CROP, batch_size=8, seed=3) as loader:
            loader.set_state(state)
            assert_same(take(loader, 6 - step), expected[step:])
            loader.set_state(state)
            assert_same(take(loader, 1), expected[step : step + 1])

    def test_changed_data_is_refused_unless_that_is_allowed(self, caplog):
        with TrainLoader(numbered_source(20, (7,)), CROP, batch_size=8, seed=3) as loader:
            loader.set_state(
                {"step": 2, "corrupt": [7]}
            )  # of an older version, without a fingerprint
            state = loader.get_state()
        with TrainLoader(numbered_source(21), CROP, batch_size=8, seed=3) as loader:
            with pytest.raises(
                DataChanged, match=r"was \[numbers, 20 examples\], and is \[numbers, 21 examples\]"
            ):
                loader.set_state(state)
            assert loader.step == 0
            loader.set_state(state, allow_changes=True)
            assert loader.step == 2
            assert loader.corrupt_count == 0
        assert "the training data has changed" in caplog.text

    def test_as_many_threads_read_as_are_asked_for(self):
        readers, all_are_there = set(), threading.Event()

        class Meeting(ArraySource):
            def open(self, indices):
                readers.add(threading.get_ident())
                if len(readers) >= 7:
                    all_are_there.set()
                all_are_there.wait(timeout=5)
                return super().open(indices)

        source = Meeting(np.zeros((20, 8, 8, 1), np.uint8), np.zeros(20, np.int32))
        options = {"num_threads": 7, "prefetch_batches": 2}
        with TrainLoader(source, CROP, batch_size=8, seed=3, **options) as loader:
            take(loader, 1)
        assert len(readers) == 7

    def test_far_step_is_reached_without_reading_those_before(self):
        class Counting(ArraySource):
            opened = 0

            def open(self, indices):
                self.opened += len(indices)
                return super().open(indices)

        numbers = numbered_source(20)
        source = Counting(numbers._images, numbers._labels)
        batches_of(source, 1, start=10**9, num_threads=1, prefetch_batches=1)
        assert source.opened <= 3 * 8

    @pytest.mark.slow
    def test_workers_from_a_module_run_as_a_script(self, expected, tmp_path):
        program = """
import pickle, sys
from ddae_jax.data.augment import Augmentation
from ddae_jax.data.train_loader import TrainLoader

if __name__ == "__main__":
    source = pickle.load(open(sys.argv[1], "rb"))
    with TrainLoader(
        source, Augmentation((8, 8)), batch_size=8, seed=3, num_workers=2
    ) as loader:
        pickle.dump([next(loader) for _ in range(6)], open(sys.argv[2], "wb"))
"""
        (tmp_path / "read_with_workers.py").write_text(program)
        (tmp_path / "source").write_bytes(pickle.dumps(numbered_source(20)))
        root = Path(__file__).resolve().parents[2]
        paths = [str(tmp_path / name) for name in ("source", "batches")]
        subprocess.run(
            [sys.executable, "-m", "read_with_workers", *paths],
            cwd=root,
            env={"PYTHONPATH": f"{tmp_path}:{root}"},
            check=True,
            timeout=120,
        )
        assert_same(pickle.loads((tmp_path / "batches").read_bytes()), expected)


class TestCorruptImages:
    def test_replaced_by_the_next_readable_counted_and_named_once(self, caplog):
        """Images 7 and 8 are corrupt: 9 takes their places."""
        caplog.set_level(logging.WARNING)
        log_corrupt.cache_clear()
        whole = labels_of(batches_of(numbered_source(20), 6))
        source = numbered_source(20, corrupt=(7, 8))
        with TrainLoader(source, CROP, batch_size=8, seed=3, max_corrupt_share=0.1) as loader:
            batches = take(loader, 6)
            assert labels_of(batches) == [9 if label in (7, 8) else label for label in whole]
            assert set(batches[0]) == {"image", "label"}
            assert loader.corrupt_count == 2
            assert loader.get_state()["corrupt"] == [7, 8]
            assert loader.get_state()["causes"] == ["truncated"] * 2
            assert loader.corrupt_causes == {"truncated": 2}
            loader.set_state(loader.get_state() | {"corrupt": [7], "causes": ["no image"]})
            assert loader.corrupt_causes == {"no image": 1}
        named = [record.getMessage() for record in caplog.records]
        assert sum("numbers[7]" in message for message in named) == 1
        assert sum("numbers[8]" in message for message in named) == 1

    def test_last_image_is_replaced_by_the_first(self):
        source = numbered_source(4, corrupt=(3,))
        labels = labels_of(batches_of(source, 1, batch_size=4, max_corrupt_share=1.0))
        assert sorted(labels) == [0, 0, 1, 2]

    @pytest.mark.slow
    def test_workers_replace_and_report_them_too(self):
        source = numbered_source(20, corrupt=(7, 8))
        options = {"batch_size": 8, "seed": 3, "max_corrupt_share": 0.1}
        with TrainLoader(source, CROP, num_workers=1, **options) as loader:
            batches = take(loader, 3)
            assert loader.corrupt_count == 2
        assert_same(batches, batches_of(source, 3, max_corrupt_share=0.1))

    def test_too_many_stop_the_run_with_count_share_limit_and_names(self):
        source = numbered_source(10, corrupt=(4,))
        with TrainLoader(source, CROP, batch_size=10, seed=0) as loader:
            with pytest.raises(
                TooManyCorruptImages, match=r"1 of 10 .* 10\.00%.*1\.00%.*numbers\[4\]"
            ):
                next(loader)
            assert loader.get_state()["step"] == 0

    def test_as_many_as_allowed_do_not_stop_the_run(self):
        source = numbered_source(10, corrupt=(2, 4))
        batches_of(source, 3, max_corrupt_share=0.2)

    def test_count_continues_after_a_restart(self):
        source = numbered_source(40, corrupt=(4,))
        with TrainLoader(source, CROP, batch_size=8, seed=0, max_corrupt_share=0.04) as loader:
            loader.set_state({"step": 5, "corrupt": [30]})
            with pytest.raises(TooManyCorruptImages, match="2 of 40"):
                take(loader, 5)

    @pytest.mark.slow
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_nothing_readable_is_an_error_whatever_is_allowed(self, num_workers):
        source = numbered_source(4, corrupt=(0, 1, 2, 3))
        with pytest.raises(TooManyCorruptImages, match=r"none of 4 images in a row.*made so"):
            batches_of(source, 1, max_corrupt_share=1.0, num_workers=num_workers)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 9, "process_count": 2}, "batch_size=9 .* processes, 2"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"process_index": 2, "process_count": 2}, "process_index=2"),
            ({"seed": -1}, "seed=-1"),
            ({"max_corrupt_share": 1.5}, "max_corrupt_share=1.5"),
            ({"num_threads": 0}, "num_threads=0"),
        ],
    )
    def test_loader(self, options, message):
        with pytest.raises(ValueError, match=message):
            TrainLoader(numbered_source(20), CROP, **({"batch_size": 8, "seed": 0} | options))

    def test_empty_source(self):
        with pytest.raises(ValueError, match="source is empty"):
            TrainLoader(numbered_source(0), CROP, batch_size=8, seed=0)

    def test_device_augmentation_needs_images_of_one_size(self, tmp_path):
        for side in (4, 5):
            Image.new("RGB", (side, 4)).save(tmp_path / f"{side}.png")
        source = make_source("folder", data_dir=str(tmp_path))
        with pytest.raises(OddSize, match=r"5\.png is 4 x 5 pixels .* others are 4 x 4"):
            TrainLoader(source, AS_IS, batch_size=2, seed=0)

    def test_an_image_of_another_size_is_named_when_training_reads_it(self, tmp_path, monkeypatch):
        for name, side in (("a", 4), ("b", 5)):
            Image.new("RGB", (side, 4)).save(tmp_path / f"{name}.png")
        source = make_source("folder", data_dir=str(tmp_path))
        monkeypatch.setattr(augment, "one_size", lambda source: (4, 4))
        expected = r"b\.png is 4 x 5 pixels .* others are 4 x 4.*workers"
        with pytest.raises(OddSize, match=expected) as raised:
            batches_of(source, 1, augmentation=AS_IS)
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


class TestClosing:
    def test_closed_loader_says_so(self):
        loader = TrainLoader(numbered_source(20), CROP, batch_size=8, seed=0)
        next(loader)
        loader.close()
        loader.close()
        with pytest.raises(ValueError, match="closed"):
            next(loader)

    def test_no_thread_remains(self):
        before = set(threading.enumerate())
        batches_of(numbered_source(20), 2, num_threads=2)
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=5)
            assert not thread.is_alive(), thread.name


@pytest.mark.parametrize(("batch_size", "count"), [(8, 2), (20, 1), (64, 1)])
def test_batches_per_epoch_are_whole_and_at_least_one(batch_size, count):
    assert batches_per_epoch(20, batch_size) == count


def test_batches_per_epoch_of_no_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        batches_per_epoch(20, 0)


def test_mixed_folder_with_a_broken_file_trains(tmp_path):
    """A folder as users have them, read by the whole loader."""
    for number, mode in enumerate(("RGB", "L", "RGBA", "P", "LA", "1")):
        Image.new(mode, (30 + number, 20)).save(tmp_path / f"{number}.png")
    Image.new("CMYK", (40, 30)).save(tmp_path / "cmyk.jpg")
    Image.new("RGB", (1, 30)).save(tmp_path / "thin.webp")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    source = make_source("folder", data_dir=str(tmp_path))
    with TrainLoader(source, CROP, batch_size=9, seed=0, max_corrupt_share=0.2) as loader:
        batch = next(loader)
        assert batch["image"].shape == (9, 8, 8, 3)
        assert (batch["label"] == -1).all()
        assert loader.corrupt_count == 1


def test_cifar10_resumes_amid_its_second_epoch():
    if not (SHARED / "tfds" / "cifar10").is_dir():
        pytest.skip("no CIFAR-10 in ../shared/data/tfds")
    source = make_source("tfds", name="cifar10", data_dir=str(SHARED / "tfds"), split="test")
    augmentation = Augmentation((32, 32))
    step = batches_per_epoch(len(source), 256) + 5
    run = batches_of(source, 3, augmentation=augmentation, batch_size=256, start=step)
    resumed = batches_of(source, 1, augmentation=augmentation, batch_size=256, start=step + 2)
    assert_same(resumed, run[2:])
    assert run[0]["image"].std() > 30
