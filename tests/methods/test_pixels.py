"""MAE under ``last`` is the published one: golden arrays of its reference implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden_arrays
from ddae_jax.interop.weights_to_params import transformers_mae
from ddae_jax.masking import visible_indices
from ddae_jax.methods import METHODS
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.vit import ViT

ENCODER = ViT((16, 16), 4, width=32, depth=2, num_heads=2)
DECODER = Decoder((4, 4), width=24, depth=1, num_heads=2)


def method(name="mae", *, encoder=ENCODER, decoder=DECODER, mask=None, **options):
    options = {"mode": "last", "depths": (2,)} | options
    return METHODS[name].build(
        encoder, decoder, sample_mask=lambda key, batch: mask, num_masked=12, **options
    )


@pytest.fixture(scope="module")
def golden():
    arrays, weights = golden_arrays.load("mae")
    params = transformers_mae(weights)
    positions = params["encoder"].pop("positions")
    # Positions are not learned: the reference's equal this package's.
    np.testing.assert_allclose(positions, sincos_positions((4, 4), 32), atol=1e-6)
    return arrays, params


def test_all_of_the_reference_s_parameters_have_a_place(golden):
    _, params = golden
    wanted = jax.eval_shape(lambda key: method().init(key, 3), jax.random.key(0))
    golden_arrays.assert_same_shapes(params, wanted)


@pytest.mark.slow
def test_the_encoder_s_output_is_the_reference_s(golden):
    arrays, params = golden
    visible = visible_indices(arrays["mask"], 4)
    features = ENCODER.apply({"params": params["encoder"]}, arrays["images"], visible=visible)
    np.testing.assert_allclose(features.class_token[0], arrays["encoded"][:, 0], atol=1e-5)
    # The reference has visible patches in random order, this encoder in the image's.
    order = np.argsort(arrays["kept"], axis=1)
    expected = np.take_along_axis(arrays["encoded"][:, 1:], order[..., None], axis=1)
    np.testing.assert_allclose(features.patches[0], expected, atol=1e-5)


def test_the_reconstruction_is_the_reference_s(golden):
    arrays, params = golden
    found = golden_arrays.predict(method(), params, arrays["images"], arrays["mask"])
    np.testing.assert_allclose(found["pixels"][0], arrays["predictions"], atol=1e-5)


def test_loss_and_gradients_are_the_reference_s(golden):
    arrays, params = golden
    ours = method(mask=jnp.asarray(arrays["mask"]))

    (value, _), gradient = golden_arrays.loss_and_gradient(ours, params, {}, arrays["images"])
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    encoder, decoder = gradient["encoder"], gradient["decoder"]
    convolution = encoder["patch_embedding"]["kernel"].reshape(4, 4, 3, 32)
    found = {
        "vit.embeddings.cls_token": encoder["class_token"][None, None],
        "vit.embeddings.patch_embeddings.projection.weight": convolution.transpose(3, 2, 0, 1),
        "vit.layers.1.attention.k_proj.weight": (
            encoder["block_02"]["attention"]["qkv"]["kernel"][:, 32:64].T
        ),
        "vit.layernorm.weight": encoder["norm"]["scale"],
        "decoder.mask_token": decoder["mask_token"][None, None],
        "decoder.decoder_embed.bias": decoder["embedding"]["bias"],
        "decoder.decoder_layers.0.mlp.fc1.weight": decoder["block_01"]["mlp_in"]["kernel"].T,
        "decoder.decoder_pred.bias": gradient["head"]["bias"],
    }
    expected = golden_arrays.gradients(arrays)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6, rtol=1e-4, err_msg=name)


def test_intermediate_depths_go_through_the_same_decoder_and_head(golden):
    arrays, params = golden
    images, mask = arrays["images"], arrays["mask"]
    both = method(depths=(1, 2), mode="deep")
    found = golden_arrays.predict(both, params, images, mask)["pixels"]
    shallow = ENCODER.clone(depth=1)
    encoder = {k: v for k, v in params["encoder"].items() if k != "block_02"}
    first = golden_arrays.predict(
        method(encoder=shallow, depths=(1,)), params | {"encoder": encoder}, images, mask
    )
    np.testing.assert_allclose(found[0], first["pixels"][0], atol=1e-5)
    np.testing.assert_allclose(found[1], arrays["predictions"], atol=1e-5)


def test_simmim_is_the_absolute_error_of_the_pixels_as_they_are(golden):
    arrays, _ = golden
    images, mask = arrays["images"], arrays["mask"]
    ours = method("simmim", decoder=None, mask=jnp.asarray(mask), normalize_pixels=False)
    params = golden_arrays.initialize(ours)
    predicted = golden_arrays.predict(ours, params, images, mask)["pixels"]
    patches = images.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 48)
    expected = np.abs(predicted[0] - patches)[mask].mean()
    (found, _), _ = golden_arrays.loss_and_gradient(ours, params, {}, images)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_own_options_are_told_by_name():
    assert METHODS["mae"].options == METHODS["simmim"].options == {"channels", "normalize_pixels"}
    assert {"pixel_weight", "feature_weight", "normalize_pixels"} < METHODS["ddae"].options
