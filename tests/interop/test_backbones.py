"""Folders that timm and transformers saved: the encoder in them computes what it did there."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import golden_arrays
from ddae_jax.config import pretrain_defaults
from ddae_jax.interop import backbones
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.models.vit import ViT
from ddae_jax.pretrained import load_teacher

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
    found = read_backbone(FOLDERS / name)
    assert (found.mean, found.std) == (MEAN, STD)
    with np.load(FOLDERS / name / "features.npz") as stored:
        images, expected = stored["images"], stored["features"]
    # BEiT's norm is of the mean of the patches; its tokens are as the last block left them.
    normalize = name != "transformers_beit"
    apply = jax.jit(functools.partial(ViT(**found.options).apply, normalize=normalize))
    features = apply({"params": found.params}, (images - np.float32(MEAN)) / np.float32(STD))
    np.testing.assert_allclose(features.tokens[0], expected, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_as_a_teacher_it_sees_the_pixels_that_it_was_trained_on(name):
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
        (
            "timm_vit",
            "config.json",
            {"architecture": "vit_strange", "model_args": {"img_size": 16}},
            '"num_heads": 12',
        ),
    ],
)
def test_what_is_not_known_is_named(name, file, changes, message, tmp_path):
    folder = copy_of(name, tmp_path)
    if "pretrained_cfg" in changes:
        changes = changes | {"model_args": {"num_heads": 3}}
    change(folder / file, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_backbone(folder)
    assert str(folder) in str(caught.value)


def test_weights_of_another_network_are_named(tmp_path):
    folder = copy_of("timm_vit", tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"stages.0.conv.weight": np.zeros((2, 2), np.float32)},
        folder / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"stages\.0\.conv\.weight"):
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


def test_what_is_no_file_of_weights_is_refused(tmp_path):
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
def test_a_teacher_that_is_not_there_is_named(path, error, message):
    with pytest.raises(error, match=message):
        load_teacher(path, config_of())


# ---- single files, as their authors publish them

FILES = golden_arrays.FOLDER / "torch_files"


@pytest.fixture
def tiny_width_known(monkeypatch):
    """The golden networks are narrower than any published one."""
    monkeypatch.setitem(backbones._HEADS_OF_WIDTH, 16, 2)


@pytest.mark.parametrize("name", ["mae.pth", "beit.pth", "augreg.npz"])
def test_features_are_those_of_the_authors_file(name, tiny_width_known):
    found = read_backbone(FILES / name)
    assert (found.options["num_heads"], found.options["image_size"]) == (2, (12, 12))
    assert found.options["relative_positions"] == ("shared" if name == "beit.pth" else "none")
    images = np.load(FILES / "images.npy")
    options = found.options | {"activation": "gelu"}  # timm's, of AugReg's too
    normalize = name != "beit.pth"
    apply = jax.jit(functools.partial(ViT(**options).apply, normalize=normalize))
    features = apply({"params": found.params}, images).tokens[0]
    expected = np.load(FILES / f"{name.partition('.')[0]}_features.npy")
    np.testing.assert_allclose(features, expected, atol=2e-5)


def test_a_file_tells_what_it_knows_of_pixels(tiny_width_known):
    assert read_backbone(FILES / "mae.pth").mean is None
    assert read_backbone(FILES / "augreg.npz").mean == (0.5, 0.5, 0.5)


def test_a_file_of_an_unknown_width_asks_for_a_folder():
    with pytest.raises(ValueError, match="heads of width 16 are not known. Give a folder"):
        read_backbone(FILES / "mae.pth")


def test_a_file_cannot_be_a_teacher_for_it_does_not_tell_the_pixels_it_knows():
    with pytest.raises(FileNotFoundError, match=r"is no folder; --config.tokenizer.teacher=FOLDER"):
        load_teacher(str(FILES / "mae.pth"), config_of())


def test_a_file_of_another_kind_names_the_known_ones(tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights.h5: .* called \*.safetensors, \*.pth"):
        read_backbone(path)
