"""Deep dynamic supervision: modes, weights, depths, and its use in code of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax import DeepDynamicSupervision, supervised_depths

GRID = (2, 4)
OBJECTIVES, DEPTHS = ("pixels", "features"), (2, 4, 6)


def example(objectives=2, depths=3):
    rng = np.random.default_rng(0)
    mask = rng.uniform(size=(4, 8)) < 0.7
    mask[:, 0] = False
    mask[:, 7] = True
    return rng.gamma(2, 1, (objectives, depths, 4, 8)).astype(np.float32), mask


def supervise(errors, mask, beta=None, **options):
    supervision = DeepDynamicSupervision(OBJECTIVES, DEPTHS, **options)
    variables = supervision.init(jax.random.key(0), errors, mask, GRID)
    if beta is not None:
        variables = {"params": {"beta": jnp.asarray(beta, jnp.float32)}}
    return variables, supervision.apply(variables, errors, mask, GRID)


def numpy_losses(errors, mask, beta):
    """Computes ``L_os`` from brute-force distances."""
    rows, columns = np.divmod(np.arange(8), 4)
    weights = np.zeros((*beta.shape, *mask.shape))
    for image, hidden in enumerate(mask):
        to_each = np.hypot(rows[:, None] - rows[~hidden], columns[:, None] - columns[~hidden])
        distance = to_each.min(axis=1)
        for index in np.ndindex(beta.shape):
            share = distance[hidden] / distance.max()
            weights[(*index, image)][hidden] = share ** beta[index]
    return (weights * errors).sum(axis=(2, 3)) / mask.sum()


def test_it_is_usable_alone_as_its_docstring_says():
    errors, mask = example(objectives=1, depths=4)
    supervision = DeepDynamicSupervision(objectives=("pixels",), depths=(6, 8, 10, 12))
    variables = supervision.init(jax.random.key(0), errors, mask, GRID)
    np.testing.assert_array_equal(variables["params"]["beta"], np.full((1, 4), -0.5, np.float32))

    def loss(variables):
        return supervision.apply(variables, errors, mask, GRID).loss

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    expected = numpy_losses(errors, mask, np.full((1, 4), -0.5)).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert (np.asarray(gradients["params"]["beta"]) < 0).all()


@pytest.mark.parametrize("mode", ["last", "deep"])
def test_undynamic_modes_own_no_parameter_and_take_plain_means(mode):
    errors, mask = example()
    variables, supervised = supervise(errors, mask, mode=mode)
    assert not jax.tree.leaves(variables)
    np.testing.assert_array_equal(supervised.beta, np.zeros((2, 3)))
    means = errors[..., mask].mean(axis=-1)
    np.testing.assert_allclose(supervised.losses, means, rtol=1e-6)
    np.testing.assert_allclose(supervised.plain_losses, means, rtol=1e-6)
    np.testing.assert_allclose(supervised.loss, means.sum(), rtol=1e-6)


def test_deep_dynamic_owns_one_beta_for_each_objective_and_depth_and_nothing_else():
    errors, mask = example()
    variables, supervised = supervise(errors, mask, beta_init=-1.5)
    assert [leaf.shape for leaf in jax.tree.leaves(variables)] == [(2, 3)]
    assert variables["params"]["beta"].dtype == jnp.float32
    np.testing.assert_array_equal(supervised.beta, np.full((2, 3), -1.5, np.float32))


def test_losses_are_each_of_their_own_beta_and_plain_losses_of_none():
    errors, mask = example()
    beta = np.array([[-2.0, -0.5, 0.0], [0.5, 1.0, 3.0]])
    _, supervised = supervise(errors, mask, beta)
    np.testing.assert_allclose(supervised.losses, numpy_losses(errors, mask, beta), rtol=1e-5)
    np.testing.assert_allclose(supervised.plain_losses, errors[..., mask].mean(-1), rtol=1e-6)
    np.testing.assert_array_equal(supervised.beta, beta.astype(np.float32))


def test_the_loss_is_the_weighted_sum_over_objectives_and_depths():
    errors, mask = example()
    beta = np.linspace(-1, 1, 6).reshape(2, 3)
    _, supervised = supervise(
        errors, mask, beta, objective_weights=(2.0, 0.25), depth_weights=(1.0, 0.0, 4.0)
    )
    losses = numpy_losses(errors, mask, beta)
    expected = sum(
        objective * depth * losses[o, s]
        for o, objective in enumerate((2.0, 0.25))
        for s, depth in enumerate((1.0, 0.0, 4.0))
    )
    np.testing.assert_allclose(supervised.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(supervised.losses, losses, rtol=1e-5)
    plain = (numpy_losses(errors, mask, np.zeros((2, 3))) * np.outer((2, 0.25), (1, 0, 4))).sum()
    np.testing.assert_allclose(supervised.plain_loss, plain, rtol=1e-5)


def test_plain_losses_do_not_move_beta_and_the_loss_reaches_every_beta():
    errors, mask = example()
    supervision = DeepDynamicSupervision(OBJECTIVES, DEPTHS)

    @jax.jit
    def gradients(beta):
        def of(what):
            return jax.grad(
                lambda beta: getattr(
                    supervision.apply({"params": {"beta": beta}}, errors, mask, GRID), what
                ).sum()
            )(beta)

        return of("plain_losses"), of("loss")

    by_plain, by_loss = gradients(jnp.full((2, 3), -0.5))
    np.testing.assert_array_equal(by_plain, np.zeros((2, 3)))
    assert (np.asarray(by_loss) < 0).all()


def test_the_relative_gradient_is_that_of_the_logarithm_of_each_loss():
    errors, mask = example()
    beta = jnp.linspace(-1, 1, 6).reshape(2, 3)
    log = lambda beta: jnp.log(supervise(errors, mask, beta)[1].losses).sum()  # noqa: E731
    expected = jax.grad(log)(beta)
    options = {"objective_weights": (2.0, 0.25), "depth_weights": (1.0, 3.0, 0.5)}
    supervision = DeepDynamicSupervision(OBJECTIVES, DEPTHS, **options)

    def found(scale, weights=None):
        def of(beta):
            out = supervision.apply({"params": {"beta": beta}}, scale * errors, mask, GRID, weights)
            return out.loss, out.losses

        gradient, losses = jax.grad(of, has_aux=True)(beta)
        return supervision.relative_gradient(gradient, losses)

    np.testing.assert_allclose(found(1.0), expected, rtol=1e-5)
    np.testing.assert_allclose(found(1e-3), expected, rtol=1e-5)
    half_way = jnp.asarray([2.0 * 0.5, 0.0])  # weights under schedules whose factors are 0.5 and 0
    np.testing.assert_allclose(found(1.0, half_way)[0], 0.5 * expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found(1.0, half_way)[1], 0)


def test_the_relative_gradient_of_nothing_is_0():
    supervision = DeepDynamicSupervision(OBJECTIVES, DEPTHS, depth_weights=(1.0, 0.0, 1.0))
    losses = jnp.array([[0.0, 1.0, 1.0], [2.0, 1.0, 0.5]])
    gradient = jnp.array([[0.0, 0.0, -0.2], [-0.2, 0.0, -0.2]])
    found = supervision.relative_gradient(gradient, losses)
    np.testing.assert_allclose(found, [[0, 0, -0.2], [-0.1, 0, -0.4]], rtol=1e-6)


def test_the_other_weighting_can_be_chosen():
    errors, mask = example()
    ones = np.ones_like(errors)
    _, supervised = supervise(ones, mask, np.full((2, 3), 2.0), weighting="normalised")
    np.testing.assert_allclose(supervised.losses, np.ones((2, 3)), rtol=1e-5)
    _, supervised = supervise(ones, mask, np.full((2, 3), 2.0), weighting="power")
    assert (np.asarray(supervised.losses) < 0.95).all()


@pytest.mark.parametrize(
    "options", [{"objective_weights": (1.0,)}, {"depth_weights": (1.0, 1.0, 1.0, 1.0)}]
)
def test_weights_of_another_number_are_an_error_naming_them(options):
    errors, mask = example()
    (name, weights), *_ = options.items()
    with pytest.raises(ValueError, match=name) as error:
        supervise(errors, mask, **options)
    assert str(weights) in str(error.value)


@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (3, 2)])
def test_errors_of_other_objectives_or_depths_are_an_error(shape):
    errors, mask = example(*shape)
    with pytest.raises(ValueError, match="2 objectives") as error:
        supervise(errors, mask)
    assert str(errors.shape) in str(error.value)
    assert "'features'" in str(error.value)


def test_an_unknown_mode_is_an_error_that_names_the_known_ones():
    errors, mask = example()
    with pytest.raises(ValueError, match="'dynamic'; known: last, deep, deep_dynamic"):
        supervise(errors, mask, mode="dynamic")
    with pytest.raises(ValueError, match="'dynamic'; known: last, deep, deep_dynamic"):
        supervised_depths("dynamic", 12)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (12, (6, 8, 10, 12)),
        (24, (12, 16, 20, 24)),
        (32, (16, 21, 27, 32)),
        (6, (3, 4, 5, 6)),
        (2, (1, 2)),
        (1, (1,)),
    ],
)
@pytest.mark.parametrize("mode", ["deep", "deep_dynamic"])
def test_default_depths_are_a_half_two_thirds_five_sixths_and_all(mode, depth, expected):
    assert supervised_depths(mode, depth) == expected


def test_last_reads_out_the_last_block_only():
    assert supervised_depths("last", 12) == (12,)
    assert supervised_depths("last", 12, (6, 12)) == (12,)


def test_depths_can_be_chosen():
    assert supervised_depths("deep", 12, [3, 7]) == (3, 7)


@pytest.mark.parametrize("depths", [(6, 13), (0, 12), (8, 6), (6, 6), (-1,)])
def test_depths_beyond_the_model_or_out_of_order_are_an_error(depths):
    with pytest.raises(ValueError, match="at most 12") as error:
        supervised_depths("deep_dynamic", 12, depths)
    assert str(depths) in str(error.value)
