"""Converted encoders of timm compute timm's features, losses and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import golden_arrays
from ddae_jax.interop.weights_to_params import UnknownWeights, timm_encoder
from ddae_jax.models.vit import ViT

OPTIONS = {
    "vit": {"positions": "learned"},
    "beit": {
        "positions": "none",
        "relative_positions": "per_block",
        "has_key_bias": False,
        "layer_scale": 0.1,
    },
}


def timm_model(name, **more):
    arrays, weights = golden_arrays.load(f"timm_{name}")
    encoder = ViT((12, 20), 4, width=32, depth=2, num_heads=2, **OPTIONS[name], **more)
    return encoder, timm_encoder(weights), arrays, weights


@pytest.mark.parametrize("name", OPTIONS)
def test_all_of_the_parameters_are_there_and_no_others(name):
    encoder, params, arrays, _ = timm_model(name)
    expected = jax.eval_shape(encoder.init, jax.random.key(0), arrays["images"])["params"]
    golden_arrays.assert_same_shapes(params, expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["batched_matmul", "dot_product", "einsum"])
@pytest.mark.parametrize("name", OPTIONS)
def test_features_are_those_of_timm(name, form):
    encoder, params, arrays, _ = timm_model(name, attention_form=form)
    normalize = name == "vit"  # timm's Beit norms the mean of the patches, not each of them
    apply = jax.jit(functools.partial(encoder.apply, normalize=normalize))
    tokens = apply({"params": params}, arrays["images"]).tokens[0]
    np.testing.assert_allclose(tokens, arrays["features"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_of_a_classifier_are_those_of_timm(name):
    encoder, params, arrays, weights = timm_model(name)

    def loss(encoder_params, kernel):
        features = encoder.apply(
            {"params": encoder_params}, arrays["images"], normalize=name == "vit"
        )
        if name == "vit":
            pooled = features.class_token[0]
        else:
            mean = features.patches[0].mean(axis=1)
            normed = (mean - mean.mean(-1, keepdims=True)) / jnp.sqrt(
                mean.var(-1, keepdims=True) + 1e-6
            )
            norm = encoder_params["norm"]
            pooled = normed * norm["scale"] + norm["bias"]
        logits = pooled @ kernel + weights["head.bias"]
        labels = jnp.array([0, 3, 1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    compute = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, gradient = compute(params, weights["head.weight"].T)
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    encoder_gradient, head_gradient = gradient
    attention_gradient = encoder_gradient["block_01"]["attention"]
    expected = golden_arrays.gradients(arrays)
    gradients = {
        "vit": {
            "pos_embed": np.concatenate(
                [encoder_gradient["class_token"][None], encoder_gradient.get("positions", [])]
            )[None]
            if name == "vit"
            else None,
            "cls_token": encoder_gradient["class_token"][None, None],
            "blocks.0.attn.qkv.weight": attention_gradient["qkv"]["kernel"].T,
        },
        "beit": {
            "cls_token": encoder_gradient["class_token"][None, None],
            "blocks.0.attn.q_bias": attention_gradient.get("query_bias"),
            "blocks.1.attn.relative_position_bias_table": encoder_gradient.get(
                "relative_positions_02", {}
            ).get("table"),
            "blocks.1.gamma_1": encoder_gradient["block_02"].get("attention_scale"),
            "head.weight": head_gradient.T,
        },
    }[name]
    assert len(gradients) >= 3
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[key], atol=1e-6, rtol=1e-4, err_msg=key)


def test_weights_of_another_network_are_refused_by_name():
    _, weights = golden_arrays.load("timm_vit")
    with pytest.raises(UnknownWeights, match=r"1 of .* known here: blocks.0.spectral \(3,\)"):
        timm_encoder(weights | {"blocks.0.spectral": np.zeros(3)})
