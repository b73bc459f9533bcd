"""Single files as authors published them: their encoders compute timm's features."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import golden_arrays
from ddae_jax.builders.pretrained import load_pretrained
from ddae_jax.builders.tokenizers import load_teacher
from ddae_jax.config import pretrain_defaults
from ddae_jax.interop import backbones
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.interop.decoders import read_mae_decoder
from ddae_jax.interop.weight_files import read_weights
from ddae_jax.interop.weights_to_params import (
    UnknownWeights,
    augreg_encoder,
    official_mae,
    timm_encoder,
    transformers_mae,
)
from ddae_jax.models.vit import ViT
from timm_arrays import timm_arrays

FOLDER = golden_arrays.FOLDER / "torch_files"
FILES = {"mae": "mae.pth", "beit": "beit.pth", "augreg": "augreg.npz"}
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


@pytest.fixture
def heads_of_16(monkeypatch):
    """Makes 16 a published width, with 2 heads."""
    monkeypatch.setitem(backbones._HEADS_OF_WIDTH, 16, 2)


def features_of(backbone, images):
    apply = jax.jit(ViT(**backbone.options).apply)
    params = {name: value for name, value in backbone.params.items() if name != "mask_token"}
    return apply({"params": params}, images).tokens[0]


def write(tmp_path, arrays):
    save_file(arrays, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


@pytest.mark.parametrize("name", FILES)
def test_features_are_those_of_timm(name, heads_of_16):
    backbone = read_backbone(FOLDER / FILES[name])
    with np.load(FOLDER / "features.npz") as stored:
        images, expected = stored["images"], stored[name]
    # timm uses the exact gelu for Google's encoders too.
    as_timm = backbone._replace(options=backbone.options | {"activation": "gelu"})
    np.testing.assert_allclose(features_of(as_timm, images), expected, atol=1e-5)
    assert (backbone.options["activation"] == "gelu_tanh") == (name == "augreg")
    half = (0.5, 0.5, 0.5) if name == "augreg" else None
    assert (backbone.mean, backbone.std) == (half, half)
    assert backbone.options["image_size"] == (8, 8)


def test_google_s_file_shows_its_heads():
    assert read_backbone(FOLDER / "augreg.npz").options["num_heads"] == 2


@pytest.mark.parametrize("lost", ["query/kernel", "key/kernel", "value/kernel"])
def test_google_s_attention_without_a_part_is_refused(lost):
    weights = read_weights(FOLDER / "augreg.npz")
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
    with pytest.raises(UnknownWeights, match="heads|keys or values"):
        augreg_encoder({k: v for k, v in weights.items() if k != f"{attention}/{lost}"})


def test_a_whole_file_of_mae_s_authors_equals_the_model_of_transformers(tmp_path):
    _, weights = golden_arrays.load("mae")
    expected = transformers_mae(weights)
    of_block = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    names = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "decoder.mask_token": "mask_token",
        "decoder.decoder_pos_embed": "decoder_pos_embed",
    }
    official = {ours: weights[theirs] for theirs, ours in names.items()}
    for part in ("weight", "bias"):
        names = {
            "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
            "vit.layernorm": "norm",
            **{f"decoder.{n}": n for n in ("decoder_embed", "decoder_norm", "decoder_pred")},
        }
        blocks = {f"vit.layers.{i}": f"blocks.{i}" for i in range(2)}
        for theirs, ours in (blocks | {"decoder.decoder_layers.0": "decoder_blocks.0"}).items():
            names |= {f"{theirs}.{k}": f"{ours}.{v}" for k, v in of_block.items()}
            qkv = [weights[f"{theirs}.attention.{n}_proj.{part}"] for n in "qkv"]
            official[f"{ours}.attn.qkv.{part}"] = np.concatenate(qkv)
        official |= {f"{v}.{part}": weights[f"{k}.{part}"] for k, v in names.items()}
    assert len(official) == len(weights) - 2 * 2 * 3  # queries, keys and values are one array
    jax.tree.map(np.testing.assert_array_equal, official_mae(official), expected)
    jax.tree.map(np.testing.assert_array_equal, timm_encoder(official), expected["encoder"])
    decoder, heads = read_mae_decoder(write(tmp_path, official))
    assert heads is None
    jax.tree.map(
        np.testing.assert_array_equal, decoder, {n: expected[n] for n in ("decoder", "head")}
    )


def test_a_file_without_a_decoder_is_no_whole_mae():
    with pytest.raises(UnknownWeights, match="of an encoder only"):
        official_mae(timm_arrays(width=16))


def test_a_fine_tuned_encoder_of_mae_is_read_without_its_classifier(tmp_path):
    arrays = timm_arrays(width=192)
    for part in ("weight", "bias"):
        arrays[f"fc_norm.{part}"] = arrays.pop(f"norm.{part}") + 2
    arrays |= {"head.weight": np.zeros((7, 192), np.float32), "head.bias": np.zeros(7, np.float32)}
    params = read_backbone(write(tmp_path, arrays)).params
    assert "head" not in params
    np.testing.assert_array_equal(params["norm"]["scale"], np.full(192, 2))


def test_beit_s_mask_token_is_its_encoder_s_and_mae_s_is_not():
    assert timm_encoder(read_weights(FOLDER / "beit.pth"))["mask_token"].shape == (16,)
    assert "mask_token" not in timm_encoder(read_weights(FOLDER / "mae.pth"))


@pytest.mark.parametrize("width", HEADS)
def test_published_widths_determine_the_heads(width, tmp_path):
    arrays = timm_arrays(width, side=3)
    options = read_backbone(write(tmp_path, arrays)).options
    assert options == {
        "num_heads": HEADS[width],
        "image_size": (12, 12),
        "patch_size": 4,
        "width": width,
        "depth": 1,
        "mlp_ratio": 4,
        "positions": "learned",
        "relative_positions": "none",
        "has_key_bias": True,
        "layer_scale": None,
        "activation": "gelu",
        "norm_epsilon": 1e-6,
        "norms_embedding": False,
        "use_class_token": True,
    }


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_patches_of_any_channels_have_their_size(channels, tmp_path):
    backbone = read_backbone(write(tmp_path, timm_arrays(192, channels=channels, classes=0)))
    assert (backbone.options["patch_size"], backbone.options["image_size"]) == (4, (8, 8))
    assert not backbone.options["use_class_token"]


@pytest.mark.parametrize("side", [1, 2, 7, 14])
@pytest.mark.parametrize(
    "table", ["rel_pos_bias.{}", "blocks.0.attn.{}"], ids=["shared", "per block"]
)
def test_relative_positions_alone_determine_the_size(side, table, tmp_path):
    count = (2 * side - 1) ** 2 + 3
    arrays = timm_arrays(
        192, **{table.format("relative_position_bias_table"): np.zeros((count, 3))}
    )
    del arrays["pos_embed"]
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    options = read_backbone(write(tmp_path, arrays)).options
    assert options["image_size"] == (4 * side, 4 * side)
    assert options["positions"] == "none"


def without(name, arrays):
    return {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (timm_arrays(16), "does not tell the heads of an encoder of width 16 .*768: 12"),
        (without("pos_embed", timm_arrays(192)), "has no positions"),
        (
            timm_arrays(192) | {"pos_embed": np.zeros((1, 6, 192), np.float32)},
            "has 5 positions, which are of no square grid",
        ),
        (
            without("pos_embed", timm_arrays(192))
            | {"rel_pos_bias.relative_position_bias_table": np.zeros((13, 3), np.float32)},
            "has 13 positions, which are of no square grid",
        ),
        (timm_arrays(192) | {"norm_pre.weight": np.zeros(192, np.float32)}, "is of CLIP"),
        ({"vit.embeddings.cls_token": np.zeros((1, 1, 192), np.float32)}, "is of transformers"),
    ],
)
def test_a_file_that_shows_too_little_needs_a_folder(arrays, message, tmp_path):
    path = write(tmp_path, arrays)
    with pytest.raises(ValueError, match=rf"{path}.*{message}.*give a folder .*config\.json"):
        read_backbone(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"conv1.weight": np.zeros((4, 3, 2, 2), np.float32)}, "no encoder known.*conv1.weight"),
        (timm_arrays(192) | {"blocks.0.conv": np.zeros(2, np.float32)}, r"blocks\.0\.conv"),
        (timm_arrays(192, depth=0), "lack what is here called block_01"),
        ({"embedding/kernel": np.zeros((4, 4, 3, 8), np.float32)}, "heads of encoderblock_0"),
    ],
)
def test_a_file_of_another_network_is_named(arrays, message, tmp_path):
    path = write(tmp_path, arrays)
    with pytest.raises(UnknownWeights, match=rf"{path}.*{message}"):
        read_backbone(path)


def test_a_run_can_start_from_a_file_of_a_published_size(tmp_path):
    pretrained = load_pretrained(str(write(tmp_path, timm_arrays(192, depth=12))))
    assert (pretrained.model["size"], pretrained.mean, pretrained.std) == ("Ti", None, None)


def test_a_file_without_pixel_statistics_is_no_teacher():
    path = str(FOLDER / "mae.pth")
    with pytest.raises(ValueError, match=rf"tokenizer.teacher='{path}' is a file.*pixel stat.*std"):
        load_teacher(path, pretrain_defaults())


def test_a_torch_file_with_pixel_statistics_is_a_teacher(tmp_path):
    shutil.copy(FOLDER / "mae.pth", tmp_path / "pytorch_model.bin")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3], "input_size": [3, 8, 8]}
    config = {
        "architecture": "mae",
        "model_args": {"num_heads": 2, "act_layer": "gelu"},
        "pretrained_cfg": cfg,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    config = pretrain_defaults()
    config.model.dtype, config.data.mean, config.data.std = "float32", (0.4,) * 3, (0.2,) * 3
    teacher = load_teacher(str(tmp_path), config)
    with np.load(FOLDER / "features.npz") as stored:
        images, expected = stored["images"], stored["mae"]
    pixels = images * np.float32(cfg["std"]) + np.float32(cfg["mean"])
    adapted = teacher.adapt((pixels - np.float32(0.4)) / np.float32(0.2))
    features = jax.jit(functools.partial(teacher.module.apply))({"params": teacher.params}, adapted)
    np.testing.assert_allclose(features.tokens[0], expected, atol=5e-5)
