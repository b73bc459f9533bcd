"""Failing disks, and wrong files in the place of weights, are named for what they are."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from ddae_jax.data import disks
from ddae_jax.data.disks import ReadFailed
from ddae_jax.interop import weight_files
from ddae_jax.interop.backbones import read_backbone
from ddae_jax.interop.json_files import read_json
from ddae_jax.interop.weight_files import read_weights
from pickled import write_arrays

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
PAGE = b"<!DOCTYPE html><html></html>"


@pytest.fixture
def _no_waits(monkeypatch):
    monkeypatch.setattr(disks, "_WAITS_S", (0.0,) * 4)


FAILS = r"cannot be read: Input/output error; it was tried 5 times"


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.npz"])
def test_a_disk_that_fails_is_named_and_tried_again(name, tmp_path):
    (tmp_path / name).symlink_to("/proc/self/mem")  # its first bytes cannot be read
    with pytest.raises(ReadFailed, match=rf"{name} {FAILS}"):
        read_backbone(tmp_path / name)


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_failing_disk_is_named_for_a_folder_too(name, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architecture": "vit_tiny_patch16_224", "input_size": [3, 224, 224]}'
    )
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/proc/self/mem")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ReadFailed, match=rf"{name} {FAILS}"):
            read_backbone(place)


ARRAYS = {"a": np.arange(200_000, dtype=np.float32), "b": np.ones((2, 2), np.float32)}


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize("times", [2, 99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_a_disk_that_fails_within_a_file_does_not_damage_it(suffix, times, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        write_arrays(path, ARRAYS)
    elif suffix == ".npz":
        np.savez(path, **ARRAYS)
    else:
        save_file(ARRAYS, path)
    left, read_once = [times], disks._RetryingFile._read_once

    def failing(file, buffer):
        if file._at + len(buffer) > 400_000 and file._at < 500_000 and left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return read_once(file, buffer)

    monkeypatch.setattr(disks._RetryingFile, "_read_once", failing)
    if times == 99:
        with pytest.raises(ReadFailed, match=rf"a\{suffix} {FAILS}"):
            read_weights(path)
    else:
        weights = read_weights(path)
        assert left == [0]
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(weights[name], array, strict=True)


WEB = "a web page, not the file that was to be downloaded; download it again"
SERVER = "a message of a server, not the file that was to be downloaded.* It says '"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!-- saved from url --><html><head>", WEB),
        (b"<HEAD><TITLE>302 Moved</TITLE>", WEB),
        (b"<script>location='x'</script>", WEB),
        (b"<body>", WEB),
        ("<html>".encode("utf-16"), WEB),
        ("<html>".encode("utf-16-be").join([b"\xfe\xff", b""]), WEB),
        (b"\xef\xbb\xbf<!DOCTYPE html>", WEB),
        ("<!doctype html><p>ü".encode() * 60, WEB),
        (b"<Error><Code>AccessDenied</Code>", SERVER + "<Error><Code>AccessDenied"),
        (b'{"error":"Repository not found"}', SERVER + '{"error":"Repository not found"}'),
        (b'{"message": "Not Found"}', SERVER),
        (b"Entry not found", SERVER + "Entry not found'"),
        (b"404: Not Found", SERVER),
        (b"Access denied", SERVER),
        (b"Access to model a/b is restricted.", SERVER),
        (b"/annex/objects/MD5E-s123--abc.pth\n", "a pointer of git-annex, .*git annex get"),
        (b"../.git/annex/objects/xx/MD5E-s1.pth", "a pointer of git-annex"),
        (POINTER.replace(b"\n", b"\r\n"), "a pointer of Git LFS, .*git lfs pull"),
        (b"version https://hawser.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"# xet version 0\nfilesize = 1\n", "a pointer of Xet"),
        (b"outs:\n- md5: 0123\n", "a pointer of DVC, .*dvc pull"),
        (b"../../blobs/0123456789abcdef", "a link that was copied as text"),
        (b"\x28\xb5\x2f\xfdxxxx", "packed by Zstandard; unpack it, by `zstd -d`"),
        (b"7z\xbc\xaf\x27\x1cxx", "an archive of 7-Zip; unpack it"),
        (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
        (b"\x04\x22\x4d\x18xxxx", "packed by LZ4; unpack it"),
        (b"BZh91AY", "packed by bzip2; unpack it"),
        (b"GGUF\x03\0\0\0", "a file of GGUF"),
        (b"\x08\x08\x12\x07pytorch", "a file of ONNX"),
        (b"\x1c\0\0\0TFL3", "a file of TensorFlow Lite"),
        (b"\x81\xa6params\x80", "a file of MessagePack, as Flax writes it"),
        (b"%PDF-1.4", "a PDF document"),
        (bytes(1000), "nothing but zeros, .*its download did not end"),
        (b"import torch\n", "no file of safetensors, .*: it is text, 'import torch'"),
        (b"\xfe\x01\x02\x03", r"no file of safetensors, .*: it begins with b'\\xfe"),
    ],
)
def test_a_wrong_file_is_named_for_what_it_is(content, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s)a.pth is {message}"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a pointer of Git LFS, not the file that it stands for"),
        (PAGE, WEB),
        (b'{"error": "Repository not found"}', SERVER),
        (b'{"error_code": 403}', "a message of a server"),
        (b"Entry not found", SERVER),
        (b"", "empty"),
        (b"{'a': 1}", "no JSON: Expecting property name"),
    ],
)
def test_a_wrong_file_instead_of_settings_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is {message}"):
        read_json(tmp_path / name, "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_settings_are_read_in_any_encoding_of_json(encoding, tmp_path):
    (tmp_path / "config.json").write_bytes('{"a": "ü"}'.encode(encoding))
    assert read_json(tmp_path / "config.json", "") == {"a": "ü"}


@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_a_wrong_file_instead_of_an_index_is_named(content, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.json is a (?:pointer|web page)"):
        read_weights(path)


def write_safetensors(tmp_path, dtype, raw, shape):
    """Writes a safetensors file by hand, also with dtypes that numpy lacks."""
    tensors = {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(raw)]}}
    header = json.dumps(tensors).encode()
    path = pathlib.Path(tmp_path / "a.safetensors")
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw)
    return path


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)],
)
def test_numbers_of_8_bits_are_read(dtype, numpy_dtype, tmp_path):
    values = np.float32([[0.5, -2, 0], [3, 1, 0.25]])
    path = write_safetensors(tmp_path, dtype, values.astype(numpy_dtype).tobytes(), [2, 3])
    np.testing.assert_array_equal(read_weights(path)["w"], values, strict=True)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_numbers_of_fewer_bits_are_refused_by_name(dtype, tmp_path):
    count = 8
    raw = bytes(count * int(dtype[1]) // 8)
    path = write_safetensors(tmp_path, dtype, raw, [count])
    message = (
        rf"a\.safetensors: w is of dtype {dtype}, which is that of quantised weights; known are F16"
    )
    with pytest.raises(ValueError, match=message):
        read_weights(path)


@pytest.mark.parametrize("dtype", sorted(weight_files._DTYPES))
def test_every_dtype_of_whole_bytes_is_read(dtype, tmp_path):
    values = np.array([[2, 1], [1, 2]]).astype(weight_files._DTYPES[dtype])
    array = read_weights(write_safetensors(tmp_path, dtype, values.tobytes(), [2, 2]))["w"]
    np.testing.assert_array_equal(array.real.astype(np.float32), values.real.astype(np.float32))


def test_the_order_of_arrays_in_safetensors_does_not_matter(tmp_path):
    arrays = {name: np.full((2, size), size, np.float32) for size, name in enumerate("zaybx")}
    (tmp_path / "a.safetensors").write_bytes(save(arrays, metadata={"format": "np"}))
    weights = read_weights(tmp_path / "a.safetensors")
    assert weights.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights[name], array, strict=True)


def test_a_file_of_safetensors_that_ends_early_is_named(tmp_path):
    save_file(ARRAYS, tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    for end in (20, 300, len(raw) - 1):
        (tmp_path / "b.safetensors").write_bytes(raw[:end])
        with pytest.raises(ValueError, match=r"b\.safetensors is no file of safetensors"):
            read_weights(tmp_path / "b.safetensors")


def test_a_disk_whose_files_cannot_be_mapped_is_named(tmp_path, monkeypatch):
    save_file(ARRAYS, tmp_path / "a.safetensors")

    def unmappable(*_):
        raise OSError(19, "No such device")

    monkeypatch.setattr(weight_files, "safe_open", unmappable)
    message = r"a\.safetensors cannot be mapped into memory, .*No such device\. Copy it to another"
    with pytest.raises(ReadFailed, match=message):
        read_weights(tmp_path / "a.safetensors")
