"""Labelled subsets of sources, the check of labels, and the numbering of classes."""

import pickle

import numpy as np
import pytest

from ddae_jax.data.array_source import ArraySource
from ddae_jax.data.augment import Augmentation
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.labels import BadLabel, labelled_subset, validated
from ddae_jax.data.sources import make_source
from ddae_jax.data.train_loader import TrainLoader

CLASSES = ("a", "b", "c")


def source(labels, class_names=CLASSES):
    labels = np.asarray(labels, np.int32)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource(images.repeat(3, axis=-1), labels, class_names=class_names)


def test_a_source_that_is_labelled_throughout_is_returned_itself():
    given = source([0, 1, 2, 0])
    assert labelled_subset(given) is given


def test_unlabelled_images_are_left_out_and_counted(caplog):
    subset = labelled_subset(source([0, -1, 2, -1, 1]))
    assert [subset.name(index) for index in range(len(subset))] == [
        "array[0]",
        "array[2]",
        "array[4]",
    ]
    assert subset.labels().tolist() == [0, 2, 1]
    assert "2 of 5 images have no label" in caplog.text


@pytest.mark.parametrize(
    ("share", "counts"), [(0.5, [10, 5, 1]), (0.1, [2, 1, 1]), (1e-6, [1] * 3)]
)
def test_each_class_keeps_its_share_but_at_least_one(share, counts):
    labels = [0] * 20 + [1] * 10 + [2] * 1
    subset = labelled_subset(source(labels), share)
    assert np.bincount(subset.labels()).tolist() == counts
    for index in range(len(subset)):
        example = subset[index]
        assert labels[int(example["image"][0, 0, 0])] == example["label"]
    (image, label), *_ = subset.open([1])
    assert (image.pixels()[0, 0, 0], label) == (subset[1]["image"][0, 0, 0], subset[1]["label"])


def test_the_seed_decides_which():
    labels = [0, 1, 2] * 30
    first, again, other = (labelled_subset(source(labels), 0.2, seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert pickle.loads(pickle.dumps(first)).fingerprint == first.fingerprint


def test_a_source_without_classes_says_what_is_needed(tmp_path):
    with pytest.raises(ValueError, match="these images have no labels; a folder needs one folder"):
        labelled_subset(source([0, 1], class_names=None))


class ReadForLabels(ArraySource):
    """A source whose labels are known only when its images are read."""

    has_labels_at_hand = False

    def labels(self):
        raise AssertionError("all examples were read for their labels")


def read_later(labels):
    """A source whose labels are not at hand."""
    like = source(labels)
    return ReadForLabels(like._images, like._labels, class_names=CLASSES)


@pytest.mark.parametrize("bad", [7, 3, -2])
@pytest.mark.parametrize("look", [labelled_subset, validated])
def test_a_label_outside_the_classes_is_named_with_its_image(look, bad):
    with pytest.raises(BadLabel, match=rf"array\[2\] has label {bad}; the 3 classes are numbered"):
        look(source([0, 1, bad]))


@pytest.mark.parametrize("bad", [3, -2, -1])
def test_a_bad_label_that_is_not_at_hand_is_named_when_training_reads_it(bad):
    given = labelled_subset(read_later([0, 1, 2, bad]))
    loader = TrainLoader(given, Augmentation((1, 1)), batch_size=4, seed=0)
    with loader, pytest.raises(BadLabel, match=rf"array\[3\] has label {bad}; the 3 classes"):
        next(loader)


@pytest.mark.parametrize("bad", [3, -2])
def test_a_bad_label_that_is_not_at_hand_is_named_when_evaluation_reads_it(bad):
    with pytest.raises(BadLabel, match=rf"array\[3\] has label {bad}; the 3 classes"):
        list(eval_batches(validated(read_later([0, 1, 2, bad])), (1, 1), 2))


def test_evaluation_takes_the_labels_of_classes_and_images_without_any():
    given = source([0, -1, 2])
    assert validated(given) is given
    (batch,) = eval_batches(validated(read_later([0, -1, 2])), (1, 1), 3)
    assert batch["label"].tolist() == [0, -1, 2]


def test_a_source_that_is_checked_when_read_is_the_same_otherwise():
    given = read_later([0, 1, 2])
    copy = pickle.loads(pickle.dumps(validated(given)))
    assert (len(copy), copy.image_size, copy.num_classes) == (3, (1, 1), 3)
    assert (copy.name(1), copy.fingerprint) == (given.name(1), given.fingerprint)
    assert copy[1]["label"] == 1


def test_labels_are_read_without_decoding():
    digits = make_source("digits", split="train", channels=1)
    assert (
        np.bincount(digits.labels()).tolist()
        == np.bincount([digits[index]["label"] for index in range(len(digits))]).tolist()
    )
