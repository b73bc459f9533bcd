import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfc

from ddae_jax.models.transformer import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-7), ("bfloat16", 2**-8)])
def test_gelu_is_exact_to_the_rounding_of_its_type_in_the_tails_too(dtype, tolerance):
    values = jnp.linspace(-3, 4, 200).astype(dtype)
    exact = np.asarray(values, np.float64)
    expected = exact / 2 * erfc(-exact / 2**0.5)
    found = gelu(values)
    assert found.dtype == values.dtype
    # In float32, 1 + erf has an absolute error of one rounding of 1, whatever the tail.
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=tolerance, atol=4 * 2**-24
    )
