"""Files of torch are read without torch, and a hostile one does nothing but be refused."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

import golden_arrays
from ddae_jax.interop.torch_files import RefusedFile, read_torch_weights

FOLDER = golden_arrays.FOLDER / "torch_files"


@pytest.mark.parametrize("name", ["zip", "legacy", "parallel"])
def test_tensors_of_every_kind_are_what_torch_saved(name):
    found = read_torch_weights(FOLDER / f"{name}.pth")
    with np.load(FOLDER / "expected.npz") as expected:
        assert found.keys() == set(expected)
        for key, array in found.items():
            np.testing.assert_array_equal(array.astype(np.float32), expected[key], err_msg=key)


# ---- what must not be read


class Global:
    """Pickled as a name that is called, as hostile files have it."""

    def __init__(self, function, *arguments):
        self._reduced = (function, arguments)

    def __reduce__(self):
        return self._reduced


def as_zip(path, payload, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        for key, content in dict(storages).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def test_a_file_that_would_run_a_command_is_refused_and_the_command_is_not_run(tmp_path):
    marker = tmp_path / "it_ran"
    for protocol in (0, 2, 4, 5):
        payload = pickle.dumps({"model": Global(os.system, f"touch {marker}")}, protocol)
        path = as_zip(tmp_path / "bad.pth", payload)
        with pytest.raises(RefusedFile, match=r"bad\.pth: it .* was run"):
            read_torch_weights(path)
        assert not marker.exists()
    with pytest.raises(RefusedFile, match="asks for posix.system, which no file of weights needs"):
        read_torch_weights(path)


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps(Global(eval, "1/0"), 2),
        pickle.dumps(Global(getattr, "x", "y"), 2),
        b"\x80\x04\x8c\x0bcollections\x8c\x1cOrderedDict.__init__.__globals__\x93.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch.serialization\n_open_file\n.",
        b"\x80\x02cnumpy\nfromfile\n.",
        b"\x80\x02cbuiltins\nexec\nX\x03\x00\x00\x001/0\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n}b.",  # sets the state of what is only a name
        b"(S'1/0'\nios\nsystem\n.",
    ],
)
def test_whatever_is_no_weight_is_refused_by_name(payload, tmp_path):
    with pytest.raises(RefusedFile, match=r"it (asks for|uses the instruction|sets the state)"):
        read_torch_weights(as_zip(tmp_path / "bad.pth", payload))


FLOATS = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"


def one_tensor(count=2, offset=0, size=2, stride=1, storage=FLOATS):
    """The pickle of ``{"a": tensor}``, with one axis."""

    def number(value):
        return b"J" + int(value).to_bytes(4, "little", signed=True)

    pid = b"(" + storage + number(count) + b"tQ"
    told = pid + number(offset) + number(size) + b"\x85" + number(stride) + b"\x85\x89}t"
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"ctorch._utils\n_rebuild_tensor_v2\n(" + told + b"Rs."


def test_a_tensor_written_by_hand_is_read(tmp_path):
    content = {"0": np.float32([1, 2, 3, 4]).tobytes()}
    path = as_zip(tmp_path / "a.pth", one_tensor(4, offset=1, size=2, stride=2), content)
    assert read_torch_weights(path)["a"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"size": 3}, "reaches beyond its 2 values"),
        ({"offset": 1}, "reaches beyond"),
        ({"stride": 2}, "reaches beyond"),
        ({"offset": -1}, "has the size"),
        ({"stride": -1, "offset": 1}, "has the size"),
        ({"size": 2**30, "stride": 0}, "reaches beyond"),  # four GiB out of nothing
        ({"count": 3}, "has 8 bytes, where 12 are announced"),
    ],
)
def test_a_tensor_cannot_reach_beyond_what_is_stored(numbers, message, tmp_path):
    path = as_zip(tmp_path / "bad.pth", one_tensor(**numbers), {"0": b"\0" * 8})
    with pytest.raises(ValueError, match=rf"bad\.pth: .*{message}"):
        read_torch_weights(path)


def test_a_reference_to_what_is_no_storage_is_refused(tmp_path):
    path = as_zip(tmp_path / "bad.pth", one_tensor(storage=FLOATS.replace(b"storage", b"archive")))
    with pytest.raises(RefusedFile, match="is no storage of numbers"):
        read_torch_weights(path)


def test_compressed_records_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", one_tensor(2**24, size=2**24))
        archive.writestr("archive/data/0", b"\0" * 2**26)
    with pytest.raises(RefusedFile, match="compressed"):
        read_torch_weights(path)


@pytest.mark.parametrize("name", ["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_half_a_file_is_told(name, share, tmp_path):
    whole = (FOLDER / f"{name}.pth").read_bytes()
    path = tmp_path / "half.pth"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"half\.pth"):
        read_torch_weights(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04"])
def test_what_is_no_such_file_is_told(content, tmp_path):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.pth is no file of torch, or broken"):
        read_torch_weights(path)


def test_a_file_without_named_tensors_says_what_it_has(tmp_path):
    path = as_zip(tmp_path / "a.pth", pickle.dumps({"epoch": 3, "best": 0.5}, 2))
    with pytest.raises(ValueError, match="no named tensors, .* it has epoch, best"):
        read_torch_weights(path)


def test_a_file_of_another_byte_order_is_refused(tmp_path):
    path = shutil.copy(FOLDER / "zip.pth", tmp_path / "big.pth")
    with zipfile.ZipFile(path, "r") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else value)
    with pytest.raises(ValueError, match="byte order"):
        read_torch_weights(path)
