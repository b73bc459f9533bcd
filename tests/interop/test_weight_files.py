"""Weight files of every format are read as arrays by name, floating-point ones in float32."""

import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import golden_arrays
from ddae_jax.interop.weight_files import read_weights
from ddae_jax.interop.weights_to_params import as_float32
from pickled import name, program, storage, tensor, text, write_zip

FOLDER = golden_arrays.FOLDER / "torch_files"


def array():
    return tensor(storage(6), 0, (2, 3), (3, 1))


def mapping(**items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def write(path, **items):
    return write_zip(path, program(mapping(**items)))


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_training_checkpoint_s_model_is_what_is_read(form):
    weights = read_weights(FOLDER / f"{form}.pth")
    with np.load(FOLDER / "expected.npz") as stored:
        assert weights.keys() == set(stored)
        for name, expected in stored.items():
            expected = as_float32(expected)
            np.testing.assert_array_equal(weights[name], expected, strict=True, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, bool])
def test_safetensors_of_any_dtype_are_read(dtype, tmp_path):
    values = np.array([[0, 1], [1, 0]], dtype)
    save_file({"a": values}, tmp_path / "a.safetensors")
    array = read_weights(tmp_path / "a.safetensors")["a"]
    expected = values if dtype in (np.int64, bool) else np.float32([[0, 1], [1, 0]])
    np.testing.assert_array_equal(array, expected, strict=True)


def test_npz_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", **{"a/b": np.arange(3)})
    weights = read_weights(tmp_path / "a.npz")
    np.testing.assert_array_equal(weights["a/b"], np.arange(3), strict=True)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".PTH"])
def test_a_plain_state_dict_is_read(suffix, tmp_path):
    weights = read_weights(write(tmp_path / f"a{suffix}", w=array()))
    np.testing.assert_array_equal(weights["w"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ({"module": {"m"}, "state_dict": {"s"}, "model": {"w"}}, {"w"}),
        ({"teacher": {"t"}, "module": {"m"}, "state_dict": {"s"}}, {"s"}),
        ({"student": {"u"}, "teacher": {"t"}, "module": {"m"}}, {"m"}),
        ({"student": {"u"}, "teacher": {"t"}}, {"t"}),
        ({"student": {"module.a", "module.b.module.c"}}, {"a", "b.module.c"}),
        ({"student": {"module.a", "b"}}, {"module.a", "b"}),
    ],
)
def test_the_preferred_of_several_networks_is_read(items, expected, tmp_path):
    items = {key: mapping(**dict.fromkeys(names, array())) for key, names in items.items()}
    assert read_weights(write(tmp_path / "a.pth", epoch=b"K\x03", **items)).keys() == expected


def test_networks_within_networks_are_found(tmp_path):
    inner = mapping(module=mapping(state_dict=mapping(w=array())))
    assert read_weights(write(tmp_path / "a.pth", model=mapping(w=array()))).keys() == {"w"}
    path = write_zip(tmp_path / "b.pth", program(inner))
    assert read_weights(path).keys() == {"w"}


@pytest.mark.parametrize(
    ("body", "listed"),
    [
        (mapping(epoch=b"K\x03"), "'epoch'"),
        (mapping(model=mapping(w=array(), lr=b"K\x03")), "'lr'"),
        (b"}q\x00" + text("model") + b"h\x00s", "'model'"),  # within itself
        (b"](K\x01e", "list"),
        (name("project", "Settings") + b")R", r"'project\.Settings'"),
        (array(), "ndarray"),
        (b"}", "_Dict|dict"),
    ],
)
def test_a_file_of_torch_without_arrays_by_name_says_what_it_has(body, listed, tmp_path):
    path = write_zip(tmp_path / "a.pth", program(body))
    with pytest.raises(ValueError, match=f"a.pth holds no arrays by name.*({listed}).*state_dict"):
        read_weights(path)


def test_a_hostile_file_is_refused(tmp_path):
    path = write(tmp_path / "a.bin", model=name("os", "system"))
    with pytest.raises(ValueError, match=r"a\.bin is refused: it asks for os\.system"):
        read_weights(path)


def test_an_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([print], object))
    with pytest.raises(ValueError, match=r"a\.npz is damaged, or no \.npz file of numbers"):
        read_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_a_broken_file_is_named(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html>", "a web page, not the file"),
        (b"\n  <HTML><head>", "a web page, not the file"),
        (b"<?xml version='1.0'?><Error>", "a message of a server"),
        (b"\x1f\x8b\x08\x00", "packed by gzip; unpack it"),
        (b"\x89HDF\r\n\x1a\n", "a file of HDF5, as Keras"),
        (b"\x93NUMPY\x01\x00", "one array without a name"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive; unpack it"),
        (b"not weights", r"no file of safetensors, torch \(\.pth, \.pt, \.bin\) or numpy"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.ckpt"])
def test_a_file_without_weights_is_named_for_what_it_is(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is {message}"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth.tar", "a.ckpt", "a", "a.safetensors", "a.npz"])
def test_a_file_is_what_it_holds_whatever_it_is_called(name, tmp_path):
    weights = read_weights(write(tmp_path / name, w=array()))
    np.testing.assert_array_equal(weights["w"], [[0, 1, 2], [3, 4, 5]])
    save_file({"a": np.ones(2, np.float32)}, tmp_path / name)
    assert read_weights(tmp_path / name).keys() == {"a"}
    with (tmp_path / name).open("wb") as file:
        np.savez(file, b=np.ones(2))
    assert read_weights(tmp_path / name).keys() == {"b"}


@pytest.mark.parametrize("length", [0x20, 0x80, 0x8B1F, 0x5A42])
def test_the_length_of_a_header_is_not_taken_for_a_signature(length, tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if length < size:
        length += 0x10000
    header = raw[8 : 8 + size].ljust(length)
    (tmp_path / "a.safetensors").write_bytes(
        length.to_bytes(8, "little") + header + raw[8 + size :]
    )
    assert read_weights(tmp_path / "a.safetensors").keys() == {"a"}


def test_an_archive_of_other_files_says_what_is_in_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/mae.pth", b"")
    with pytest.raises(ValueError, match=r"a\.zip is an archive, .*unpack it.*folder/mae\.pth"):
        read_weights(tmp_path / "a.zip")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.pth is missing"):
        read_weights(tmp_path / "a.pth")
