"""The dynamic loss: numbers by hand, NumPy in float64, finite differences, and its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

import shape_checks
from ddae_jax.distance import distance_map
from ddae_jax.dynamic_loss import dynamic_loss, dynamic_weights, masked_mean, neighbourhood_weights

WEIGHTINGS = ("power", "normalised")
both_weightings = pytest.mark.parametrize("weighting", WEIGHTINGS)
LARGEST = float(np.finfo(np.float32).max)

# One row of five patches, the first visible: hidden ones at 1, 2, 3, 4, over the largest
# 1/4, 1/2, 3/4, 1.
LINE_MASK = np.array([[False, True, True, True, True]])
LINE_DISTANCE = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]])
LINE_ERRORS = np.array([[9.0, 1.0, 2.0, 4.0, 8.0]])


def example(objectives=2, depths=3, batch=4, grid=(5, 6), seed=0):
    """Random float64 errors, masks with different counts, their distances, and betas."""
    rng = np.random.default_rng(seed)
    total = grid[0] * grid[1]
    mask = rng.uniform(size=(batch, total)) < rng.uniform(0.5, 0.95, (batch, 1))
    mask[:, 0] = False
    mask[:, 1] = True
    squares = np.rint(np.square(np.asarray(distance_map(mask, grid)), dtype=np.float64))
    errors = rng.gamma(2.0, 0.5, (objectives, depths, batch, total))
    return errors, np.sqrt(squares), mask, rng.uniform(-2, 2, (objectives, depths))


def numpy_weights(distance, mask, beta, weighting):
    """Weights of one beta, image by image, as docs/method.md writes them."""
    weights = np.zeros_like(distance)
    for row in range(len(mask)):
        hidden = mask[row]
        power = (distance[row, hidden] / distance[row, hidden].max()) ** beta
        weights[row, hidden] = power / power.mean() if weighting == "normalised" else power
    return weights


def numpy_loss(errors, distance, mask, beta, weighting):
    losses = np.zeros(beta.shape)
    for index in np.ndindex(beta.shape):
        weights = numpy_weights(distance, mask, beta[index], weighting)
        losses[index] = (weights * errors[index]).sum() / mask.sum()
    return losses


weights_of = jax.jit(dynamic_weights, static_argnums=3)
loss_of = jax.jit(dynamic_loss, static_argnums=4)


@functools.partial(jax.jit, static_argnums=4)
def loss_and_gradients(errors, distance, mask, beta, weighting="power"):
    """The loss of one beta, and its derivatives by beta and by the errors."""
    value_and_grad = jax.value_and_grad(dynamic_loss, argnums=(3, 0))
    loss, (by_beta, by_errors) = value_and_grad(errors, distance, mask, beta, weighting)
    return loss, by_beta, by_errors


@pytest.mark.parametrize(
    ("beta", "weights", "loss"),
    [
        (0.0, [1, 1, 1, 1], 15 / 4),
        (1.0, [1 / 4, 1 / 2, 3 / 4, 1], (0.25 + 1 + 3 + 8) / 4),
        (2.0, [1 / 16, 1 / 4, 9 / 16, 1], (0.0625 + 0.5 + 2.25 + 8) / 4),
        (-1.0, [4, 2, 4 / 3, 1], (4 + 4 + 16 / 3 + 8) / 4),
        (-0.5, [2, 2**0.5, (4 / 3) ** 0.5, 1], (2 + 8**0.5 + (64 / 3) ** 0.5 + 8) / 4),
    ],
)
def test_power_by_hand(beta, weights, loss):
    found = weights_of(LINE_DISTANCE, LINE_MASK, beta)
    np.testing.assert_allclose(found, [[0, *weights]], rtol=1e-6)
    assert loss_of(LINE_ERRORS, LINE_DISTANCE, LINE_MASK, beta) == pytest.approx(loss, 1e-6)


def test_normalised_by_hand():
    # beta 1: 1/4, 1/2, 3/4, 1 over their mean 5/8.
    found = weights_of(LINE_DISTANCE, LINE_MASK, 1.0, "normalised")
    np.testing.assert_allclose(found, [[0, 0.4, 0.8, 1.2, 1.6]], rtol=1e-6)
    loss = loss_of(LINE_ERRORS, LINE_DISTANCE, LINE_MASK, 1.0, "normalised")
    assert loss == pytest.approx((0.4 + 1.6 + 4.8 + 12.8) / 4, 1e-6)


def test_each_image_is_measured_by_its_own_farthest_patch():
    # Two images: farthest patch at 4, and at 2; beta 1.
    distance = np.array([[0.0, 1.0, 4.0], [0.0, 1.0, 2.0]])
    weights = weights_of(distance, distance > 0, 1.0)
    np.testing.assert_allclose(weights, [[0, 0.25, 1], [0, 0.5, 1]], rtol=1e-6)


@both_weightings
def test_loss_and_weights_are_numpys_in_float64(weighting):
    errors, distance, mask, beta = example()
    expected = numpy_loss(errors, distance, mask, beta, weighting)
    with jax.enable_x64(True):
        weights = weights_of(distance, mask, beta, weighting)
        losses = loss_of(errors, distance, mask, beta, weighting)
        assert weights.dtype == losses.dtype == jnp.float64
        assert weights.shape == errors.shape
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
        for index in np.ndindex(beta.shape):
            of_one = numpy_weights(distance, mask, beta[index], weighting)
            np.testing.assert_allclose(weights[index], of_one, rtol=1e-12)


@both_weightings
def test_loss_is_numpys_in_float32_too(weighting):
    errors, distance, mask, beta = example(seed=1)
    losses = loss_of(errors, distance, mask, beta, weighting)
    assert losses.dtype == jnp.float32
    expected = numpy_loss(errors, distance, mask, beta, weighting)
    np.testing.assert_allclose(losses, expected, rtol=3e-6)


@both_weightings
def test_gradients_are_those_of_finite_differences_in_float64(weighting):
    errors, distance, mask, beta = example(batch=2, grid=(3, 4), seed=2)
    share = np.random.default_rng(0).uniform(0.5, 1.5, beta.shape)
    step = 1e-5  # central differences: truncation of order 1e-10, rounding of order 1e-11

    def loss(beta, errors):
        return float((share * numpy_loss(errors, distance, mask, beta, weighting)).sum())

    def differences(of, value):
        found = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            shift = np.zeros_like(value)
            shift[index] = step
            found[index] = (of(value + shift) - of(value - shift)) / (2 * step)
        return found

    with jax.enable_x64(True):
        by_beta, by_errors = jax.grad(
            lambda beta, errors: (share * loss_of(errors, distance, mask, beta, weighting)).sum(),
            argnums=(0, 1),
        )(beta, errors)
        expected = differences(lambda b: loss(b, errors), beta)
        np.testing.assert_allclose(by_beta, expected, rtol=1e-7, atol=1e-9)
        expected = differences(lambda e: loss(beta, e), errors)
        np.testing.assert_allclose(by_errors, expected, rtol=1e-7, atol=1e-9)


def test_gradient_by_beta_by_hand():
    # mean(w e log dn) at beta 1: (1/4 * 1 * log 1/4 + 1/2 * 2 * log 1/2 + 3/4 * 4 * log 3/4) / 4
    expected = (0.25 * np.log(0.25) + np.log(0.5) + 3 * np.log(0.75)) / 4
    _, gradient, _ = loss_and_gradients(LINE_ERRORS, LINE_DISTANCE, LINE_MASK, 1.0)
    assert gradient == pytest.approx(expected, 1e-6)


@both_weightings
def test_beta_zero_is_the_plain_masked_mean_to_float32_rounding(weighting):
    errors, distance, mask, _ = example(batch=16, grid=(14, 14))
    losses = loss_of(errors, distance, mask, jnp.zeros((2, 3)), weighting)
    expected = errors[..., mask].mean(axis=-1)
    np.testing.assert_allclose(losses, expected, rtol=2e-6)
    weights = np.asarray(weights_of(distance, mask, 0.0, weighting))
    if weighting == "power":
        np.testing.assert_array_equal(weights, mask)
    else:
        np.testing.assert_allclose(weights, mask, rtol=1e-6)


@given(
    mask=hnp.arrays(bool, (2, 20)),
    errors=hnp.arrays(np.float32, (2, 20), elements=st.floats(0, 2.0**10, width=32)),
    beta=st.floats(-100, 100, width=32),
)
def test_descent_can_only_raise_beta(mask, errors, beta):
    distance = jax.jit(distance_map, static_argnums=1)(mask, (4, 5))
    _, gradient, _ = loss_and_gradients(errors, distance, mask, np.float32(beta))
    assert np.isfinite(gradient)
    assert gradient <= 0


def test_near_errors_raise_beta_and_errors_of_the_farthest_do_not():
    def gradient(errors):
        return loss_and_gradients(errors, LINE_DISTANCE, LINE_MASK, -0.5)[1]

    learned_near = gradient(np.array([[0.0, 0.0, 1.0, 1.0, 1.0]]))
    assert gradient(np.array([[0.0, 1.0, 1.0, 1.0, 1.0]])) < learned_near < 0
    assert gradient(np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])) == 0


def test_normalised_weights_average_one_over_each_images_hidden_patches():
    _, distance, mask, beta = example(batch=8)
    weights = np.asarray(weights_of(distance, mask, beta, "normalised"))
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(mask.sum(-1), (2, 3, 8)), rtol=1e-5)
    assert (weights[..., ~mask] == 0).all()


@pytest.mark.parametrize("beta", [-2.0, -0.5, 0.0, 1.0])
def test_normalised_lowers_beta_where_power_raises_it_when_far_patches_are_harder(beta):
    def gradient(weighting):
        return loss_and_gradients(LINE_ERRORS, LINE_DISTANCE, LINE_MASK, beta, weighting)[1]

    assert gradient("normalised") > 0 > gradient("power")


@both_weightings
@pytest.mark.parametrize("beta", [1e4, -1e4, 1e30, -1e30, LARGEST, -LARGEST])
def test_values_and_gradients_are_finite_at_extreme_beta(beta, weighting):
    errors, distance, mask, _ = example(1, 1, batch=3, grid=(1, 20))
    mask[0] = [False] + [True] * 19  # farthest 19 times as far as the nearest
    distance[0] = np.arange(20)
    errors = errors[0, 0].astype(np.float32)
    beta = np.float32(beta)
    weights = weights_of(distance, mask, beta, weighting)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    for found in loss_and_gradients(errors, distance, mask, beta, weighting):
        assert np.isfinite(found).all()


@both_weightings
@pytest.mark.parametrize("beta", [-1e4, -0.5, 0.0, 3.0, 1e30])
@pytest.mark.parametrize("at", [1.0, 2.0])
def test_where_all_hidden_patches_are_equally_far_weights_are_one_and_beta_rests(
    at, beta, weighting
):
    mask = np.indices((4, 6)).sum(axis=0).ravel()[None] % 2 == 0  # a chessboard
    np.testing.assert_array_equal(distance_map(mask, (4, 6)), mask)
    distance = mask * at
    np.testing.assert_allclose(
        weights_of(distance, mask, beta, weighting),
        mask,
        rtol=0 if weighting == "power" else 1e-6,
    )
    errors = np.arange(24.0, dtype=np.float32)[None]
    loss, gradient, _ = loss_and_gradients(errors, distance, mask, beta, weighting)
    assert loss == pytest.approx(errors[mask].mean(), 1e-6)
    assert gradient == 0


@both_weightings
def test_images_with_nothing_hidden_weigh_nothing_and_do_no_harm(weighting):
    mask = np.concatenate([LINE_MASK, np.zeros_like(LINE_MASK)])
    distance = distance_map(mask, (1, 5))
    errors = np.concatenate([LINE_ERRORS, LINE_ERRORS]).astype(np.float32)
    both = loss_and_gradients(errors, distance, mask, 0.7, weighting)
    alone = loss_and_gradients(errors[:1], distance[:1], mask[:1], 0.7, weighting)
    np.testing.assert_allclose(both[0], alone[0], rtol=1e-6)
    np.testing.assert_allclose(both[1], alone[1], rtol=1e-5)
    np.testing.assert_array_equal(both[2][1], np.zeros(5))
    for found in loss_and_gradients(errors[1:], distance[1:], mask[1:], 0.7, weighting):
        np.testing.assert_array_equal(found, np.zeros_like(found))


@both_weightings
def test_images_with_nothing_visible_are_weighed_evenly(weighting):
    mask = np.ones((1, 6), bool)
    distance = distance_map(mask, (2, 3))
    np.testing.assert_allclose(
        weights_of(distance, mask, -2.0, weighting), np.ones((1, 6)), rtol=1e-6
    )
    errors = np.arange(6.0, dtype=np.float32)[None]
    loss, by_beta, by_errors = loss_and_gradients(errors, distance, mask, -2.0, weighting)
    assert loss == pytest.approx(2.5, 1e-6)
    assert by_beta == 0
    np.testing.assert_allclose(by_errors, np.full((1, 6), 1 / 6), rtol=1e-6)


@both_weightings
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_errors_of_visible_patches_do_not_leak(bad, weighting):
    poisoned = LINE_ERRORS.copy()
    poisoned[0, 0] = bad
    found = loss_and_gradients(poisoned, LINE_DISTANCE, LINE_MASK, 0.5, weighting)
    clean = loss_and_gradients(LINE_ERRORS, LINE_DISTANCE, LINE_MASK, 0.5, weighting)
    jax.tree.map(np.testing.assert_array_equal, found, clean)


@both_weightings
def test_bfloat16_errors_are_summed_in_float32(weighting):
    # 64 * 196 errors of 1: a bfloat16 sum would stick at 256.
    mask = np.ones((64, 196), bool)
    mask[:, 0] = False
    distance = distance_map(mask, (14, 14))
    loss = loss_of(jnp.ones(mask.shape, jnp.bfloat16), distance, mask, 0.0, weighting)
    assert loss.dtype == jnp.float32
    assert loss == pytest.approx(1, 1e-6)


@both_weightings
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_are_float32_whatever_smaller_type_comes_in(dtype, weighting):
    weights = weights_of(
        jnp.asarray(LINE_DISTANCE, dtype), LINE_MASK, jnp.asarray(0.5, dtype), weighting
    )
    assert weights.dtype == jnp.float32


def test_an_unknown_weighting_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="weighting='linear'; known: 'power', 'normalised'"):
        dynamic_weights(LINE_DISTANCE, LINE_MASK, 0.0, "linear")
    with pytest.raises(ValueError, match="weighting='linear'"):
        dynamic_loss(LINE_ERRORS, LINE_DISTANCE, LINE_MASK, 0.0, "linear")


@pytest.mark.parametrize(
    ("errors", "beta"), [((2, 1, 5), ()), ((1, 5), (2,)), ((3, 2, 1, 5), (2, 3)), ((1, 4), ())]
)
def test_shapes_that_do_not_fit_are_an_error_naming_them(errors, beta):
    with shape_checks.unchecked(), pytest.raises(ValueError, match="errors have shape") as error:
        dynamic_loss(jnp.zeros(errors), LINE_DISTANCE, LINE_MASK, jnp.zeros(beta))
    assert str(errors) in str(error.value)
    assert str((*beta, 1, 5)) in str(error.value)


def test_neighbourhood_weights_are_one_and_the_hidden_share_around():
    grid = (5, 6)
    mask = np.random.default_rng(0).uniform(size=(4, 30)) < 0.7
    found = neighbourhood_weights(mask, grid)
    for row, weights in zip(mask, found, strict=True):
        share = ndimage.uniform_filter(row.reshape(grid).astype(float), 3, mode="constant").ravel()
        np.testing.assert_allclose(weights, np.where(row, 1 + share, 0), rtol=1e-5, atol=1e-6)
    lone = np.zeros((1, 30), bool)
    lone[0, 8] = True
    np.testing.assert_allclose(neighbourhood_weights(lone, grid).sum(), 10 / 9, rtol=1e-6)
    np.testing.assert_allclose(neighbourhood_weights(np.ones((1, 30), bool), grid)[0, 8], 2)


def test_a_masked_mean_is_over_hidden_patches_and_finite_without_any():
    errors, mask = np.array([[1.0, 2.0, np.inf]]), np.array([[True, True, False]])
    np.testing.assert_allclose(masked_mean(errors, np.array([[1.0, 3.0, 0.0]]), mask), 3.5)
    assert masked_mean(errors, np.zeros((1, 3)), np.zeros((1, 3), bool)) == 0
