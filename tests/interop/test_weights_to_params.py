"""Encoders of timm, given its weights, compute what timm computed."""

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
    wanted = jax.eval_shape(encoder.init, jax.random.key(0), arrays["images"])["params"]
    golden_arrays.assert_same_shapes(params, wanted)


@pytest.mark.parametrize("form", ["batched_matmul", "dot_product", "einsum"])
@pytest.mark.parametrize("name", OPTIONS)
def test_features_are_those_of_timm(name, form):
    encoder, params, arrays, _ = timm_model(name, attention_form=form)
    normalize = name == "vit"  # timm's Beit norms the mean of the patches, not each of them
    apply = jax.jit(functools.partial(encoder.apply, normalize=normalize))
    tokens = apply({"params": params}, arrays["images"]).tokens[0]
    np.testing.assert_allclose(tokens, arrays["features"], atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_of_a_classifier_are_those_of_timm(name):
    encoder, params, arrays, weights = timm_model(name)

    def loss(encoder_params, kernel):
        found = encoder.apply({"params": encoder_params}, arrays["images"], normalize=name == "vit")
        if name == "vit":
            pooled = found.class_token[0]
        else:
            mean = found.patches[0].mean(axis=1)
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
    of_encoder, of_head = gradient
    expected = golden_arrays.gradients(arrays)
    found = {
        "vit": {
            "pos_embed": np.concatenate(
                [of_encoder["class_token"][None], of_encoder.get("positions", [])]
            )[None]
            if name == "vit"
            else None,
            "cls_token": of_encoder["class_token"][None, None],
            "blocks.0.attn.qkv.weight": of_encoder["block_01"]["attention"]["qkv"]["kernel"].T,
        },
        "beit": {
            "cls_token": of_encoder["class_token"][None, None],
            "blocks.0.attn.q_bias": of_encoder["block_01"]["attention"].get("query_bias"),
            "blocks.1.attn.relative_position_bias_table": of_encoder.get(
                "relative_positions_02", {}
            ).get("table"),
            "blocks.1.gamma_1": of_encoder["block_02"].get("attention_scale"),
            "head.weight": of_head.T,
        },
    }[name]
    assert len(found) >= 3
    for key, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[key], atol=1e-6, rtol=1e-4, err_msg=key)


def test_weights_of_another_network_are_refused_by_name():
    _, weights = golden_arrays.load("timm_vit")
    with pytest.raises(UnknownWeights, match=r"1 of .* known here: blocks.0.spectral \(3,\)"):
        timm_encoder(weights | {"blocks.0.spectral": np.zeros(3)})
