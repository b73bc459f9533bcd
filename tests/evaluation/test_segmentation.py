"""Tests of segmentation: scores against scikit-learn, windows against whole-image predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

from annotated import CAMVID, CAMVID_RULE, needs_camvid
from ddae_jax.data.annotations import IGNORED
from ddae_jax.data.segmentation import make_pair_source
from ddae_jax.evaluation.segmentation import (
    WholeImageSegmenter,
    class_iou,
    confusion_matrix,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    resize,
    sliding_logits,
    window_corners,
)

WEIGHTS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
CROP, STRIDE = (16, 16), (10, 10)


@jax.jit
def pixelwise(crops):
    """Returns logits that depend only on the pixel itself, so that windows change nothing."""
    return crops @ WEIGHTS


def noise(height, width, seed=0):
    return np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)


def check_against_scikit_learn(labels, predictions, num_classes):
    found = confusion_matrix(labels, predictions, num_classes, IGNORED)
    counts = labels != IGNORED
    true, guess = labels[counts], predictions[counts]
    classes = np.arange(num_classes)
    expected = metrics.confusion_matrix(true, guess, labels=classes)
    np.testing.assert_array_equal(found, expected)
    occurs = np.union1d(true, guess)
    jaccard = metrics.jaccard_score(true, guess, labels=occurs, average=None, zero_division=0)
    np.testing.assert_allclose(class_iou(found)[occurs], jaccard)
    assert np.isnan(np.delete(class_iou(found), occurs)).all()
    assert mean_iou(found) == pytest.approx(jaccard.mean())
    assert pixel_accuracy(found) == pytest.approx(metrics.accuracy_score(true, guess))
    recall = metrics.recall_score(true, guess, labels=np.unique(true), average="macro")
    assert mean_accuracy(found) == pytest.approx(recall)


class TestScores:
    @pytest.mark.parametrize(("num_classes", "used"), [(2, 2), (7, 7), (150, 40)])
    def test_agree_with_scikit_learn(self, num_classes, used):
        rng = np.random.default_rng(num_classes)
        labels = rng.integers(0, used, (30, 40)).astype(np.uint8)
        predictions = np.where(rng.random((30, 40)) < 0.6, labels, rng.integers(0, used, (30, 40)))
        labels[rng.random((30, 40)) < 0.1] = IGNORED
        check_against_scikit_learn(labels, predictions, num_classes)

    @needs_camvid
    def test_agree_with_scikit_learn_on_camvid(self):
        source = make_pair_source("folder", data_dir=str(CAMVID), split="validation", **CAMVID_RULE)
        labels = np.stack([source[index]["annotation"] for index in (0, 30, 60)])
        # The prediction is as coarse as the patches of a ViT.
        coarse = [
            Image.fromarray(each).resize((30, 22), Image.Resampling.NEAREST) for each in labels
        ]
        predictions = np.stack([np.asarray(each.resize((480, 360), 0)) for each in coarse])
        predictions = np.where(predictions == IGNORED, 1, predictions)
        check_against_scikit_learn(labels, predictions, 11)

    def test_of_parts_add_up(self):
        rng = np.random.default_rng(0)
        labels, predictions = rng.integers(0, 5, (2, 4, 9, 9))
        together = confusion_matrix(labels, predictions, 5)
        parts = [confusion_matrix(*each, 5) for each in zip(labels, predictions, strict=True)]
        np.testing.assert_array_equal(sum(parts), together)

    def test_rows_are_true(self):
        assert confusion_matrix(np.array([0]), np.array([1]), 2).tolist() == [[0, 1], [0, 0]]

    def test_iou_by_hand(self):
        """The IoU is 2/3 for class 0, 1/3 for 1; class 2 is only predicted, 3 does not occur."""
        labels, predictions = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
        confusion = confusion_matrix(labels, predictions, 4)
        np.testing.assert_allclose(class_iou(confusion), [2 / 3, 1 / 3, 0, np.nan])
        assert mean_iou(confusion) == pytest.approx(1 / 3)
        assert pixel_accuracy(confusion) == pytest.approx(3 / 5)
        assert mean_accuracy(confusion) == pytest.approx((2 / 3 + 1 / 2) / 2)

    @pytest.mark.parametrize("score", [mean_iou, pixel_accuracy, mean_accuracy])
    @pytest.mark.filterwarnings("error")
    def test_of_nothing_are_refused(self, score):
        with pytest.raises(ValueError, match="counts no pixel"):
            score(np.zeros((3, 3), int))

    @pytest.mark.parametrize(
        ("labels", "predictions", "message"),
        [
            ([0, 255], [0, 0], r"labels hold 255; 3 classes ask for \[0, 2\]"),
            ([0, 1], [0, 3], "predictions hold 3"),
            ([0, -1], [0, 1], "labels hold -1"),
            ([0], [0, 1], r"labels of shape \(1,\), but predictions of \(2,\)"),
        ],
    )
    def test_what_fits_no_class_is_refused(self, labels, predictions, message):
        with pytest.raises(ValueError, match=message):
            confusion_matrix(np.array(labels), np.array(predictions), 3)


class TestWindows:
    @given(st.integers(5, 60), st.integers(1, 12), st.integers(1, 12))
    def test_cover_the_image_and_lie_inside(self, side, crop, stride):
        crop, stride = min(crop, side), min(stride, crop)
        tops = [top for top, _ in window_corners((side, crop), (crop, crop), (stride, crop))]
        assert sorted(set(tops)) == tops
        assert max(tops) + crop <= side
        assert set().union(*(range(top, top + crop) for top in tops)) == set(range(side))
        assert len(tops) == -(-(side - crop) // stride) + 1

    @pytest.mark.parametrize("size", [(16, 16), (30, 41), (9, 30), (7, 5), (300, 17)])
    def test_of_a_pixelwise_network_give_its_logits(self, size):
        image = noise(*size)
        found = sliding_logits(pixelwise, image, CROP, STRIDE, 5)
        np.testing.assert_allclose(found, image @ WEIGHTS, atol=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_that_overlap_are_averaged(self, batch_size):
        """The network returns the first pixel of its window; windows are at 0, 10 and 14."""
        image = np.tile(np.arange(30, dtype=np.float32)[None, :, None], (16, 1, 1))

        def first_pixel(crops):
            return jnp.broadcast_to(crops[:, :1, :1], (*crops.shape[:3], 1))

        found = sliding_logits(first_pixel, image, CROP, STRIDE, 1, batch_size)[0, :, 0]
        expected = np.zeros(30)
        for column in range(30):
            expected[column] = np.mean([s for s in (0, 10, 14) if s <= column < s + 16])
        np.testing.assert_allclose(found, expected)

    def test_are_one_program_whatever_the_image_s_size(self):
        traced = []

        @jax.jit
        def predict(crops):
            traced.append(crops.shape)
            return crops @ WEIGHTS

        segmenter = WholeImageSegmenter(predict, 5, CROP, STRIDE, scales=(0.5, 1.0, 1.5), flip=True)
        for size in ((20, 33), (16, 16), (5, 40)):
            assert segmenter.labels(noise(*size)).shape == size
        assert traced == [(2, 16, 16, 3)]

    def test_that_leave_gaps_are_refused(self):
        with pytest.raises(ValueError, match=r"stride=\(17, 4\); from 1 to crop_size=\(16, 16\)"):
            sliding_logits(pixelwise, noise(20, 20), CROP, (17, 4), 5)

    def test_logits_of_another_resolution_are_refused(self):
        with pytest.raises(ValueError, match=r"shape \(2, 4, 4, 5\); .*= \(2, 16, 16, 5\)"):
            sliding_logits(lambda x: pixelwise(x[:, ::4, ::4]), noise(16, 16), CROP, STRIDE, 5)


class TestWholeImageSegmenter:
    def test_one_scale_is_the_softmax_of_the_logits(self):
        image = noise(20, 30)
        segmenter = WholeImageSegmenter(pixelwise, 5, CROP, STRIDE)
        expected = scipy.special.softmax(image @ WEIGHTS, axis=-1)
        np.testing.assert_allclose(segmenter.probabilities(image), expected, atol=1e-6)
        np.testing.assert_array_equal(segmenter.labels(image), expected.argmax(axis=-1))

    def test_mirror_image_is_brought_back(self):
        """The logits are the column within the window, which flipping reverses."""
        image = noise(16, 16)

        def column(crops):
            ramp = jnp.arange(crops.shape[2], dtype=jnp.float32) / 8
            ramp = jnp.broadcast_to(ramp[:, None], (*crops.shape[:3], 1))
            return jnp.concatenate([ramp, jnp.ones_like(ramp)], axis=-1)

        found = WholeImageSegmenter(column, 2, CROP, STRIDE, flip=True).probabilities(image)
        ramp = scipy.special.expit(np.arange(16) / 8 - 1)
        np.testing.assert_allclose(found[3, :, 0], (ramp + ramp[::-1]) / 2, atol=1e-6)

    def test_flip_changes_nothing_for_a_pixelwise_network(self):
        image = noise(20, 30)
        plain, flipped = (
            WholeImageSegmenter(pixelwise, 5, CROP, STRIDE, flip=flip).probabilities(image)
            for flip in (False, True)
        )
        np.testing.assert_allclose(flipped, plain, atol=1e-6)

    def test_scales_are_averaged_at_the_image_s_size(self):
        """The network sees the scaled image; its logits are resized as scikit-image does."""
        from skimage.transform import resize as skimage_resize

        image = noise(20, 30)
        scales, sizes = (0.5, 1.0, 1.5), ((10, 15), (20, 30), (30, 45))
        found = WholeImageSegmenter(
            pixelwise, 5, CROP, STRIDE, scales=scales, flip=True
        ).probabilities(image)
        expected = np.zeros((20, 30, 5))
        for size in sizes:
            logits = resize(image, size) @ WEIGHTS
            options = {"order": 1, "mode": "edge", "anti_aliasing": False}
            back = skimage_resize(logits, (20, 30), **options)
            expected += scipy.special.softmax(back, axis=-1) / len(sizes)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)

    def test_base_size_decides_what_the_network_sees(self):
        seen = []

        def predict(crops):
            seen.append(crops)
            return pixelwise(crops)

        image = np.ones((40, 60, 3), np.float32)
        segmenter = WholeImageSegmenter(predict, 5, CROP, CROP, base_size=(16, 100), batch_size=1)
        assert segmenter.labels(image).shape == (40, 60)
        assert len(seen) == 2  # of 16 x 24 pixels, not of 40 x 60

    @pytest.mark.parametrize("scales", [(), (0.0, 1.0)])
    def test_no_scale_is_refused(self, scales):
        with pytest.raises(ValueError, match="scales="):
            WholeImageSegmenter(pixelwise, 5, CROP, STRIDE, scales=scales)


@pytest.mark.parametrize("size", [(40, 61), (9, 13)])
def test_resize_is_pillow_s_of_each_channel(size):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    expected = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    found = resize(pixels.astype(np.float32), size)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1.01)
