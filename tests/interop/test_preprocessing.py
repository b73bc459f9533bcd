"""Preprocessing and pooling as timm and transformers store them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddae_jax.interop.preprocessing import (
    Preprocessing,
    pool_from_timm,
    pool_from_transformers,
    preprocessing_from_timm,
    preprocessing_from_transformers,
)


@pytest.mark.parametrize(
    ("settings", "expected", "warning"),
    [
        ({}, (0.875, "center", "bicubic"), ""),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, (1.0, "squash", "bicubic"), ""),
        ({"crop_pct": 0.9, "interpolation": "bilinear"}, (0.9, "center", "bilinear"), ""),
        ({"crop_pct": None, "interpolation": ""}, (0.875, "center", "bicubic"), ""),
        ({"crop_mode": "border"}, (0.875, "center", "bicubic"), "F: crop_mode='border' is not kn"),
        ({"interpolation": "random"}, (0.875, "center", "bicubic"), "interpolation='random'"),
        ({"crop_pct": 1.15}, (1.0, "center", "bicubic"), "crop_pct=1.15 is not known here (known:"),
        ({"crop_pct": "most"}, (1.0, "center", "bicubic"), "crop_pct='most'"),
    ],
)
def test_missing_settings_of_timm_are_its_defaults_and_unknown_ones_warn(
    settings, expected, warning, caplog
):
    assert preprocessing_from_timm(settings, "F") == Preprocessing(*expected)
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)


def square(side):
    return {"height": side, "width": side}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # A single number is both sides for the first three, the shorter side for the others.
        (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2},
            (1.0, "squash", "bilinear"),
        ),
        ({"image_processor_type": "ViTImageProcessorFast"}, (1.0, "squash", "bilinear")),
        (
            {
                "feature_extractor_type": "BeitFeatureExtractor",
                "size": 256,
                "crop_size": 224,
                "do_center_crop": True,
                "resample": 3,
            },
            (0.875, "squash", "bicubic"),
        ),
        ({"image_processor_type": "BeitImageProcessor"}, (1.0, "squash", "bicubic")),
        ({"image_processor_type": "DeiTImageProcessor"}, (0.875, "squash", "bicubic")),
        (
            {
                "feature_extractor_type": "CLIPFeatureExtractor",
                "size": 256,
                "crop_size": 224,
                "resample": 1,
            },
            (0.875, "center", "lanczos"),
        ),
        (
            {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": 248},
                "crop_size": square(224),
            },
            (0.903225, "center", "bicubic"),
        ),
        (
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"shortest_edge": 224},
                "resample": 3,
            },
            (1.0, "center", "bicubic"),
        ),
    ],
)
def test_processors_of_transformers_are_read_as_it_reads_them(settings, expected, caplog):
    assert preprocessing_from_transformers(settings, {}, "F") == Preprocessing(*expected)
    assert not caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_processor_type": "SomeProcessor", "size": square(224)},  # without a kernel
        {"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 224}},
        {"image_processor_type": "ViTImageProcessor", "resample": 9},
    ],
)
def test_an_incomplete_processor_gives_none_and_a_warning(settings, caplog):
    assert preprocessing_from_transformers(settings, {}, "F") is None
    assert "F does not tell how images are resized and cropped" in caplog.text


def test_a_crop_that_would_be_padded_warns(caplog):
    settings = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 200}}
    assert preprocessing_from_transformers(settings, {}, "F").crop_share == 1
    assert "F: crop_size=224 is not known here (known: up to its size); 1.0 is taken" in caplog.text


def test_our_own_settings_count_where_images_are_not_resized():
    own = {"pool": "mean", "crop_share": 0.9, "crop_mode": "center", "interpolation": "box"}
    preprocessing = preprocessing_from_transformers({"do_resize": False}, own, "F")
    assert preprocessing == Preprocessing(0.9, "center", "box")
    assert preprocessing_from_transformers({"do_resize": False}, {}, "F") is None


@given(resized=st.integers(1, 1000), data=st.data())
def test_a_share_that_is_read_gives_the_same_whole_pixels(resized, data):
    cropped = data.draw(st.integers(math.ceil(resized / 3), resized))
    settings = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": resized}}
    settings |= {"crop_size": cropped}
    preprocessing = preprocessing_from_transformers(settings, {}, "F")
    assert preprocessing.resized((cropped, cropped)) == (resized, resized)


TOKEN, NORM_OF_MEAN = {"norm.weight"}, {"fc_norm.weight"}


@pytest.mark.parametrize(
    ("config", "names", "expected"),
    [
        ({"architecture": "vit_base_patch16_224"}, TOKEN, "class_token"),
        ({"architecture": "beit_base_patch16_224"}, TOKEN, "mean"),
        ({"architecture": "beit_base_patch16_224"}, NORM_OF_MEAN, "normed_mean"),
        ({"architecture": "vit_x", "global_pool": "avg"}, TOKEN, "mean"),
        ({"architecture": "vit_x", "global_pool": "avg"}, NORM_OF_MEAN, "normed_mean"),
        (
            {
                "architecture": "vit_x",
                "global_pool": "avg",
                "model_args": {"global_pool": "token"},
            },
            TOKEN,
            "class_token",
        ),
    ],
)
def test_pooling_is_that_of_timm_s_network(config, names, expected, caplog):
    assert pool_from_timm(config, config.get("model_args", {}), names) == expected
    assert not caplog.text


def test_an_unknown_pool_warns(caplog):
    assert pool_from_timm({"architecture": "vit_x", "global_pool": "map"}, {}, TOKEN) is None
    assert "global_pool='map' is not known here" in caplog.text
    arguments = {"global_pool": "avg", "pool_include_prefix": True}
    assert pool_from_timm({"architecture": "vit_x"}, arguments, TOKEN) is None
    assert "pool_include_prefix=True" in caplog.text


@pytest.mark.parametrize(
    ("config", "names", "expected"),
    [
        ({"model_type": "vit"}, {}, "class_token"),
        ({"model_type": "vit_mae"}, {}, None),
        ({"model_type": "beit"}, {"beit.pooler.layernorm.weight"}, "normed_mean"),
        ({"model_type": "beit"}, {"pooler.layernorm.weight"}, "normed_mean"),
        ({"model_type": "beit", "use_mean_pooling": False}, {}, "class_token"),
        ({"model_type": "beit"}, {}, None),  # trained to predict tokens
        ({"model_type": "vit", "ddae_jax": {"pool": "mean"}}, {}, "mean"),
    ],
)
def test_pooling_is_that_of_transformers_classifier(config, names, expected):
    assert pool_from_transformers(config, config.get("ddae_jax", {}), names, "F") == expected


def test_a_pool_of_our_own_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="F: ddae_jax.pool='banana'; known are mean, class_token"):
        pool_from_transformers({"model_type": "vit"}, {"pool": "banana"}, {}, "F")
