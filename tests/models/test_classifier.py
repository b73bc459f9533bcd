"""What is classified: pooled, normed, with or without the encoder learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stand_ins
from ddae_jax.models.classifier import Classifier
from ddae_jax.models.vit import ViT

ENCODER = ViT((8, 8), 4, width=16, depth=2, num_heads=2, drop_path_rate=0.5)
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))


def initialized(**options):
    classifier = Classifier(ENCODER, 3, init_deviation=0.5, **options)
    init = functools.partial(classifier.init, jax.random.key(1), IMAGES)
    variables = stand_ins.parameters(init)
    for name, values in variables.get("batch_stats", {}).get("norm", {}).items():
        values[...] = name == "var"  # as they start
    return classifier, variables


@functools.partial(jax.jit, static_argnames="normalize")
def encode(params, normalize=True):
    return ENCODER.apply({"params": params}, IMAGES, normalize=normalize)


def layer_normed(values, scale, bias):
    mean, variance = values.mean(-1, keepdims=True), values.var(-1, keepdims=True)
    return (values - mean) / np.sqrt(variance + 1e-6) * scale + bias


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "class_token"])
@pytest.mark.parametrize("normalization", ["layer", "batch"])
def test_scores_by_hand(pool, normalization):
    classifier, variables = initialized(pool=pool, normalization=normalization)
    params = variables["params"]
    found = jax.jit(classifier.apply)(variables, IMAGES)
    norms_mean = (pool, normalization) == ("mean", "layer")
    features = encode(params["encoder"], normalize=not norms_mean)
    pooled = features.patches[0].mean(1) if pool == "mean" else features.class_token[0]
    pooled = np.asarray(pooled)
    if norms_mean:
        pooled = layer_normed(pooled, params["norm"]["scale"], params["norm"]["bias"])
    elif normalization == "batch":  # running statistics are 0 and 1 yet
        pooled = pooled / np.sqrt(1 + 1e-6)
    expected = pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ("batch_stats" in variables) == (normalization == "batch")


def test_batch_norm_standardises_features_and_keeps_their_statistics():
    classifier, variables = initialized(pool="class_token", normalization="batch", is_frozen=True)
    found, changed = jax.jit(
        lambda: classifier.apply(variables, IMAGES, is_training=True, mutable=["batch_stats"])
    )()
    features = encode(variables["params"]["encoder"]).class_token[0]
    standard = (features - features.mean(0)) / jnp.sqrt(features.var(0) + 1e-6)
    params = variables["params"]["classifier"]
    np.testing.assert_allclose(found, standard @ params["kernel"] + params["bias"], atol=1e-4)
    mean = changed["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * features.mean(0), atol=1e-5)


def test_a_frozen_encoder_gets_no_gradient_and_drops_no_path():
    classifier, variables = initialized(is_frozen=True)

    def loss(params, key):
        scores = classifier.apply(
            {"params": params}, IMAGES, is_training=True, rngs={"drop_path": key}
        )
        return jnp.square(scores).sum()

    values = [jax.jit(loss)(variables["params"], jax.random.key(seed)) for seed in (0, 1)]
    assert values[0] == values[1]
    gradient = jax.jit(jax.grad(loss))(variables["params"], jax.random.key(0))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["classifier"]))
