"""Exported encoders: the libraries compute the same features, and reading restores them."""

import functools
import json

import exported_encoders
import flax.linen as nn
import jax
import numpy as np
import pytest
from golden.make_export import NOISE, PHOTOS, digest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden_arrays
from ddae_jax.builders.data import build_eval_batches, decoding
from ddae_jax.builders.networks import build_normalize
from ddae_jax.data.sources import make_source
from ddae_jax.data.view import INTERPOLATIONS
from ddae_jax.evaluation.features import encoded_batches, make_encode
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.interop.library_export import (
    export_timm,
    export_transformers,
    export_transformers_mae,
    write_exported,
)
from ddae_jax.interop.weight_files import read_weights
from ddae_jax.interop.weights_to_params import transformers_mae
from ddae_jax.models.vit import ViT
from ddae_jax.patches import patchify
from ddae_jax.training.sharding import make_mesh

NAMES = tuple(exported_encoders.ENCODERS)


@functools.cache
def golden():
    arrays, _ = golden_arrays.load("export")
    return arrays


def write(exported, folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_exported(exported, folder)
    return folder


def features_of(encoder, params, images):
    return jax.jit(encoder.apply)({"params": params}, images)


def assert_same_tree(tree, expected):
    golden_arrays.assert_same_shapes(tree, expected)
    jax.tree.map(np.testing.assert_array_equal, tree, dict(expected))


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_those_that_the_libraries_were_given(name, tmp_path):
    _, _, exported = exported_encoders.export(name)
    assert digest(write(exported, tmp_path)) == str(golden()[f"{name}/digest"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_library_computes_our_features(name):
    encoder, params, _ = exported_encoders.export(name)
    params.pop("of_decoder", None)
    images = exported_encoders.images_for(encoder, exported_encoders.channels_of(name))
    norms_mean = "norm_of_mean" in name and name != "transformers_vit_norm_of_mean"
    apply = functools.partial(encoder.apply, normalize=not norms_mean)
    features = jax.jit(apply)({"params": params}, images)
    np.testing.assert_allclose(features.tokens[0], golden()[f"{name}/tokens"], atol=1e-5)
    if name.startswith("timm"):
        is_mean = name != "timm_vit_scaled"
        pooled = features.patches[0].mean(axis=1) if is_mean else features.class_token[0]
        if norms_mean:
            norm = nn.LayerNorm(epsilon=encoder.norm_epsilon)
            pooled = norm.apply({"params": params["norm"]}, pooled)
        np.testing.assert_allclose(pooled, golden()[f"{name}/pooled"], atol=1e-5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        (folder / name).write_bytes(golden()[f"photo/{name}"].tobytes())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_code_in_the_card_gives_the_features_of_evaluation(name, photos):
    """Compares features of photographs by the code in the model card, and by evaluation."""
    assert (
        exported_encoders.code_of(exported_encoders.card_of(name, name))
        == golden()[f"{name}/code"].item()
    )
    encoder, params, _ = exported_encoders.export(name)
    params.pop("of_decoder", None)
    config = exported_encoders.config_named(name)
    mesh, pool = make_mesh(), config.evaluation.pool
    source = make_source("folder", data_dir=str(photos), split="train", **decoding(config))
    encode = make_encode(encoder, build_normalize(config), mesh, depth=2, pool=pool)
    batches = build_eval_batches(config, source, mesh)
    (results,) = encoded_batches(lambda images: encode(params, images), batches, mesh)
    order = [PHOTOS.index(source.name(int(index)).rpartition("/")[2]) for index in results["index"]]
    assert sorted(order) == list(range(len(PHOTOS)))
    by_card = golden()[f"{name}/followed"][order]
    np.testing.assert_allclose(results["features"], by_card, atol=2e-5)
    assert np.abs(by_card[0] - by_card[1]).max() > 1e-3  # images differ by more


def test_transformers_predicts_the_pixels_that_our_decoder_does():
    encoder, params, _ = exported_encoders.export("transformers_mae")
    decoder_params = params.pop("of_decoder")
    decoder, images = (
        exported_encoders.tiny_decoder(encoder),
        exported_encoders.images_for(encoder, 3),
    )
    hidden = NOISE.argsort(axis=1).argsort(axis=1) >= 2
    visible = np.sort(NOISE.argsort(axis=1)[:, :2], axis=1)

    @jax.jit
    def predict(images):
        features = encoder.apply({"params": params}, images, visible=visible)
        decoded = decoder.apply({"params": decoder_params["decoder"]}, features, hidden)[0]
        return decoded @ decoder_params["head"]["kernel"] + decoder_params["head"]["bias"]

    logits, arrays = predict(images), golden()
    np.testing.assert_array_equal(hidden, arrays["transformers_mae/mask"])
    np.testing.assert_allclose(logits, arrays["transformers_mae/logits"], atol=1e-5)
    patches = np.asarray(patchify(images, 4))
    deviation = np.sqrt(patches.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
    targets = (patches - patches.mean(axis=-1, keepdims=True)) / deviation
    loss = np.square(logits - targets).mean(axis=-1)[hidden].mean()
    np.testing.assert_allclose(loss, arrays["transformers_mae/loss"], rtol=1e-5)


def test_a_whole_mae_comes_back_as_it_was(tmp_path):
    _, params, exported = exported_encoders.export("transformers_mae")
    decoder_params = params.pop("of_decoder")
    restored = transformers_mae(read_weights(write(exported, tmp_path) / "model.safetensors"))
    restored["encoder"].pop("positions")
    assert_same_tree(restored, {"encoder": params, **decoder_params})


@st.composite
def encoders(draw, library):
    """Draws options that a library has; timm's Beit has fewer than its VisionTransformer."""
    relative = draw(st.sampled_from(["none", "shared", "per_block"]))
    is_beit = relative != "none"
    is_timm = library == "timm"
    rows, columns = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    may_be_wide = is_timm or not is_beit
    options = {
        "relative_positions": relative,
        "has_key_bias": not is_beit,
        "image_size": (4 * rows, 4 * (columns if may_be_wide else rows)),
        "positions": draw(st.sampled_from(["none", "learned", "sincos"])),
        "layer_scale": draw(st.sampled_from([None, 0.1, 1.0] if is_timm or is_beit else [None])),
        "depth": draw(st.sampled_from([1, 2, 11])),
        "width": draw(st.sampled_from([8, 24])),
        "mlp_ratio": draw(st.sampled_from([2.0, 4.0])),
    }
    if not is_beit and is_timm:
        options["use_class_token"] = draw(st.booleans())
    if not is_beit and not is_timm and options["positions"] == "none":
        options["positions"] = "learned"  # without positions, 0 is written
    if not (is_beit and is_timm):
        options["activation"] = draw(st.sampled_from(["gelu", "quick_gelu", "gelu_tanh"]))
        options["norm_epsilon"] = draw(st.sampled_from([1e-5, 1e-6]))
    return exported_encoders.tiny_encoder(**options), draw(st.sampled_from([1, 3]))


evaluations = st.fixed_dictionaries(
    {
        "pool": st.sampled_from(["mean", "class_token", "normed_mean"]),
        "crop_share": st.sampled_from([0.4, 0.8, 0.875, 0.9, 0.95, 0.965, 1.0]),
        "crop_mode": st.sampled_from(["center", "squash"]),
        "interpolation": st.sampled_from(INTERPOLATIONS),
    }
)


def preprocessing_effect(backbone):
    """Returns what tells preprocessings apart: not the share itself, but the whole pixels."""
    preprocessing = backbone.preprocessing
    return preprocessing[1:], preprocessing.resized(backbone.options["image_size"])


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_what_is_exported_comes_back_as_it_was(library, tmp_path_factory):
    @settings(max_examples=30)
    @given(encoders(library), evaluations)
    def comes_back(drawn, evaluation):
        encoder, channels = drawn
        if not encoder.use_class_token and evaluation["pool"] == "class_token":
            evaluation = evaluation | {"pool": "mean"}
        params = exported_encoders.random_params(encoder, channels, seed=1)
        backbone = exported_encoders.backbone_of(encoder, params, channels, **evaluation)
        export = export_timm if library == "timm" else export_transformers
        restored = read_backbone(write(export(backbone), tmp_path_factory.mktemp("out")))
        assert restored.options == backbone.options
        assert (restored.mean, restored.std) == (backbone.mean, backbone.std)
        assert restored.pool == backbone.pool
        assert preprocessing_effect(restored) == preprocessing_effect(backbone)
        assert_same_tree(restored.params, backbone.params)

    comes_back()


def test_a_mask_token_goes_with_beit_and_no_other():
    options = exported_encoders.BEIT
    for changes, library, is_there in (
        (options, export_transformers, True),
        (options, export_timm, False),
        ({}, export_transformers, False),
        ({}, export_timm, False),
    ):
        encoder = exported_encoders.tiny_encoder(**changes)
        params = exported_encoders.random_params(encoder, 3, is_masked=True)
        exported = library(exported_encoders.backbone_of(encoder, params, 3))
        assert ("embeddings.mask_token" in exported.weights) is is_there
        assert exported.files["config.json"].get("use_mask_token", False) is is_there
        assert not any(name == "mask_token" for name in exported.weights)


@pytest.mark.parametrize(
    "options",
    [
        {"relative_positions": "shared", "has_key_bias": True},
        {"norms_embedding": True},
        {"norms_embedding": True, "positions": "none"},
    ],
)
def test_parameters_that_timm_has_elsewhere_keep_their_effect(options, tmp_path):
    encoder = exported_encoders.tiny_encoder(**options)
    params = exported_encoders.random_params(encoder, 3)
    restored = read_backbone(
        write(export_timm(exported_encoders.backbone_of(encoder, params, 3)), tmp_path)
    )
    images = exported_encoders.images_for(encoder, 3)
    np.testing.assert_allclose(
        features_of(ViT(**restored.options), restored.params, images).tokens,
        features_of(encoder, params, images).tokens,
        atol=1e-5,
    )


RELATIVE = {"relative_positions": "per_block"}


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        ("timm", {"norm_epsilon": 1e-12}, r"norm_epsilon=1e-12: timm's VisionTransformer has"),
        ("timm", {"norm_epsilon": 1e-5} | RELATIVE, r"norm_epsilon=1e-05: timm's Beit has 1e-06"),
        ("timm", {"use_class_token": False} | RELATIVE, r"use_class_token=False: timm's Beit"),
        ("timm", {"use_class_token": False, "has_key_bias": False}, r"use_class_token=False"),
        ("timm", {"activation": "quick_gelu"} | RELATIVE, r"activation='quick_gelu': timm's Beit"),
        ("timm", {"norms_embedding": True} | RELATIVE, r"norms_embedding=True: timm's Beit"),
        ("transformers", {"use_class_token": False}, r"use_class_token=False: .*'s? ViTModel"),
        ("transformers", {"norms_embedding": True}, r"norms_embedding=True: .* ViTModel has no"),
        ("transformers", RELATIVE | {"image_size": (8, 12)}, r"image_size=\(8, 12\): .*BeitModel"),
        ("mae", {"layer_scale": 0.1}, r"layer_scale=0.1: .* ViTMAEForPreTraining has none"),
        ("mae", {"image_size": (8, 12)}, r"image_size=\(8, 12\)"),
        ("mae", {"has_key_bias": False}, r"has_key_bias=False"),
        ("mae", {"norm_epsilon": 1e-5}, r"norm_epsilon=1e-05"),
        ("mae", {"activation": "gelu_tanh"}, r"activation='gelu_tanh'"),
        ("mae", {"use_class_token": False}, r"use_class_token=False"),
    ],
)
def test_what_the_library_cannot_compute_is_refused(library, options, message):
    encoder = exported_encoders.tiny_encoder(**options)
    params = exported_encoders.random_params(encoder, 3)
    backbone = exported_encoders.backbone_of(encoder, params, 3)
    export = {
        "timm": export_timm,
        "transformers": export_transformers,
        "mae": functools.partial(export_transformers_mae, decoder=None),
    }[library]
    other = "transformers" if library == "timm" else "timm"
    with pytest.raises(ValueError, match=message) as caught:
        export(backbone)
    assert f"try --format={other}" in str(caught.value)


def test_both_libraries_get_the_channels_of_grey_images():
    encoder = exported_encoders.tiny_encoder()
    backbone = exported_encoders.backbone_of(
        encoder, exported_encoders.random_params(encoder, 1), 1
    )
    timm, transformers = export_timm(backbone).files, export_transformers(backbone).files
    assert timm["config.json"]["model_args"]["in_chans"] == 1
    assert timm["config.json"]["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert transformers["config.json"]["num_channels"] == 1
    assert transformers["preprocessor_config.json"]["image_mean"] == [0.2]


def test_an_activation_that_is_not_known_is_named(tmp_path):
    _, _, exported = exported_encoders.export("timm_vit")
    config = write(exported, tmp_path) / "config.json"
    timm_config = json.loads(config.read_text())
    timm_config["model_args"]["act_layer"] = "relu"
    config.write_text(json.dumps(timm_config))
    with pytest.raises(ValueError, match=r"config\.json: act_layer='relu'; known .*'quick_gelu'"):
        read_backbone(tmp_path)
