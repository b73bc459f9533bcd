"""Tests of a classifier's scores: equal to scikit-learn's, and each image counts once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from ddae_jax.evaluation.classification import make_count, score
from ddae_jax.figures.confusion import confusion_figure, most_confused, worst_classes
from ddae_jax.training.sharding import make_mesh
from drawn import picture

CLASSES, COUNT, BATCH = 7, 45, 16
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, COUNT).astype(np.int32)
# The logits of an image are its first pixels.
IMAGES = RNG.integers(0, 256, (COUNT, 1, CLASSES, 1), np.uint8)


def batches(labels=LABELS, images=IMAGES):
    for start in range(0, len(labels), BATCH):
        image, label = images[start : start + BATCH], labels[start : start + BATCH]
        short = BATCH - len(label)
        yield {
            "image": np.pad(image, [(0, short), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(label, (0, short), constant_values=-1),
            "index": np.arange(BATCH),
            "valid": np.arange(BATCH) < len(label),
        }


def scores_on(mesh, **changes):
    count = make_count(
        lambda params, images: images[:, 0, :, 0].astype(jnp.float32) / 50, CLASSES, mesh
    )
    return score(count, {}, batches(**changes), mesh)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_scores_are_scikit_learns(num_devices):
    found = scores_on(make_mesh(devices=jax.devices()[:num_devices]))
    logits = IMAGES[:, 0, :, 0].astype(np.float64) / 50
    predicted = logits.argmax(axis=1)
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(LABELS, predicted))
    assert found.num_images == COUNT
    assert found.top1 == pytest.approx(metrics.accuracy_score(LABELS, predicted))
    labels = list(range(CLASSES))
    top5 = metrics.top_k_accuracy_score(LABELS, logits, k=5, labels=labels)
    assert found.top5 == pytest.approx(top5)
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(metrics.log_loss(LABELS, share, labels=labels), rel=1e-5)
    recall = metrics.recall_score(LABELS, predicted, average=None)
    np.testing.assert_allclose(found.per_class, recall)


def test_unlabelled_images_do_not_count_and_a_class_without_images_has_no_accuracy():
    labels = np.where(LABELS == 3, -1, LABELS)
    found = scores_on(make_mesh(), labels=labels)
    assert found.num_images == (LABELS != 3).sum()
    assert np.isnan(found.per_class[3])
    assert np.isfinite(np.delete(found.per_class, 3)).all()


def test_no_labelled_image_is_an_error():
    with pytest.raises(ValueError, match="no labelled images"):
        scores_on(make_mesh(), labels=np.full(COUNT, -1, np.int32))


def test_labelled_images_that_cannot_be_decoded_are_told_from_unlabelled_ones():
    count = make_count(lambda params, images: images[:, 0, :, 0] / 50.0, CLASSES, make_mesh())
    unreadable = [batch | {"valid": np.zeros(BATCH, bool)} for batch in batches()]
    with pytest.raises(ValueError, match=f"none of {COUNT} labelled images can be decoded"):
        score(count, {}, unreadable, make_mesh())


# ---- the figure


def test_what_is_confused_most_comes_first():
    confusion = np.array([[8, 2, 0], [0, 10, 0], [5, 0, 5]])
    assert most_confused(confusion) == [(2, 0), (0, 1)]
    accuracy = np.array([0.8, np.nan, 0.5])
    assert worst_classes(accuracy, ("a", "b", "c")) == [("c", 0.5), ("a", 0.8)]


@pytest.mark.parametrize("count", [2, 10, 100])
def test_few_and_many_classes_are_drawn(count, tmp_path):
    confusion = np.random.default_rng(0).integers(0, 9, (count, count)) + 50 * np.eye(
        count, dtype=int
    )
    confusion_figure(tmp_path / "a.png", confusion, [f"class {i}" for i in range(count)])
    assert picture(tmp_path / "a.png").std() > 0.05


def test_a_name_for_each_class_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="2 names; the confusion is of 3 classes"):
        confusion_figure(tmp_path / "a.png", np.eye(3, dtype=int), ["a", "b"])
