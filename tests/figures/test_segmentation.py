"""Tests of segmentation overlays: distinguishable colours, and the colour of each pixel."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from annotated import CAMVID, CAMVID_RULE, needs_camvid
from ddae_jax.data.annotations import IGNORED
from ddae_jax.data.segmentation import make_pair_source
from ddae_jax.figures.segmentation import NUM_COLOURS, class_colours, overlay, overlay_figure
from drawn import has_colour, picture


class TestColours:
    @pytest.mark.parametrize(("count", "least"), [(11, 45), (40, 23), (150, 12), (256, 10)])
    def test_differ_visibly_by_scikit_image_s_lab(self, count, least):
        """A difference of 2.3 is just noticeable (Mahy et al. 1994)."""
        lab = rgb2lab(class_colours()[:count])
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
        assert apart[~np.eye(count, dtype=bool)].min() > least

    def test_are_no_grey_which_marks_what_is_ignored(self):
        colours = class_colours()
        assert colours.shape == (NUM_COLOURS, 3)
        assert 0 <= colours.min() <= colours.max() <= 1
        assert np.ptp(colours, axis=1).min() > 0.1


class TestOverlay:
    def test_each_class_tints_its_pixels(self):
        labels = np.repeat([[0, 3, 7]], 4, axis=0)
        shown = overlay(np.full((4, 3, 3), 128, np.uint8), labels)
        for column, label in enumerate((0, 3, 7)):
            tint = shown[0, column] - shown[0, column].mean()
            colour = class_colours()[label] - class_colours()[label].mean()
            np.testing.assert_allclose(tint, tint @ colour / (colour @ colour) * colour, atol=1e-6)
            assert tint @ colour > 0

    def test_the_image_shows_through(self):
        images = np.zeros((2, 4, 4, 1)), np.ones((2, 4, 4, 1))
        dark, light = (overlay(image[0], np.zeros((4, 4), int)) for image in images)
        assert (light - dark > 0.2).all()

    def test_what_is_ignored_is_hatched_in_greys(self):
        shown = overlay(np.full((90, 90, 3), 128, np.uint8), np.full((90, 90), IGNORED))
        assert len(np.unique(shown.reshape(-1, 3).round(6), axis=0)) == 2
        assert np.ptp(shown, axis=-1).max() < 0.1

    def test_classes_are_parted_by_light_lines(self):
        labels = np.zeros((200, 200), int)
        labels[:, 100:] = 1
        shown = overlay(np.zeros((200, 200, 3), np.uint8), labels)
        assert shown[:, 100].min() > 0.7
        assert shown[:, [99, 101]].max() < 0.7


class TestFigure:
    @pytest.mark.slow
    @pytest.mark.parametrize("names", [None, [f"thing {i}" for i in range(150)]])
    def test_shows_images_of_many_sizes_and_classes(self, tmp_path, names):
        rng = np.random.default_rng(0)
        sizes = ((40, 60), (64, 32))
        images = [rng.uniform(size=(*size, 3)) for size in sizes]
        labels = [rng.integers(0, 150, size) for size in sizes]
        labels[1][:10] = IGNORED
        path = tmp_path / "new folder" / "a.png"
        overlay_figure(path, images, labels, [each % 150 for each in labels], names)
        shown = picture(path)
        assert has_colour(shown, overlay(images[0], labels[0])[5, 5])

    def test_unannotated_image_is_drawn_without_a_score(self, tmp_path):
        nothing = [np.full((64, 64), IGNORED)]
        overlay_figure(tmp_path / "a.png", [np.zeros((64, 64, 1))], nothing, [nothing[0] * 0])
        picture(tmp_path / "a.png")

    @needs_camvid
    def test_legend_shows_the_classes_of_camvid_that_are_present(self, tmp_path):
        source = make_pair_source("folder", data_dir=str(CAMVID), split="validation", **CAMVID_RULE)
        pair = source[40]
        labels = pair["annotation"]
        overlay_figure(tmp_path / "a.png", [pair["image"]], [labels], [labels])
        shown, colours = picture(tmp_path / "a.png"), class_colours()
        present = np.unique(labels[labels != IGNORED])
        assert [n for n in range(11) if has_colour(shown, colours[n])] == present.tolist()

    @pytest.mark.parametrize(
        ("labels", "names", "message"),
        [
            ([], None, "1 images, 0 annotations"),
            ([np.zeros((3, 4), int)], None, r"image 0 is of shape \(4, 4, 3\), its .* \(3, 4\)"),
            ([np.full((4, 4), 2)], ("a", "b"), "image 0 has the class 2; there are 2 classes"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, labels, names, message):
        with pytest.raises(ValueError, match=message):
            overlay_figure(tmp_path / "a.png", [np.zeros((4, 4, 3))], labels, labels, names)
        assert not list(tmp_path.iterdir())
