import numpy as np
import pytest

from ddae_jax.training.schedules import (
    copy_schedule,
    half_life_schedule,
    learning_rate_schedule,
    momentum_schedule,
)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (5, 0.2),  # half of the warm-up
        (10, 0.4),  # its end: 0.1 * 1024 / 256
        (35, 0.04 + 0.36 * (1 + np.cos(np.pi / 4)) / 2),
        (60, 0.22),  # half of the cosine: the mean of its ends
        (110, 0.04),  # 0.01 * 1024 / 256
        (500, 0.04),
    ],
)
def test_learning_rate_warms_up_and_follows_a_cosine(step, expected):
    schedule = learning_rate_schedule(0.1, 1024, warmup_steps=10, total_steps=110, end=0.01)
    np.testing.assert_allclose(schedule(step), expected, rtol=2e-6)


@pytest.mark.parametrize("batch_size", [32, 256, 4096])
def test_learning_rate_scales_with_the_batch(batch_size):
    schedule = learning_rate_schedule(1.5e-4, batch_size, warmup_steps=4, total_steps=20, end=1e-6)
    np.testing.assert_allclose(schedule(4), 1.5e-4 * batch_size / 256, rtol=1e-6)
    np.testing.assert_allclose(schedule(20), 1e-6 * batch_size / 256, rtol=1e-5)


def test_learning_rate_ends_at_0_by_default():
    schedule = learning_rate_schedule(1.5e-4, 512, warmup_steps=4, total_steps=20)
    np.testing.assert_allclose(schedule(20), 0, atol=1e-12)


def test_a_learning_rate_that_would_rise_after_its_warm_up_is_refused():
    with pytest.raises(ValueError, match=r"end=0.2 exceeds base=0.1"):
        learning_rate_schedule(0.1, 256, warmup_steps=4, total_steps=20, end=0.2)
    constant = learning_rate_schedule(0.1, 256, warmup_steps=4, total_steps=20, end=0.1)
    np.testing.assert_allclose([constant(4), constant(12), constant(20)], 0.1, rtol=1e-6)


def test_without_a_warm_up_the_first_step_is_whole():
    schedule = learning_rate_schedule(0.5, 256, warmup_steps=0, total_steps=8)
    np.testing.assert_allclose(schedule(0), 0.5, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [10, 50])
def test_a_warm_up_longer_than_the_run_is_cut_to_it(warmup_steps):
    schedule = learning_rate_schedule(0.9, 256, warmup_steps, total_steps=10)
    found = [float(schedule(step)) for step in range(11)]
    np.testing.assert_allclose(found, [*(0.1 * np.arange(10)), 0], rtol=1e-5, atol=1e-7)


def test_a_run_of_one_step_has_a_learning_rate():
    schedule = learning_rate_schedule(0.5, 256, warmup_steps=100, total_steps=1)
    np.testing.assert_allclose(schedule(0), 0.5, rtol=1e-6)


def test_momentum_goes_along_a_cosine_from_0996_to_1():
    schedule = momentum_schedule(0.996, 1.0, total_steps=200)
    expected = {0: 0.996, 50: 1 - 0.002 * (1 + np.sqrt(0.5)), 100: 0.998, 200: 1.0, 300: 1.0}
    for step, momentum in expected.items():
        np.testing.assert_allclose(schedule(step), momentum, rtol=2e-7)
    path = np.array([schedule(step) for step in range(201)])
    assert (np.diff(path) >= 0).all()


@pytest.mark.parametrize("half_life", [1.0, 7.0, 500.0])
def test_a_teacher_keeps_half_of_what_it_holds_for_a_half_life(half_life):
    schedule = half_life_schedule(half_life, half_life, hold_steps=0, warmup_steps=0)
    kept = np.prod([float(schedule(step)) for step in range(round(2 * half_life))])
    np.testing.assert_allclose(kept, 0.25, rtol=1e-4)


@pytest.mark.parametrize("hold", [0, 40])
def test_half_lives_stay_and_then_grow_geometrically_until_the_end_of_the_warm_up(hold):
    schedule = half_life_schedule(2.0, 200.0, hold_steps=hold, warmup_steps=50)
    steps = (0, hold, hold + 25, hold + 50, 1000)
    half_lives = [-1 / np.log2(float(schedule(step))) for step in steps]
    np.testing.assert_allclose(half_lives, [2, 2, 20, 200, 200], rtol=1e-3)


def test_a_copied_teacher_is_the_student_now_and_then_and_else_stays():
    schedule = copy_schedule(3)
    assert [float(schedule(step)) for step in range(7)] == [1, 1, 0, 1, 1, 0, 1]
