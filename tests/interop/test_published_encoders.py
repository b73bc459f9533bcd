"""Published encoders, wrapped or in parts: they compute the features of their authors' code."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import golden_arrays
from ddae_jax.interop.architecture import WeightHints
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.interop.library_folders import architectures
from ddae_jax.interop.weights_to_params import UnknownWeights
from ddae_jax.models.vit import ViT
from timm_arrays import timm_arrays

FOLDER = golden_arrays.FOLDER / "published"
HEADS = WeightHints(heads=2)
FILES = {
    "deit3": ("deit3.pth", HEADS),
    "moco": ("moco.pth.tar", HEADS),
    "moco_momentum": ("moco.pth.tar", WeightHints(heads=2, part="momentum_encoder")),
    "ijepa": ("ijepa.tar", HEADS),
    "ijepa_context": ("ijepa.tar", WeightHints(heads=2, part="encoder")),
    "clip": ("clip.pt", WeightHints(activation="quick_gelu")),
}
KINDS = ("dinov2", "ijepa", "vit_msn", "clip_vision_model", "siglip_vision_model")
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)


def compare(backbone, name):
    with np.load(FOLDER / "features.npz") as stored:
        images, expected = stored["images"], stored[name]
    params = {name: value for name, value in backbone.params.items() if name != "mask_token"}
    apply = jax.jit(functools.partial(ViT(**backbone.options).apply))
    features = apply({"params": params}, images).tokens[0]
    np.testing.assert_allclose(features, expected, atol=2e-5)


def copy_of(name, tmp_path):
    return shutil.copytree(FOLDER / name, tmp_path / name)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", FILES)
def test_a_file_s_features_are_those_of_its_authors(name):
    file, hints = FILES[name]
    compare(read_backbone(FOLDER / file, hints), name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_s_features_are_those_of_transformers(kind):
    backbone = read_backbone(FOLDER / f"transformers_{kind}")
    assert (backbone.mean, backbone.std) == (MEAN, STD)
    compare(backbone, f"transformers_{kind}")


def test_a_folder_of_timm_with_positions_of_patches_alone_is_read():
    backbone = read_backbone(FOLDER / "timm")
    assert (backbone.options["num_heads"], backbone.options["norm_epsilon"]) == (2, 1e-6)
    compare(backbone, "timm")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_image_encoder_of_a_model_of_images_and_texts_is_read(kind, tmp_path):
    folder = copy_of(f"transformers_{kind}_vision_model", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": config}))
    weights = load_file(folder / "model.safetensors")
    prefix = "" if any(name.startswith("vision_model.") for name in weights) else "vision_model."
    weights = {prefix + name: array for name, array in weights.items()}
    texts = {"text_model.embeddings.token_embedding.weight": np.zeros((3, 4), np.float32)}
    save_file(weights | texts, folder / "model.safetensors")
    compare(read_backbone(folder), f"transformers_{kind}_vision_model")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_act", "layer_norm_eps"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_transformers_leaves_out_is_the_default(kind, key, tmp_path):
    folder = copy_of(f"transformers_{kind}", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    default = architectures()["transformers"][kind][key]
    if key == "num_attention_heads":  # 12 heads do not divide the width of 16
        config.pop(key, None)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"{default} heads do not divide the width, 16"):
            read_backbone(folder)
        return
    assert config.pop(key, default) == default
    (folder / "config.json").write_text(json.dumps(config))
    compare(read_backbone(folder), f"transformers_{kind}")


@pytest.mark.parametrize(
    ("name", "hints", "place", "others"),
    [
        ("moco.pth.tar", HEADS, "base_encoder", "momentum_encoder"),
        ("ijepa.tar", HEADS, "target_encoder", "encoder"),
    ],
)
def test_the_other_networks_of_a_file_are_noted(name, hints, place, others):
    note = read_backbone(FOLDER / name, hints).notes[0]
    assert f"{place}' is taken; there is also one at '" in note
    part = note.rpartition("--config.init_part=")[2].removesuffix(" takes that one")
    assert part.endswith(others)
    notes = read_backbone(FOLDER / name, hints._replace(part=part)).notes
    assert not [note for note in notes if "there is also one" in note]


@pytest.mark.parametrize("part", ["teacher", "base", "state_dict.base_encoder.blocks"])
def test_a_missing_part_names_those_that_are_there(part):
    with pytest.raises(ValueError, match=rf"{part}'; .*\.base_encoder', .*\.momentum_encoder'"):
        read_backbone(FOLDER / "moco.pth.tar", WeightHints(heads=2, part=part))


def arrays_of(width=16, positions=5, **more):
    """Returns arrays of a timm encoder with one block, all in float32."""
    arrays = timm_arrays(width, **({"pos_embed": np.ones((1, positions, width))} | more))
    return {name: np.float32(array) for name, array in arrays.items()}


def write(tmp_path, arrays, name="encoder.safetensors"):
    save_file(arrays, tmp_path / name)
    return tmp_path / name


def with_fixed_positions(width):
    positions = np.zeros((1, 5, width))
    positions[0, 1, width // 2 :] = 1  # sines and cosines of 0; the rest does not matter
    return arrays_of(width, pos_embed=positions)


def test_where_published_heads_differ_the_user_must_choose(tmp_path):
    path = write(tmp_path, with_fixed_positions(384))
    message = (
        r"12 if they are of MoCo v3, and 6 .*--config\.init_heads=12 or --config\.init_heads=6"
    )
    with pytest.raises(ValueError, match=message):
        read_backbone(path)
    assert read_backbone(path, WeightHints(heads=12)).options["num_heads"] == 12


@pytest.mark.parametrize("arrays", [arrays_of(384), with_fixed_positions(768)])
def test_assumed_heads_and_activation_are_noted(arrays, tmp_path):
    path = write(tmp_path, arrays)
    backbone = read_backbone(path)
    heads = backbone.options["num_heads"]
    assert heads == {384: 6, 768: 12}[backbone.options["width"]]
    assert any(f"{heads} are taken" in n and "init_heads" in n for n in backbone.notes)
    assert any("gelu is taken" in n and "init_activation" in n for n in backbone.notes)
    assert any("computes other features here" in note for note in backbone.notes)
    epsilon_note = (
        f"{path} does not tell the epsilon of its norms: 1e-06 is taken; "
        "--config.model.norm_epsilon says otherwise"
    )
    assert epsilon_note in backbone.notes
    assert read_backbone(path, WeightHints(heads=heads, activation="gelu")).notes == (epsilon_note,)


def test_relative_positions_tell_the_heads(tmp_path):
    table = {"rel_pos_bias.relative_position_bias_table": np.zeros((12, 4))}
    path = write(tmp_path, arrays_of(**table))
    assert read_backbone(path).options["num_heads"] == 4
    with pytest.raises(ValueError, match="init_heads=2, but .* tells of 4"):
        read_backbone(path, HEADS)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (WeightHints(heads=5), "5 heads do not divide the width, 16"),
        (WeightHints(), r"width 16 .*--config\.init_heads=HEADS"),
    ],
)
def test_impossible_heads_are_refused(hints, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_backbone(write(tmp_path, arrays_of()), hints)


def test_clip_s_activation_must_be_given(tmp_path):
    with pytest.raises(ValueError, match=r"is of CLIP.*init_activation=quick_gelu"):
        read_backbone(FOLDER / "clip.pt")
    norm = {f"norm_pre.{part}": np.zeros(16) for part in ("weight", "bias")}
    path = write(tmp_path, arrays_of(**norm))
    options = read_backbone(path, WeightHints(heads=2, activation="gelu")).options
    assert (options["activation"], options["norm_epsilon"]) == ("gelu", 1e-5)


@pytest.mark.parametrize("positions", [4, 5, 9, 10])
def test_positions_are_those_of_all_tokens_or_of_the_patches(positions, tmp_path):
    backbone = read_backbone(write(tmp_path, arrays_of(positions=positions)), HEADS)
    has_one = positions in (5, 10)
    assert len(backbone.params["positions"]) == positions - has_one
    np.testing.assert_array_equal(backbone.params["class_token"], np.full(16, has_one))


@pytest.mark.parametrize(
    ("more", "first", "second"),
    [
        ({"fc_norm.weight": np.ones(16)}, "fc_norm.weight", "norm.weight"),
        ({"blocks.0.gamma_1": np.ones(16), "blocks.0.ls1.gamma": np.ones(16)}, "gamma", "gamma"),
    ],
)
def test_two_arrays_for_one_place_are_refused(more, first, second, tmp_path):
    message = rf"{first}.* and .*{second}.* are both for what is here called"
    with pytest.raises(UnknownWeights, match=message):
        read_backbone(write(tmp_path, arrays_of(**more)), HEADS)


def test_two_final_norms_of_transformers_are_refused(tmp_path):
    folder = shutil.copytree(
        golden_arrays.FOLDER / "backbones" / "transformers_vit", tmp_path / "a"
    )
    weights = load_file(folder / "model.safetensors")
    prefixed = {f"vit.{name}": array for name, array in weights.items()}
    twice = {"layernorm.weight": weights["layernorm.weight"] + 1}
    save_file(prefixed | twice, folder / "model.safetensors")
    with pytest.raises(UnknownWeights, match=r"vit\.layernorm\.weight and layernorm\.weight are"):
        read_backbone(folder)


def test_missing_biases_are_zero_only_if_no_block_has_one(tmp_path):
    arrays = arrays_of()
    del arrays["blocks.0.attn.qkv.bias"]
    backbone = read_backbone(write(tmp_path, arrays), HEADS)
    np.testing.assert_array_equal(
        backbone.params["block_01"]["attention"]["qkv"]["bias"], np.zeros(48)
    )
    assert backbone.options["has_key_bias"]
    second = {n.replace("blocks.0", "blocks.1"): a for n, a in arrays_of().items() if "blocks" in n}
    backbone = read_backbone(write(tmp_path, arrays | second), HEADS)
    assert "bias" not in backbone.params["block_01"]["attention"]["qkv"]


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("blocks.0.mlp.w12.weight", r"gated MLPs \(SwiGLU\)"),
        ("rope.freqs", "rotary positions"),
        ("reg_token", "register tokens"),
        ("register_tokens", "register tokens"),
        ("dist_token", "a distillation token"),
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
    ],
)
def test_unsupported_features_are_named(name, has, tmp_path):
    path = write(tmp_path, arrays_of() | {name: np.zeros((1, 1, 16), np.float32)})
    with pytest.raises(UnknownWeights, match=f"The network has {has}, which an encoder here has"):
        read_backbone(path, HEADS)


def test_packed_gates_are_named(tmp_path):
    arrays = arrays_of(**{"blocks.0.mlp.fc2.weight": np.zeros((16, 32))})
    with pytest.raises(UnknownWeights, match=r"make 64 values and take 32: .*gated MLPs"):
        read_backbone(write(tmp_path, arrays), HEADS)


# ---- timm's architectures


def timm_folder(tmp_path, **changes):
    folder = copy_of("timm", tmp_path)
    change(folder / "config.json", **changes)
    return folder


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("vit_small_patch16_224", (6, "gelu", 1e-6)),
        ("vit_small_patch16_36x1_224", (6, "gelu", 1e-6)),
        ("vit_base_patch16_clip_quickgelu_224", (12, "quick_gelu", 1e-5)),
        ("vit_base_patch32_siglip_256", (12, "gelu_tanh", 1e-6)),
        ("vit_so400m_patch16_siglip_256", (16, "gelu_tanh", 1e-6)),
        ("vit_xsmall_patch16_clip_224", (4, "gelu", 1e-5)),
        ("vit_base_patch16_224_in21k", (12, "gelu", 1e-6)),
        ("beit_large_patch16_224", (16, "gelu", 1e-6)),
        ("eva_giant_patch14_224", (16, "gelu", 1e-6)),
    ],
)
def test_architectures_of_timm_have_their_heads_activation_and_epsilon(architecture, expected):
    assert tuple(architectures()["timm"][architecture]) == expected


@pytest.mark.parametrize(
    ("architecture", "has"),
    [
        ("vit_base_patch16_rope_224", "rotary positions"),
        ("eva02_base_patch14_224", "rotary positions"),
        ("vit_base_patch16_dinov3", "rotary positions"),
        ("vit_base_patch14_reg4_dinov2", "register tokens"),
        ("vit_giant_patch14_dinov2", r"gated MLPs \(GluMlp\)"),
        ("deit_small_distilled_patch16_224", "a distillation token"),
        ("vit_base_r50_s16_224", "a convolutional stem"),
        ("samvit_base_patch16", "the structure of VisionTransformerSAM"),
    ],
)
def test_an_unsupported_architecture_of_timm_is_refused_by_its_feature(architecture, has, tmp_path):
    folder = timm_folder(tmp_path, architecture=architecture)
    message = rf"architecture '{architecture}' has {has}, which an encoder here has not"
    with pytest.raises(UnknownWeights, match=message):
        read_backbone(folder)


def test_the_docs_count_the_names_of_timm_that_are_read():
    names = architectures()["timm"].values()
    docs = (golden_arrays.FOLDER.parents[1] / "docs" / "finetuning.md").read_text()
    known = sum(isinstance(entry, list) for entry in names)
    count = f"{known} of {len(names)} names of timm {architectures()['timm_version']}"
    assert count in " ".join(docs.split())


def test_an_unknown_architecture_of_timm_needs_hints(tmp_path):
    folder = timm_folder(tmp_path, architecture="vit_smal_patch16_224", model_args={"img_size": 8})
    message = r"'vit_smal_patch16_224' is none .*; did you mean 'vit_small_patch16_224'\?.*heads=12"
    with pytest.raises(ValueError, match=message):
        read_backbone(folder)
    backbone = read_backbone(folder, WeightHints(heads=2, activation="gelu"))
    assert backbone.options["num_heads"] == 2
    assert "epsilon of 1e-06" in backbone.notes[0]


@pytest.mark.parametrize(
    ("arguments", "hints", "message"),
    [
        ({"norm_layer": "rmsnorm"}, WeightHints(), "model_args has norm_layer='rmsnorm'"),
        ({"act_layer": "relu"}, WeightHints(), "act_layer='relu'; known activations"),
        ({"num_heads": 4}, HEADS, "init_heads=2, but .*config.json tells of 4"),
        ({"num_heads": 2}, WeightHints(activation="quick_gelu"), "tells of 'gelu'"),
        ({"num_heads": 3}, WeightHints(), "3 heads do not divide the width, 16"),
    ],
)
def test_arguments_of_timm_that_change_the_network_are_heeded(arguments, hints, message, tmp_path):
    folder = timm_folder(tmp_path, model_args={"img_size": 8} | arguments)
    with pytest.raises(ValueError, match=message):
        read_backbone(folder, hints)


# ---- image processors and model types of transformers


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"do_normalize": False, "image_mean": None}, (0, 0, 0), (1, 1, 1)),
        ({"rescale_factor": 1 / 510}, (0.2, 0.4, 0.6), (1, 0.8, 0.6)),
        ({"do_rescale": False, "do_normalize": False}, (0, 0, 0), (1 / 255,) * 3),
        ({"do_normalize": True}, MEAN, STD),
    ],
)
def test_statistics_include_what_a_processor_does_to_pixels(changes, mean, std, tmp_path):
    folder = copy_of("transformers_ijepa", tmp_path)
    change(folder / "preprocessor_config.json", **changes)
    backbone = read_backbone(folder)
    np.testing.assert_allclose((backbone.mean, backbone.std), (mean, std), rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "has"),
    [
        ("deit", "a distillation token"),
        ("dinov2_with_registers", "register tokens"),
        ("dinov3_vit", "rotary positions"),
    ],
)
def test_an_unsupported_type_of_transformers_is_refused_by_its_feature(kind, has, tmp_path):
    folder = copy_of("transformers_ijepa", tmp_path)
    change(folder / "config.json", model_type=kind)
    with pytest.raises(UnknownWeights, match=f"model_type '{kind}' has {has}"):
        read_backbone(folder)


def test_a_part_of_a_folder_of_transformers_is_refused():
    with pytest.raises(ValueError, match="init_part='teacher' is for files with several networks"):
        read_backbone(FOLDER / "transformers_ijepa", WeightHints(part="teacher"))


# ---- weights in parts


def test_a_missing_part_of_the_weights_is_named(tmp_path):
    folder = copy_of("transformers_dinov2", tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002.* is missing: .*index\.json says"):
        read_backbone(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": "../../elsewhere.safetensors"}}, "may name files beside it alone"),
        ({"weight_map": ["a"]}, "is no index of weights"),
        ({}, "is no index of weights"),
    ],
)
def test_a_bad_index_is_refused(content, message, tmp_path):
    folder = copy_of("transformers_dinov2", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_backbone(folder)


def test_arrays_that_no_part_has_are_named(tmp_path):
    folder = copy_of("transformers_dinov2", tmp_path)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["more"] = content["weight_map"]["embeddings.cls_token"]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 arrays are in none of its files, as more"):
        read_backbone(folder)


def test_the_weight_file_of_a_folder_is_read_with_the_folder_s_config():
    expected = read_backbone(FOLDER / "transformers_vit_msn")
    backbone = read_backbone(FOLDER / "transformers_vit_msn" / "model.safetensors")
    assert (backbone.options, backbone.mean) == (expected.options, expected.mean)
    timm = read_backbone(FOLDER / "timm" / "model.safetensors")
    assert (timm.options["num_heads"], timm.mean, timm.notes) == (2, MEAN, ())


def test_a_folder_without_weights_says_which_files_may_be_meant(tmp_path):
    folder = copy_of("timm", tmp_path)
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    message = r"model\.safetensors is missing.*There is open_clip_model\.safetensors in it: .*give"
    with pytest.raises(FileNotFoundError, match=message):
        read_backbone(folder)
