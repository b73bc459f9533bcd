"""Arrays that no encoder can have are refused by name, with the reason."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import golden_arrays
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.interop.pickle_objects import unreadable_array
from ddae_jax.interop.weight_files import read_network
from ddae_jax.interop.weights_to_params import UnknownWeights, clip_encoder, timm_encoder
from pickled import name, program, text, tuple_of, write_zip
from timm_arrays import timm_arrays

WIDTH = 192


def arrays_of(**more):
    """Returns arrays of a timm encoder with two blocks and 2 x 2 patches."""
    return timm_arrays(WIDTH, depth=2, value=1, **more)


def assert_refused(arrays, message, tmp_path):
    save_file({key: array for key, array in arrays.items() if array is not None}, tmp_path / "a")
    with pytest.raises(UnknownWeights, match=rf"/a: {message}"):
        read_backbone(tmp_path / "a")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, bool])
@pytest.mark.parametrize("key", ["blocks.1.mlp.fc2.weight", "pos_embed", "norm.weight"])
def test_quantised_weights_are_refused_as_such(dtype, key, tmp_path):
    arrays = arrays_of()
    arrays[key] = arrays[key].astype(dtype)
    message = f"{key} is of {np.dtype(dtype)}: the weights are quantised, .*float32"
    assert_refused(arrays, message, tmp_path)


@pytest.mark.parametrize("key", ["scale", "zero_point", "SCB", "absmax", "qweight"])
def test_scales_of_quantised_weights_are_refused_as_such(key, tmp_path):
    more = {f"blocks.0.mlp.fc1.{'weight_scale' if key == 'scale' else key}": np.ones(4, np.float32)}
    assert_refused(arrays_of(**more), ".*The network has quantised weights", tmp_path)


def test_integers_that_are_no_weights_are_ignored(tmp_path):
    more = {"relative_position_index": np.zeros((5, 5), np.int64)}
    save_file(arrays_of(**more), tmp_path / "a")
    assert read_backbone(tmp_path / "a").options["depth"] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_named(value, tmp_path):
    arrays = arrays_of()
    arrays["norm.weight"][:] = value
    arrays["blocks.1.attn.qkv.weight"][3, :7] = value
    message = (
        r"2 of 30 arrays have values that are NaN or infinite: blocks\.1\.attn\.qkv\.weight "
        r"\(7 of 110,592\), norm\.weight \(192 of 192\)\. The training"
    )
    assert_refused(arrays, message, tmp_path)


def test_arrays_that_are_not_needed_may_hold_anything(tmp_path):
    more = {"head.weight": np.full((3, WIDTH), np.nan, np.float32), "fc.bias": np.ones(2, np.int8)}
    save_file(arrays_of(**more), tmp_path / "a")
    assert read_backbone(tmp_path / "a").options["depth"] == 2


def test_numbers_that_are_too_large_for_float32_are_not_finite(tmp_path, recwarn):
    arrays = arrays_of(**{"norm.bias": np.full(WIDTH, 1e300)})
    assert_refused(arrays, r"1 of 30 .*infinite: norm\.bias \(192 of 192\)", tmp_path)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("pos_embed", (17,), r"of shape \(17,\)"),
        ("pos_embed", (), r"of shape \(\)"),
        ("pos_embed", (1, 0, WIDTH), r"is of shape \(1, 0, 192\); it holds no values"),
        (
            "pos_embed",
            (2, 5, WIDTH),
            r"of shape \(2, 5, 192\): its first axis, that of images, must",
        ),
        ("pos_embed", (1, 2, 2, WIDTH), r"expected: 2 axes, not counting those of size 1"),
        ("patch_embed.proj.weight", (WIDTH, 0, 4, 4), r"is of shape \(192, 0, 4, 4\)"),
        ("patch_embed.proj.weight", (WIDTH, 3, 0, 0), r"is of shape \(192, 3, 0, 0\)"),
        ("cls_token", (), r"of shape \(\)"),
        ("cls_token", (1, 2, WIDTH), r"of shape \(1, 2, 192\)"),
        ("norm.weight", (WIDTH, 2), "expected: 1 axis, not counting those of size 1"),
        ("norm.weight", (), r"is of shape \(\)"),
        ("blocks.0.attn.qkv.weight", (3 * WIDTH,), r"is of shape \(576,\)"),
        ("blocks.0.mlp.fc1.weight", (9,), r"is of shape \(9,\)"),
        ("blocks.0.mlp.fc2.weight", (2, 2, 2), r"is of shape \(2, 2, 2\)"),
    ],
)
def test_arrays_with_wrong_axes_are_named_with_their_shape(key, shape, message, tmp_path):
    assert_refused(arrays_of(**{key: np.ones(shape, np.float32)}), f"{key},? .*{message}", tmp_path)


def test_positions_of_another_width_than_the_class_token_are_refused(tmp_path):
    arrays = arrays_of(pos_embed=np.ones((1, 5, 100), np.float32))
    assert_refused(arrays, "the class token has 192 values, and each position 100", tmp_path)


def test_a_class_token_alone_has_no_patches(tmp_path):
    save_file(arrays_of(pos_embed=np.ones((1, 1, WIDTH), np.float32)), tmp_path / "a")
    with pytest.raises(ValueError, match="has 0 positions, which are of no square grid"):
        read_backbone(tmp_path / "a")


def test_a_missing_block_between_others_is_named(tmp_path):
    arrays = {key.replace("blocks.1.", "blocks.2."): a for key, a in arrays_of().items()}
    assert_refused(arrays, "of 2 blocks, the weights lack block_02", tmp_path)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("freqs_cis", "rotary positions"),
        ("blocks.0.attn.freqs_cis", "rotary positions"),
        ("inv_freq", "rotary positions"),
        ("rope_freqs", "rotary positions"),
        ("rope_embed.periods", "rotary positions"),
        ("blocks.0.mlp.fc3.weight", r"gated MLPs \(SwiGLU\)"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_features_of_another_network_are_named(key, what, dtype, tmp_path):
    message = f"1 of 31 arrays .*: {key} .*The network has {what}, which an encoder here has not"
    assert_refused(arrays_of(**{key: np.ones((4, 8), dtype)}), message, tmp_path)


def test_complex_numbers_are_no_weights(tmp_path):
    arrays = arrays_of(**{"norm.weight": np.ones(WIDTH, np.complex64)})
    assert_refused(arrays, "norm.weight is of complex64; weights are real numbers", tmp_path)


def test_clip_s_positions_have_two_axes():
    arrays = {"positional_embedding": np.ones(5, np.float32)}
    with pytest.raises(UnknownWeights, match=r"positional_embedding is of shape \(5,\)"):
        clip_encoder(arrays)


def test_an_unreadable_tensor_is_refused_where_it_is_needed():
    placeholder = unreadable_array("torch._utils._rebuild_qtensor")
    arrays = arrays_of(**{"blocks.0.attn.proj.weight": placeholder})
    message = r"blocks\.0\.attn\.proj\.weight is no tensor that is read here \(torch\._utils\._re"
    with pytest.raises(UnknownWeights, match=message):
        timm_encoder(arrays)
    assert timm_encoder(arrays_of(**{"head.weight": placeholder, "packed": placeholder}))["norm"]


def test_an_unreadable_patch_embedding_is_named(tmp_path):
    path = tmp_path / "a.pth"
    made = name("torch._utils", "_rebuild_qtensor") + tuple_of(b"N") + b"R"
    body = b"}(" + text("patch_embed.proj.weight") + made + b"u"
    with pytest.raises(UnknownWeights, match=r"a\.pth: patch_embed\.proj\.weight is no tensor"):
        read_backbone(write_zip(path, program(body)))


@pytest.mark.parametrize("file", ["objects.pth", "network.pth", "script.pth"])
def test_an_encoder_is_found_in_objects_of_any_class(file):
    folder = golden_arrays.FOLDER / "torch_files"
    network = read_network(folder / file)
    with np.load(folder / "network.npz") as stored:
        assert network.weights.keys() == set(stored)
        for key, array in stored.items():
            np.testing.assert_array_equal(network.weights[key], array, strict=True)
    assert timm_encoder(network.weights).keys() >= {"block_01", "positions", "class_token"}
