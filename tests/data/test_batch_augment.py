"""Mixup, CutMix and random erasing: shares of pixels and targets, boxes, and how often."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.data.batch_augment import mixup_or_cutmix, random_erasing, smoothed_one_hot
from ddae_jax.training.sharding import batch_sharding, make_mesh

BATCH, SIDE, CLASSES = 6, 16, 4
LABELS = jnp.arange(BATCH) % CLASSES
TARGETS = smoothed_one_hot(LABELS, CLASSES)
# Each image has a value of its own, so that pixels show which image they come from.
IMAGES = jnp.broadcast_to(jnp.arange(1.0, BATCH + 1)[:, None, None, None], (BATCH, SIDE, SIDE, 3))
KEYS = jax.random.split(jax.random.key(0), 200)


@functools.cache
def mixed(**options):
    """Mixes 200 batches."""
    mix = functools.partial(mixup_or_cutmix, images=IMAGES, targets=TARGETS, **options)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: mix(key)))(KEYS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smooth_labels_by_hand(smoothing):
    targets = smoothed_one_hot(jnp.array([2]), 4, smoothing)
    expected = [[smoothing / 4, smoothing / 4, 1 - smoothing + smoothing / 4, smoothing / 4]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_sum_to_one_and_pixels_have_the_shares_of_labels(mixup, cutmix):
    images, targets = mixed(mixup_alpha=mixup, cutmix_alpha=cutmix)
    np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-5)
    own = images[:, 0].mean(axis=(1, 2, 3))  # of image 1, whose partner is image 6
    share = (6 - own) / 5
    expected = share[:, None] * TARGETS[0] + (1 - share[:, None]) * TARGETS[5]
    np.testing.assert_allclose(targets[:, 0], expected, atol=1e-4)


@pytest.mark.slow
def test_cutmix_puts_a_box_of_the_partner_into_the_image_and_mixup_blends_all_of_it():
    pasted, _ = mixed(mixup_alpha=0.0, cutmix_alpha=1.0)
    assert set(np.unique(pasted[:, 0])) <= {1.0, 6.0}
    for image in pasted[:, 0, :, :, 0]:
        rows, columns = np.nonzero(image == 6)
        if len(rows):
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert height * width == len(rows)  # a full rectangle
    blended, _ = mixed(mixup_alpha=0.8, cutmix_alpha=0.0)
    assert (np.ptp(blended[:, 0], axis=(1, 2)) < 1e-5).all()


def test_the_shares_are_drawn_from_the_beta_distribution():
    images, _ = mixed(mixup_alpha=1.0, cutmix_alpha=0.0)
    share = (6 - images[:, 0, 0, 0, 0]) / 5
    assert abs(share.mean() - 0.5) < 0.08  # 200 draws of a uniform distribution
    assert share.min() < 0.05
    assert share.max() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_cutmix_is_chosen_as_often_as_asked(share):
    images, _ = mixed(mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=share)
    of_two = np.array([set(np.unique(batch[0])) <= {1.0, 6.0} for batch in images])
    assert abs(of_two.mean() - share) < 0.12


def test_mixing_happens_as_often_as_asked():
    images, targets = mixed(mixup_alpha=0.8, cutmix_alpha=0.0, probability=0.4)
    is_same = (images == np.asarray(IMAGES)).all(axis=(1, 2, 3, 4))
    assert abs(is_same.mean() - 0.6) < 0.12
    np.testing.assert_allclose(targets[is_same], np.broadcast_to(TARGETS, targets[is_same].shape))


def test_without_mixup_and_cutmix_nothing_changes():
    images, targets = mixup_or_cutmix(KEYS[0], IMAGES, TARGETS, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert images is IMAGES
    assert targets is TARGETS


@pytest.mark.slow
def test_the_middle_of_an_odd_batch_is_its_own_partner():
    images, targets = mixup_or_cutmix(
        KEYS[0], IMAGES[:5], TARGETS[:5], mixup_alpha=0.8, cutmix_alpha=0.0
    )
    np.testing.assert_allclose(images[2], IMAGES[2], rtol=1e-6)
    np.testing.assert_allclose(targets[2], TARGETS[2], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mix", "erase"])
def test_mixing_on_eight_devices_gives_what_it_gives_on_one(name):
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    targets = smoothed_one_hot(jnp.arange(16) % 4, 4)

    def change(key, images, targets):
        if name == "erase":
            return random_erasing(key, images, probability=0.7), targets
        return mixup_or_cutmix(key, images, targets, mixup_alpha=0.8, cutmix_alpha=1.0)

    sharding = batch_sharding(make_mesh())
    spread = jax.jit(change, in_shardings=(None, sharding, sharding))
    for one, many in zip(
        jax.jit(change)(KEYS[1], images, targets), spread(KEYS[1], images, targets), strict=True
    ):
        np.testing.assert_allclose(one, many, atol=1e-6)


# ---- random erasing


def erased(**options):
    """Erases boxes in 200 images of the value 7."""
    images = jnp.full((200, 20, 30, 3), 7.0)
    changed = jax.jit(lambda key: random_erasing(key, images, **options))(KEYS[0])
    return np.asarray(changed)


def test_a_box_of_the_asked_area_and_aspect_is_filled_with_normal_noise():
    changed = erased(probability=1.0, area=(0.1, 0.3), ratio=(0.5, 2.0))
    for image in changed:
        rows, columns = np.nonzero((image != 7).all(axis=-1))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == len(rows)
        assert 0.1 * 600 - 15 < len(rows) < 0.3 * 600 + 15  # up to the rounding of sides
        assert 0.4 < height / width < 2.5
    noise = changed[changed != 7]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_images_are_erased_as_often_as_asked():
    is_changed = (erased(probability=0.25) != 7).any(axis=(1, 2, 3))
    assert abs(is_changed.mean() - 0.25) < 0.1
    assert (erased(probability=0.0) == 7).all()


def test_a_box_that_never_fits_erases_nothing():
    assert (erased(probability=1.0, area=(0.9, 1.0), ratio=(0.1, 0.1)) == 7).all()
