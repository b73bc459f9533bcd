"""The affine layer: its form for a CPU is the plain product, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae_jax.models.backend import compiled_for
from ddae_jax.models.dense import Dense, matrix_product

SHAPES = [(6, 4, 9), (6, 9, 4), (20, 9, 2), (5, 3, 3)]


def drawn(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


@pytest.mark.parametrize(("rows", "width", "features"), SHAPES)
def test_product_and_gradients_are_the_formulas(rows, width, features):
    x, w, g = drawn(rows, width), drawn(width, features), drawn(rows, features)
    outputs, backward = jax.vjp(matrix_product, *(jnp.asarray(a, jnp.float32) for a in (x, w)))
    of_inputs, of_kernel = backward(jnp.asarray(g, jnp.float32))
    for found, expected in ((outputs, x @ w), (of_inputs, g @ w.T), (of_kernel, x.T @ g)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_is_the_same_for_every_platform(dtype):
    layer, x = Dense(7, dtype=dtype), jnp.asarray(drawn(2, 5, 4), jnp.float32)
    params = layer.init(jax.random.key(0), x)

    def loss(params, x):
        return (layer.apply(params, x).astype(jnp.float32) ** 2).sum()

    ours = jax.grad(loss, argnums=(0, 1))(params, x)
    with compiled_for("tpu"):
        plain = jax.grad(loss, argnums=(0, 1))(params, x)
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(abs(b).max()))


@pytest.mark.parametrize(("rows", "width", "features"), SHAPES)
def test_no_product_on_a_cpu_has_a_transposed_left_factor(rows, width, features):
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, width), (width, features)))
    gradient = jax.grad(lambda x, w: (matrix_product(x, w) ** 2).sum(), argnums=(0, 1))
    text = jax.jit(gradient).lower(x, w).compile().as_text()
    assert "lhs_contracting_dims={1}" in text
    assert "lhs_contracting_dims={0}" not in text


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_parameters_and_inputs_in_numpy_are_computed_in_the_layers_dtype(platform):
    params = {"kernel": drawn(4, 7).astype(np.float32), "bias": drawn(7).astype(np.float32)}
    inputs = drawn(5, 4).astype(np.float32)
    with compiled_for(platform):
        outputs = Dense(7, dtype=jnp.bfloat16).apply({"params": params}, inputs)
        expected = Dense(7, dtype=jnp.bfloat16).apply(
            {"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(inputs)
        )
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_array_equal(outputs, expected)
