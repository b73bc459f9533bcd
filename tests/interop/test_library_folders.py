"""Folders that timm and transformers saved: the encoders compute the libraries' features."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import golden_arrays
from ddae_jax.builders.tokenizers import load_teacher
from ddae_jax.config import pretrain_defaults
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.models.vit import ViT

FOLDERS = golden_arrays.FOLDER / "backbones"
NAMES = ("timm_clip", "timm_vit", "transformers_vit", "transformers_vit_mae", "transformers_beit")
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)


def copy_of(name, tmp_path):
    return shutil.copytree(FOLDERS / name, tmp_path / name)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_of(**data):
    config = pretrain_defaults()
    config.model.dtype = "float32"
    for key, value in data.items():
        config.data[key] = value
    return config


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_library_that_saved_it(name):
    backbone = read_backbone(FOLDERS / name)
    assert (backbone.mean, backbone.std) == (MEAN, STD)
    with np.load(FOLDERS / name / "features.npz") as stored:
        images, expected = stored["images"], stored["features"]
    # BEiT norms the mean of the patches; its tokens are those after the last block, not normed.
    normalize = name != "transformers_beit"
    apply = jax.jit(functools.partial(ViT(**backbone.options).apply, normalize=normalize))
    features = apply({"params": backbone.params}, (images - np.float32(MEAN)) / np.float32(STD))
    np.testing.assert_allclose(features.tokens[0], expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_sees_the_pixels_that_it_was_trained_on(name):
    teacher = load_teacher(
        str(FOLDERS / name), config_of(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    )
    with np.load(FOLDERS / name / "features.npz") as stored:
        images, expected = stored["images"], stored["features"]
    normalize = name != "transformers_beit"
    features = jax.jit(functools.partial(teacher.module.apply, normalize=normalize))(
        {"params": teacher.params},
        teacher.adapt((images - np.float32((0.4, 0.5, 0.6))) / np.float32(0.2)),
    )
    np.testing.assert_allclose(features.tokens[0], expected, atol=5e-5)


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "config.json", "preprocessor_config.json"]
)
def test_a_missing_file_is_named(missing, tmp_path):
    folder = copy_of("transformers_vit", tmp_path)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing"):
        read_backbone(folder)


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("timm_vit", "config.json", {"pretrained_cfg": {}}, "input_size'"),
        ("timm_vit", "config.json", {"pretrained_cfg": {"input_size": [3, 16, 16]}}, "'mean'"),
        ("transformers_vit", "preprocessor_config.json", {"image_std": None}, "'image_std'"),
        ("transformers_vit", "config.json", {"model_type": "bert"}, "'vit'.*found.*'bert'"),
        ("transformers_vit", "config.json", {"image_size": None}, "'image_size'"),
        ("transformers_vit", "config.json", {"hidden_act": "relu"}, "'relu'"),
        ("transformers_vit", "config.json", {"num_attention_heads": None}, "num_attention_heads"),
        ("transformers_vit", "config.json", {"num_attention_heads": "3"}, "heads='3'; a whole"),
        ("transformers_vit", "config.json", {"image_size": "16"}, "'image_size'"),
        ("transformers_vit", "config.json", {"ddae_jax": []}, r"'ddae_jax' is \[\]; it must hold"),
        ("transformers_vit", "preprocessor_config.json", {"rescale_factor": 0}, "rescale_factor=0"),
        (
            "transformers_vit",
            "preprocessor_config.json",
            {"image_mean": "a"},
            "'a' as 'image_mean'",
        ),
        ("timm_vit", "config.json", {"model_args": [1]}, r"'model_args' is \[1\]; it must hold"),
        ("timm_vit", "config.json", {"pretrained_cfg": [1]}, r"'pretrained_cfg' is \[1\]"),
        ("timm_vit", "config.json", {"model_args": {"num_heads": 1.5}}, "num_heads=1.5; a whole"),
        (
            "timm_vit",
            "config.json",
            {"architecture": "vit_strange", "model_args": {"img_size": 16}},
            '"num_heads": 12',
        ),
    ],
)
def test_a_bad_setting_is_named(name, file, changes, message, tmp_path):
    folder = copy_of(name, tmp_path)
    if "pretrained_cfg" in changes:
        changes = changes | {"model_args": {"num_heads": 3}}
    change(folder / file, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_backbone(folder)
    assert str(folder) in str(caught.value)


def test_one_number_is_the_statistic_of_all_channels(tmp_path):
    folder = copy_of("transformers_vit", tmp_path)
    change(folder / "preprocessor_config.json", image_mean=0.5, image_std=0.25)
    backbone = read_backbone(folder)
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.25,) * 3)


def test_settings_of_earlier_versions_of_timm_are_read(tmp_path):
    folder = copy_of("timm_vit", tmp_path)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    flat = {**config.pop("pretrained_cfg"), **config}
    file.write_text(json.dumps(flat))
    backbone = read_backbone(folder)
    expected = read_backbone(FOLDERS / "timm_vit")
    assert backbone.options == expected.options
    assert (backbone.mean, backbone.std, backbone.preprocessing) == (
        MEAN,
        STD,
        expected.preprocessing,
    )


@pytest.mark.parametrize(
    ("name", "file", "changes"),
    [
        (
            "transformers_vit",
            "preprocessor_config.json",
            {
                "image_processor_type": "BitImageProcessor",
                "do_center_crop": True,
                "size": {"shortest_edge": 18},
                "crop_size": {"height": 8, "width": 8},
                "resample": 3,
            },
        ),
        ("timm_vit", "config.json", None),
    ],
)
def test_images_of_another_size_than_the_positions_are_noted(name, file, changes, tmp_path):
    folder = copy_of(name, tmp_path)
    before = read_backbone(folder)
    if changes is None:
        assert before.notes == ()
        trained_on = json.loads((folder / file).read_text())["pretrained_cfg"]
        changes = {"pretrained_cfg": trained_on | {"input_size": [3, 8, 8]}}
        changes["model_args"] = {"num_heads": 3, "act_layer": "gelu"}
        changes["model_args"]["img_size"] = before.options["image_size"][0]
    change(folder / file, **changes)
    after = read_backbone(folder)
    assert after.options["image_size"] == before.options["image_size"]
    (note,) = after.notes
    assert "shows images of 8 x 8 pixels, and the encoder's positions are of 16 x 16" in note
    assert "--config.model.image_size=8,8 resizes them" in note


@pytest.mark.parametrize("name", ["timm_vit", "transformers_vit"])
def test_patches_that_are_not_square_are_refused(name, tmp_path):
    folder = copy_of(name, tmp_path)
    weights = load_file(folder / "model.safetensors")
    (kernel,) = (key for key in weights if weights[key].ndim == 4)
    width, channels, side, _ = weights[kernel].shape
    longer = np.zeros((width, channels, 2 * side, side // 2), np.float32)
    save_file(weights | {kernel: longer}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"patches of {2 * side} x {side // 2} pixels; an encoder"):
        read_backbone(folder)


def test_weights_of_another_network_are_named(tmp_path):
    folder = copy_of("timm_vit", tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"stages.0.conv.weight": np.zeros((2, 2), np.float32)},
        folder / "model.safetensors",
    )
    with pytest.raises(ValueError, match=rf"{folder}: 1 of .* stages\.0\.conv\.weight"):
        read_backbone(folder)


@pytest.mark.parametrize(
    "lost", ["norm.weight", "blocks.1.mlp.fc1.bias", "patch_embed.proj.weight"]
)
def test_a_network_that_lacks_weights_is_refused(lost, tmp_path):
    folder = copy_of("timm_vit", tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="lack"):
        load_teacher(str(folder), config_of())


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    folder = copy_of("timm_vit", tmp_path)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"model\.safetensors is no file of safetensors"):
        read_backbone(folder)


def test_a_teacher_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="images of 3 channels, but data.channels=1"):
        load_teacher(str(FOLDERS / "timm_vit"), config_of(channels=1, mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", ValueError, "tokenizer.teacher is empty"),
        ("nowhere", FileNotFoundError, "tokenizer.teacher='nowhere' is no folder"),
    ],
)
def test_a_missing_teacher_is_named(path, error, message):
    with pytest.raises(error, match=message):
        load_teacher(path, config_of())
