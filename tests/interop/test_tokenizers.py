"""A tokenizer of BEiT v2's authors computes the tokens of the reference implementation."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import golden_arrays
from ddae_jax.builders.methods import build_method
from ddae_jax.builders.tokenizers import load_teacher, load_tokenizer
from ddae_jax.config import pretrain_defaults
from ddae_jax.interop.tokenizers import read_tokenizer
from ddae_jax.interop.weights_to_params import UnknownWeights
from ddae_jax.models import vit
from pickled import write_arrays

FOLDER = golden_arrays.FOLDER / "tokenizer"


def config_of(**options):
    config = pretrain_defaults()
    config.model.dtype = "float32"
    config.model.image_size, config.model.patch_size = (16, 16), 4
    config.update_from_flattened_dict(options)
    return config


def golden():
    with np.load(FOLDER / "tokens.npz") as stored:
        return stored["pixels"], stored["tokens"]


def changed(tmp_path, without=(), **arrays):
    weights = load_file(FOLDER / "model.safetensors")
    weights = {name: array for name, array in weights.items() if name not in without} | arrays
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def test_its_tokens_are_those_of_the_reference():
    pixels, tokens = golden()
    config = config_of()
    tokenizer = load_tokenizer(str(FOLDER), config)
    images = (pixels - np.float32(config.data.mean)) / np.float32(config.data.std)
    np.testing.assert_array_equal(jax.jit(tokenizer.tokens)(tokenizer.frozen, images), tokens)
    assert tokenizer.num_codes == 24


def tokens_of_many_codes(folder, **options):
    """Returns the tokens of 1024 patches by 500 random codes, in a run with these options."""
    rng = np.random.default_rng(0)
    tokenizer = load_tokenizer(str(folder), config_of(**options))
    codes = rng.normal(size=(500, tokenizer.frozen["codes"].shape[1]))
    codes = (codes / np.linalg.norm(codes, axis=1, keepdims=True)).astype(np.float32)
    images = rng.normal(size=(64, 16, 16, 3)).astype(np.float32)
    return np.asarray(jax.jit(tokenizer.tokens)(tokenizer.frozen | {"codes": codes}, images))


def test_a_student_s_rounding_changes_none_of_its_tokens():
    expected = tokens_of_many_codes(FOLDER, **{"model.dtype": "float32"})
    student = {"model.dtype": "bfloat16"}
    tokens = tokens_of_many_codes(FOLDER, **student)
    np.testing.assert_array_equal(tokens, expected)
    assert len(np.unique(expected)) > 20
    rounded = tokens_of_many_codes(FOLDER, **student, **{"model.frozen_dtype": "bfloat16"})
    assert 0.002 < (rounded != expected).mean() < 0.1
    as_before = tokens_of_many_codes(FOLDER, **student, **{"model.frozen_dtype": "as_trained"})
    np.testing.assert_array_equal(as_before, rounded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "given", "dtype", "form"),
    [("float32", "cudnn", "float32", "auto"), ("as_trained", "einsum", "bfloat16", "einsum")],
)
def test_a_stand_in_computes_like_the_network_that_is_missing(frozen, given, dtype, form):
    """Memory and time are then those of the real run. cuDNN's attention has no float32."""
    config = config_of(**{"model.dtype": "bfloat16", "model.frozen_dtype": frozen})
    config.model.size, config.model.attention_form = "Ti", given
    tokenizer = load_tokenizer("", config, stand_in_missing=True)
    teacher = load_teacher("", config, stand_in_missing=True)
    for encoder in (tokenizer.module.encoder, teacher.module):
        assert (encoder.dtype, encoder.attention_form) == (dtype, form)
    assert tokenizer.module.decoder.dtype == dtype
    assert (config.model.dtype, config.model.attention_form) == ("bfloat16", given)


@pytest.mark.parametrize("is_within_more", [False, True])
def test_the_authors_file_gives_the_same_tokens(is_within_more, tmp_path):
    pixels, tokens = golden()
    weights = load_file(FOLDER / "model.safetensors")
    path = tmp_path / "vqkd_encoder.pth"
    write_arrays(path, weights, "model" if is_within_more else None)
    config = config_of()
    tokenizer = load_tokenizer(str(path), config)
    images = (pixels - np.float32(config.data.mean)) / np.float32(config.data.std)
    np.testing.assert_array_equal(jax.jit(tokenizer.tokens)(tokenizer.frozen, images), tokens)


def test_beit_predicts_a_tokenizer_s_tokens(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    config = config_of(**{"method": "beit", "targets.tokenizer": str(FOLDER), "mask.ratio": 0.4})
    config.model.size = "micro"
    method = build_method(config)
    pixels, tokens = golden()
    images = (pixels - np.float32(config.data.mean)) / np.float32(config.data.std)
    np.testing.assert_array_equal(
        jax.jit(method.targets)(method.frozen, images)["tokens"][0], tokens
    )
    assert method.student.output_widths == {"tokens": 24}


def test_a_tokenizer_for_another_grid_is_refused(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", vit.Size(16, 2, 2))
    config = config_of(**{"method": "beit", "targets.tokenizer": str(FOLDER)})
    config.model.size, config.model.patch_size = "micro", 2
    with pytest.raises(ValueError, match=r"the tokenizer has patch_size=4"):
        build_method(config)


@pytest.mark.parametrize(
    "lost",
    ["quantize.embedding.weight", "encoder.pos_embed", "encoder.patch_embed.proj.weight"],
)
def test_a_tokenizer_that_lacks_a_part_is_refused(lost, tmp_path):
    with pytest.raises(UnknownWeights, match="no tokenizer of BEiT v2|lack"):
        read_tokenizer(changed(tmp_path, without=[lost]))


def test_weights_of_another_network_are_named(tmp_path):
    array = np.zeros((2, 2), np.float32)
    with pytest.raises(UnknownWeights, match=r"blocks\.0\.conv"):
        read_tokenizer(changed(tmp_path, **{"encoder.blocks.0.conv": array}))


def test_arrays_that_are_no_weights_are_named_with_their_file(tmp_path):
    codes = load_file(FOLDER / "model.safetensors")["quantize.embedding.weight"]
    folder = changed(tmp_path, **{"quantize.embedding.weight": codes.astype(np.int8)})
    message = r"model\.safetensors: quantize\.embedding\.weight is of int8: the weights are quant"
    with pytest.raises(UnknownWeights, match=message):
        read_tokenizer(folder)
    folder = changed(tmp_path, **{"quantize.embedding.weight": codes * np.nan})
    message = rf"model\.safetensors: 1 of .* quantize\.embedding\.weight \({codes.size:,} of "
    with pytest.raises(UnknownWeights, match=message):
        read_tokenizer(folder)


def test_a_tokenizer_for_other_channels_is_refused():
    config = config_of(**{"data.channels": 1, "data.mean": (0.5,), "data.std": (0.5,)})
    with pytest.raises(ValueError, match="targets.tokenizer=.*3 channels, but data.channels=1"):
        load_tokenizer(str(FOLDER), config)


def test_a_folder_without_weights_is_no_tokenizer(tmp_path):
    shutil.copy(FOLDER / "tokens.npz", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds neither a run nor weights"):
        load_tokenizer(str(tmp_path), config_of())
