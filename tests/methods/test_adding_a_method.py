"""The example of docs/adding_a_method.md is a method that trains."""

import functools
import re

import jax
import numpy as np

import tiny
from ddae_jax import random_mask
from ddae_jax.models.vit import ViT


def test_the_documented_example_is_a_working_method():
    text = (tiny.ROOT / "docs" / "adding_a_method.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace = {}
    exec(example, namespace)
    encoder = ViT((8, 8), 4, width=8, depth=2, num_heads=2)
    mask = np.array([[True, False, True, False]] * 3)
    method = namespace["absolute_pixels"](
        encoder,
        None,
        sample_mask=lambda key, batch: mask,
        num_masked=2,
        depths=(2,),
        mode="last",
    )
    params = jax.jit(lambda key: method.init(key, 3))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    loss, supervised = jax.jit(method.loss)(params, {}, images, jax.random.key(2))
    predict = jax.jit(functools.partial(method.student.apply, method="predict"), static_argnums=3)
    predictions = predict({"params": params}, images, mask, 2)
    by_hand = []
    for row, column in ((0, 0), (1, 0)):  # patches 0 and 2 of the 2x2 grid are hidden
        true = images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(3, -1)
        by_hand.append(np.abs(predictions["pixels"][0][:, 2 * row + column] - true).mean())
    np.testing.assert_allclose(loss, np.mean(by_hand), rtol=1e-6)
    assert supervised.beta.tolist() == [[0.0]]
    assert random_mask(jax.random.key(0), 3, (2, 2), 2).shape == mask.shape
