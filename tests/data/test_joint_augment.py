"""Joint augmentation: image and annotation stay aligned, draws are as promised, batches too."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotated import CAMVID, CAMVID_RULE, needs_camvid, write_pair, write_pairs
from ddae_jax.data.annotations import IGNORED, BadAnnotation, LabelRule, LazyAnnotation
from ddae_jax.data.images import DecodedImage
from ddae_jax.data.joint_augment import (
    Distortion,
    JointAugmentation,
    ScaledCrop,
    change_colours,
    change_levels,
    crop_labels,
    crop_pixels,
    scaled_size,
)
from ddae_jax.data.segmentation import make_pair_source
from ddae_jax.data.train_loader import TrainLoader

PLAIN = JointAugmentation(
    (16, 16), base_size=(20, 40), max_class_share=1.0, distortion=None, flip=False
)


class _Labels(LazyAnnotation):
    def __init__(self, labels):
        super().__init__(lambda: b"", "labels", LabelRule(255, None))
        self._labels = np.asarray(labels, np.uint8)

    @property
    def size(self):
        return self._labels.shape[::-1]

    def labels(self):
        return self._labels


def augmented(augmentation, image, labels, seed=0):
    opened = DecodedImage(np.asarray(image, np.uint8)), _Labels(labels)
    return augmentation(opened, lambda: np.random.default_rng(seed))


def both(labels, channels=3):
    """Returns an image each of whose channels is its annotation."""
    return np.repeat(np.asarray(labels, np.uint8)[..., None], channels, axis=-1)


class TestScale:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((683, 512), (683, 512)),  # the shorter side decides
            ((256, 256), (512, 512)),
            ((300, 3000), (205, 2048)),  # the longer side decides
        ],
    )
    def test_is_the_largest_within_both_limits(self, size, expected):
        assert scaled_size(*size, 512, 2048) == expected

    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(0, 900))
    def test_keeps_proportions_and_limits(self, height, width, shorter, more):
        scaled = scaled_size(height, width, shorter, shorter + more)
        assert min(scaled) <= shorter + 0.5
        assert max(scaled) <= shorter + more + 0.5
        scale = max(scaled) / max(height, width)
        assert abs(min(height, width) * scale - min(scaled)) <= 1

    def test_of_crops_follows_the_drawn_factor(self):
        """A 40 x 40 image at base 20: half to double of it is 10 to 40 pixels, the rest padding."""
        aug = JointAugmentation(
            (48, 48), (20, 40), max_class_share=1.0, distortion=None, flip=False
        )
        sides = [
            (augmented(aug, both(np.ones((40, 40))), np.ones((40, 40)), seed)["annotation"] == 1)
            .any(axis=0)
            .sum()
            for seed in range(200)
        ]
        assert 10 <= min(sides) <= 12
        assert 38 <= max(sides) <= 40
        assert abs(np.mean(sides) - 25) < 2


class TestGeometry:
    @given(st.integers(0, 10_000))
    def test_labels_and_pixels_see_the_same_place(self, seed):
        """In an image that equals its annotation, a linear kernel reads within a pixel of it."""
        ramp = np.add.outer(np.arange(30), 3 * np.arange(40)).astype(np.uint8)
        aug = JointAugmentation((24, 24), (30, 60), (0.8, 2.0), 1.0, distortion=None)
        example = augmented(aug, both(ramp), ramp, seed)
        is_inside = example["annotation"] != IGNORED
        assert is_inside.any()
        difference = example["image"][..., 0].astype(int) - example["annotation"]
        # Half a pixel down and right is (1 + 3) / 2; smoothing by 0.8 at an edge, a little more.
        assert np.abs(difference[is_inside]).max() <= 3
        assert abs(difference[is_inside].mean()) <= 1

    @pytest.mark.parametrize(("height", "width"), [(10, 8), (7, 13), (24, 30)])
    def test_labels_of_a_whole_image_are_pillow_s_nearest(self, height, width):
        labels = np.random.default_rng(0).integers(0, 200, (12, 15), np.uint8)
        sampled = crop_labels(labels, ScaledCrop(height, width, 0, 0, height, width))
        expected = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(sampled, np.asarray(expected))

    @pytest.mark.parametrize(("height", "width"), [(12, 15), (31, 22), (9, 11)])
    def test_a_crop_is_that_of_the_resized_image(self, height, width):
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8))
        labels = rng.integers(0, 200, (12, 15), np.uint8)
        crop = ScaledCrop(height, width, 2, 3, 6, 5)
        whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(crop_pixels(image, crop) - whole[2:8, 3:8]).max() <= 1
        all_labels = crop_labels(labels, ScaledCrop(height, width, 0, 0, height, width))
        np.testing.assert_array_equal(crop_labels(labels, crop), all_labels[2:8, 3:8])

    def test_smaller_images_are_padded_below_and_right(self):
        aug = JointAugmentation((16, 20), (8, 16), (1, 1), 1.0, True, None, (1, 2, 3))
        example = augmented(aug, both(np.full((8, 16), 50)), np.full((8, 16), 4))
        assert (example["annotation"][:8, :16] == 4).all()
        assert (example["image"][:8, :16] == 50).all()
        is_padding = np.ones((16, 20), bool)
        is_padding[:8, :16] = False
        assert (example["annotation"][is_padding] == IGNORED).all()
        assert (example["image"][is_padding] == [1, 2, 3]).all()

    def test_half_of_the_pairs_are_mirrored_whole(self):
        labels = np.random.default_rng(0).integers(0, 200, (16, 16))
        aug = JointAugmentation((16, 16), (16, 16), (1, 1), 1.0, True, None)
        mirrored = 0
        for seed in range(200):
            example = augmented(aug, both(labels), labels, seed)
            np.testing.assert_array_equal(example["image"][..., 1], example["annotation"])
            is_mirrored = np.array_equal(example["annotation"], labels[:, ::-1])
            assert is_mirrored or np.array_equal(example["annotation"], labels)
            mirrored += is_mirrored
        assert 80 <= mirrored <= 120

    def test_every_corner_is_cropped(self):
        labels = np.arange(4 * 6).reshape(4, 6)
        aug = JointAugmentation((2, 2), (4, 6), (1, 1), 1.0, False, None)
        corners = {
            int(augmented(aug, both(labels), labels, seed)["annotation"][0, 0])
            for seed in range(300)
        }
        assert corners == {6 * row + column for row in range(3) for column in range(5)}

    def test_an_annotation_of_another_size_is_refused(self):
        with pytest.raises(BadAnnotation, match="labels is 4 x 5 pixels, its image 5 x 4"):
            augmented(PLAIN, np.zeros((5, 4, 3)), np.zeros((4, 5)))


class TestClassShare:
    LABELS = np.zeros((8, 64), int)
    LABELS[:, 28:36] = 1  # crops at the sides see one class only

    def shares(self, most, labels=LABELS):
        aug = JointAugmentation((8, 16), (8, 64), (1, 1), most, False, None)
        annotations = [augmented(aug, both(labels), labels, s)["annotation"] for s in range(200)]
        return np.array(
            [np.bincount(f.ravel(), minlength=2)[:2].max() / f.size for f in annotations]
        )

    def test_crops_of_one_class_are_drawn_again_up_to_ten_times(self):
        """Of 49 crops 9 have half the pixels of class 1 and 14 a quarter: ten misses are rare."""
        ends = self.shares(0.75)
        is_varied = [
            max(share := self.LABELS[0, i : i + 16].mean(), 1 - share) <= 0.75 for i in range(49)
        ]
        missed = (1 - np.mean(is_varied)) ** 10
        assert abs((ends > 0.75).mean() - missed) < 0.05
        assert (self.shares(1.0) > 0.75).mean() > 0.3

    def test_ignored_pixels_do_not_count(self):
        """Nine of ten pixels are ignored, the others halves of two classes: any crop will do."""
        columns = np.arange(64)
        labels = np.tile(np.where(columns % 10 == 0, columns // 10 % 2, IGNORED), (8, 1))
        labels[::2] = np.where(labels[::2] < IGNORED, 1 - labels[::2], IGNORED)
        choosy, any_crop = (
            JointAugmentation((8, 16), (8, 64), (1, 1), share, False, None) for share in (0.75, 1.0)
        )
        for seed in range(20):
            chosen, expected = (
                augmented(a, both(labels), labels, seed) for a in (choosy, any_crop)
            )
            np.testing.assert_array_equal(chosen["annotation"], expected["annotation"])

    def test_where_no_crop_is_varied_the_last_is_taken(self):
        assert (self.shares(0.75, np.zeros((8, 64), int)) == 1).all()


class TestDistortion:
    IMAGE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)

    @pytest.mark.parametrize(("brightness", "contrast"), [(32, 1), (0, 0.5), (-20.5, 1.5)])
    def test_levels_follow_the_formula(self, brightness, contrast):
        expected = np.clip(np.clip(self.IMAGE + float(brightness), 0, 255) * contrast, 0, 255)
        changed = change_levels(self.IMAGE, brightness, contrast)
        np.testing.assert_allclose(changed, expected, atol=0.5)

    @pytest.mark.parametrize(
        ("saturation", "hue"), [(1.0, 30.0), (1.0, -36.0), (0.5, 0.0), (1.4, 9)]
    )
    def test_colours_follow_colorsys_up_to_rounding_to_8_bits(self, saturation, hue):
        """Rounded to 1.4 degrees and turned by whole steps, a hue is off by 2.1: 9 levels."""
        changed_pixels = change_colours(self.IMAGE, saturation, hue).reshape(-1, 3)
        for pixel, changed in zip(self.IMAGE.reshape(-1, 3), changed_pixels, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
            expected = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(s * saturation, 1), v)
            assert np.abs(changed - 255 * np.array(expected)).max() < 10
        expected_mean = np.mean(
            [
                colorsys.hsv_to_rgb((h + hue / 360) % 1, min(s * saturation, 1), v)
                for h, s, v in (colorsys.rgb_to_hsv(*p) for p in self.IMAGE.reshape(-1, 3) / 255)
            ],
            axis=0,
        )
        np.testing.assert_allclose(changed_pixels.mean(axis=0), 255 * expected_mean, atol=2)

    def test_grey_remains_grey(self):
        grey = both(self.IMAGE[..., 0])
        np.testing.assert_array_equal(change_colours(grey, 1.5, 30.0), grey)
        single = self.IMAGE[..., :1]
        assert change_colours(single, 1.5, 30.0) is single
        assert Distortion()(single, np.random.default_rng(1)).shape == (40, 40, 1)

    def test_each_change_is_made_half_of_the_time_and_in_range(self):
        flat = np.full((1, 1, 3), 100, np.uint8)
        only = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}

        def distorted(image, **change):
            distort = Distortion(**(only | change))
            return np.array(
                [distort(image, np.random.default_rng(seed))[0, 0] for seed in range(400)], int
            )

        brighter = distorted(flat, brightness=32.0)[:, 0] - 100
        assert (brighter.min(), brighter.max()) == (-32, 32)
        contrasted = distorted(flat, contrast=(0.5, 1.5))[:, 0]
        assert 50 <= contrasted.min() < 55
        assert 145 < contrasted.max() <= 150
        red = np.array([[[200, 50, 50]]], np.uint8)
        saturated = distorted(red, saturation=(0.5, 1.5))
        turned = distorted(red, hue=36.0)
        assert (saturated[:, 0] == 200).all()
        assert np.ptp(saturated[:, 1]) > 100
        assert turned[:, 1:].max() > 130  # 36 of 60 degrees from red to yellow or magenta
        changed = [brighter != 0, contrasted != 100]
        changed += [(kind != red[0, 0]).any(axis=1) for kind in (saturated, turned)]
        for is_changed in changed:
            assert 0.42 < is_changed.mean() < 0.55

    def test_annotation_is_not_distorted(self):
        labels = np.random.default_rng(0).integers(0, 200, (16, 16))
        aug = JointAugmentation((16, 16), (16, 16), (1, 1), 1.0, flip=False)
        examples = [augmented(aug, both(labels), labels, seed) for seed in range(20)]
        for one in examples:
            np.testing.assert_array_equal(one["annotation"], labels)
        assert any((one["image"][..., 0] != labels).any() for one in examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 4)}, "crop_size"),
        ({"base_size": (40, 20)}, "base_size"),
        ({"scale_range": (2.0, 0.5)}, "scale_range"),
        ({"max_class_share": 0.0}, "max_class_share"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JointAugmentation(**options)


class TestBatches:
    @pytest.fixture
    def source(self, tmp_path):
        write_pairs(tmp_path, 6)
        return make_pair_source("folder", data_dir=str(tmp_path), num_classes=5)

    def batches(self, source, count=3, start=0, **options):
        with TrainLoader(source, PLAIN, **({"batch_size": 4, "seed": 1} | options)) as loader:
            loader.set_state({"step": start, "corrupt": []})
            return [next(loader) for _ in range(count)]

    def test_hold_images_and_annotations_that_fit(self, source):
        (batch, *_) = self.batches(source)
        assert set(batch) == {"image", "annotation"}
        assert batch["image"].shape == (4, 16, 16, 3)
        assert batch["annotation"].shape == (4, 16, 16)
        assert batch["annotation"].dtype == batch["image"].dtype == np.uint8
        assert set(np.unique(batch["annotation"])) <= {0, 1, 2, 3, 4, IGNORED}

    @pytest.mark.slow
    @pytest.mark.parametrize("reading", [{"num_threads": 1}, {"num_workers": 1}])
    def test_are_the_same_whoever_reads_and_after_a_restart(self, source, reading):
        expected = self.batches(source)
        batches = self.batches(source, count=2, start=1, **reading)
        for batch, other in zip(batches, expected[1:], strict=True):
            assert batch.keys() == other.keys()
            for key in batch:
                np.testing.assert_array_equal(batch[key], other[key])

    def test_of_two_processes_are_one_s(self, source):
        whole = self.batches(source)
        parts = [self.batches(source, process_index=i, process_count=2) for i in range(2)]
        for step, batch in enumerate(whole):
            together = np.concatenate([part[step]["annotation"] for part in parts])
            np.testing.assert_array_equal(together, batch["annotation"])

    def test_corrupt_annotation_is_counted_and_replaced(self, source, tmp_path):
        (tmp_path / "annotations" / "training" / "002.png").write_bytes(b"broken")
        options = {"batch_size": 6, "seed": 0, "max_corrupt_share": 0.2}
        with TrainLoader(source, PLAIN, **options) as loader:
            assert next(loader)["annotation"].shape == (6, 16, 16)
            assert loader.get_state()["corrupt"] == [2]

    @pytest.mark.slow
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_label_of_no_class_ends_the_run(self, source, tmp_path, num_workers):
        write_pair(tmp_path, "002", np.zeros((20, 24, 3)), np.full((20, 24), 9))
        with pytest.raises(Exception, match=r"002\.png has the label 9 on 480 pixels"):
            self.batches(source, num_workers=num_workers)

    def test_pad_colour_of_other_channels_is_refused(self, tmp_path, source):
        grey = make_pair_source("folder", data_dir=str(tmp_path), num_classes=5, channels=1)
        with pytest.raises(ValueError, match=r"pad_colour=\(124, 116, 104\), but images of 1"):
            TrainLoader(grey, PLAIN, batch_size=2, seed=0)


@needs_camvid
def test_camvid_crops_hold_many_classes():
    source = make_pair_source("folder", data_dir=str(CAMVID), **CAMVID_RULE)
    augmentation = JointAugmentation((256, 256), (360, 1440))
    with TrainLoader(source, augmentation, batch_size=8, seed=0) as loader:
        batch = next(loader)
    for annotation in batch["annotation"]:
        counts = np.bincount(annotation[annotation != IGNORED], minlength=11)
        assert (counts > 0).sum() >= 3
    assert 30 < batch["image"].std() < 110
