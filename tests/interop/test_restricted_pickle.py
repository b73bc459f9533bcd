"""The restricted unpickler: costs are bounded, unknown names do nothing, arrays are read."""

import pickle
import struct
import sys
import time

import numpy as np
import pytest

import golden_arrays
from ddae_jax.interop.torch_files import read_torch_file
from pickled import (
    name,
    number,
    program,
    storage,
    tensor,
    text,
    tuple_of,
    write_legacy,
    write_zip,
)

FOLDER = golden_arrays.FOLDER / "torch_files"


def memo(index):
    return b"h" + bytes([index])


def store(index):
    return b"q" + bytes([index]) + b"0"


LONG = b"\x8b" + struct.pack("<i", 3_000_000) + b"\x7f" * 3_000_000
NESTED = b")" + store(0) + b"".join(memo(i) * 2 + b"\x86" + store(i + 1) for i in range(40))
ROW = tuple_of(b"N" * 100_000)
KEY = "a key of a dict in it is no short text, number of at most 64 bits, or short row"
STEPS = "takes more than 500,000 steps"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # keys whose hashes are computed again each time, by recursion
        (NESTED + b"}" + memo(40) + b"Ns", KEY + ".* of type tuple"),
        (NESTED + b"(" + memo(40) + b"Nd", KEY),
        (NESTED + name("collections", "OrderedDict") + b"](" + memo(40) + b"N\x86e\x85R", KEY),
        (NESTED + memo(40) + store(50) + b"}" + tuple_of(memo(50)) + b"Ns", KEY),
        (LONG + store(0) + b"}" + (memo(0) + b"Ns") * 3000, KEY + ".* of type int"),
        (ROW + store(0) + b"}" + (memo(0) + b"Ns") * 3000, KEY + ".* of type tuple"),
        (b"}(" + b"".join(b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N"
            for k in range(16)) + b"u", KEY + ".* of type int"),
        (b"}" + b"".join(b"G" + struct.pack(">d", k * 2.0**61) + b"Ns" for k in range(9999)),
            STEPS),
        (text("a" * 10_001) + store(0) + b"}" + (memo(0) + b"Ns") * 3000, KEY + ".* of type str"),
        # an argument that is stored once and copied often
        (ROW + store(0) + (name("torch", "Size") + memo(0) + b"R0") * 9999, "100000 arguments"),
        (ROW + store(0) + (memo(0) + b"Q0") * 9999, "no storage"),
        (b"](" + b"NN\x86" * 9999 + b"e" + store(0)
            + (name("collections", "OrderedDict") + memo(0) + b"\x85R0") * 9999, STEPS),
        (b"}(" + b"".join(number(k) + b"N" for k in range(9999)) + b"u" + store(0)
            + (name("a", "b") + b")\x81" + memo(0) + b"b0") * 9999, STEPS),
        (text("a" * 9999) + store(0) + (name("pathlib", "Path") + memo(0) + b"\x85R0") * 9999,
            "larger"),
        (text("a" * 9999) + store(0) + (name("torch", "device") + memo(0) + b"\x85R0") * 9999,
            "larger"),
        (text("a" * 9999) + store(0)
            + (name("_codecs", "encode") + memo(0) + text("latin1") + b"\x86R0") * 9999, "larger"),
        # products of huge numbers
        (LONG + store(0) + name("torch._utils", "_rebuild_tensor_v2")
            + tuple_of(storage(6), number(0), tuple_of(memo(0)), tuple_of(memo(0))) + b"R",
            "whole"),
        (tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), LONG)
            + b"Q", "larger"),
        (tuple_of(text("storage"), name("torch", "FloatStorage"), text("0" * 999), text("cpu"),
            number(0)) + b"Q", "longer key"),
        (name("torch", "Size") + b"](" + b"K\x01" * 99 + b"e\x85R", "no row of at most 64"),
    ],
    ids=lambda value: "body" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_an_expensive_pickle_is_refused_in_time(body, message, tmp_path):
    path = write_zip(tmp_path / "a.pth", program(body))
    began = time.process_time()
    with pytest.raises(ValueError, match=f"is refused: .*{message}"):
        read_torch_file(path)
    assert time.process_time() - began < 4  # far less; without bounds, minutes or for ever


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"(" + number(140234782) + b"Nd", {140234782: None}),
        (b"(\x8a\x06\x00\x01\x02\x03\x04\x7f" + b"Nd", {0x7F0403020100: None}),
        (b"(" + tuple_of(text("a"), number(1), b"N") + b"K\x02d", {("a", 1, None): 2}),
        (b"(" + name("lightning", "ModelCheckpoint") + b"K\x02d", {"lightning.ModelCheckpoint": 2}),
        (b"(G" + struct.pack(">d", 0.5) + b"K\x02\x88K\x03d", {0.5: 2, True: 3}),
        (b"\x8f(K\x01K\x02\x90", [1, 2]),
        (b"(K\x01K\x02\x91", [1, 2]),
        (b"Nr" + struct.pack("<I", 0xFFFFFFFF), None),  # the index of the memo allocates no memory
    ],
)
def test_keys_that_checkpoints_have_are_read_and_sets_are_lists(body, expected, tmp_path):
    assert read_torch_file(write_zip(tmp_path / "a.pth", program(body))) == expected


def test_paths_and_devices_of_lists_in_lists_are_no_text(tmp_path):
    # Each list holds the one before twice: as text they would fill any memory.
    lists = b"]" + b"q\x00" + b"](h\x00h\x00eq\x00" * 60 + b"0"
    both = [name(*of) + b"h\x00\x85R" for of in (("pathlib", "Path"), ("torch", "device"))]
    path = write_zip(tmp_path / "a.pth", program(lists + tuple_of(*both)))
    assert read_torch_file(path) == ({}, {})


@pytest.mark.parametrize(
    "body",
    [
        name("torch", "load") + text("a.pth") + b"\x85R",
        name("torch.storage", "_load_from_bytes") + b"C\x01a" + b"\x85R",
        name("functools", "partial") + name("torch", "load") + b"\x85R",
        name("a\x1b[2J", "b") + b")R",
        name("__builtin__", "getattr") + tuple_of(text(""), text("join")) + b"R",
        text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93)R",
        b"(" + name("torch", "hub") + b"o",
        b"(ia\nb\n",
        name("a", "b") + b")}\x92",
        name("numpy", "dtype") + tuple_of(text("O")) + b"R",
        name("_codecs", "encode") + tuple_of(text("a"), text("hex")) + b"R",
        name("a", "b") + b")RN}" + text("x") + b"Ns\x86b",
        name("a", "b") + b")R" + b")R",
        name("a", "b") + b")R(K\x01e",
    ],
)
def test_an_unknown_name_imports_nothing_and_makes_a_dict(body, tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_zip(tmp_path / "a.pth", program(b"}(" + text("x") + body + b"u"))
    value = read_torch_file(path)["x"]
    assert isinstance(value, dict)
    assert len(value) == 0 or value == {"x": None}
    assert "a" not in sys.modules


def test_arrays_are_read_beside_objects_of_any_class():
    content = read_torch_file(FOLDER / "objects.pth")
    with np.load(FOLDER / "network.npz") as stored:
        expected = dict(stored)
    assert content["model"].keys() == {"model", "epoch"}  # a dataclass
    weights = content["model"]["model"]  # a subclass of dict
    assert weights.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(weights[key], array, strict=True, err_msg=key)
    assert content["namespace"] == {"lr": 1e-3, "dtype": "torch.float16"}
    assert content["settings"]["rate"] == 0.5
    assert {"project.Color", ("a", 1)} < content["callbacks"].keys()
    assert content["numpy"][-1] == 2
    assert content["layouts"][-1] == "torch.float8_e4m3fn"


def test_tensors_of_rare_kinds_are_read_or_named():
    tensors = read_torch_file(FOLDER / "objects.pth")["tensors"]
    for kind in ("float8_e4m3fn", "float8_e5m2"):
        assert tensors[kind].dtype == np.dtype(kind)
        np.testing.assert_array_equal(tensors[kind].astype(np.float32), [[0.5, -2], [3, 0]])
    np.testing.assert_array_equal(tensors["uint16"], np.uint16([1, 65535]), strict=True)
    np.testing.assert_array_equal(tensors["complex64"], np.complex64([1 + 2j]), strict=True)
    assert tensors["sparse"].item() == "torch._utils._rebuild_sparse_tensor"
    assert tensors["quantised"].item() == "torch._utils._rebuild_qtensor"


@pytest.mark.parametrize("file", ["network.pth", "script.pth"])
def test_the_arrays_of_a_network_that_was_saved_whole_are_read(file):
    arrays = read_torch_file(FOLDER / file)
    arrays = arrays.get("network", arrays)
    with np.load(FOLDER / "network.npz") as stored:
        assert arrays.keys() == set(stored)
        for key, array in stored.items():
            np.testing.assert_array_equal(arrays[key], array, strict=True, err_msg=key)


def test_buffers_that_are_not_saved_are_left_out(tmp_path):
    array = tensor(storage(6), 0, (6,), (1,))
    kinds = {
        "parameters": b"}" + text("w") + array + b"s" + text("none") + b"Ns",
        "buffers": b"}" + text("mean") + array + b"s" + text("index") + array + b"s",
        "modules": b"}",
    }
    state = b"".join(text(f"_{kind}") + items + b"s" for kind, items in kinds.items())
    state += text("_non_persistent_buffers_set")
    state += name("builtins", "set") + b"](" + text("index") + b"e\x85Rs"
    path = write_zip(tmp_path / "a.pth", program(name("a", "Net") + b")\x81}" + state + b"b"))
    assert read_torch_file(path).keys() == {"w", "mean"}


def test_names_in_messages_have_no_control_characters(tmp_path):
    body = b"}" + text("w") + name("torch._utils", "_rebuild\x1b[2J") + b")Rs"
    content = read_torch_file(write_zip(tmp_path / "a.pth", program(body)))
    assert content["w"].item() == r"torch._utils._rebuild\x1b[2J"
    kind = ("torch", "\x1b[2JStorage")
    body = program(tensor(storage(6, kind=kind, more=(b"N",)), 0, (6,), (1,)))
    message = r"its storages are of torch\.\\x1b\[2JStorage, whose size is not known"
    with pytest.raises(ValueError, match=message):
        read_torch_file(write_legacy(tmp_path / "a.pth", body))


def test_a_storage_of_an_unknown_type_makes_an_unreadable_tensor(tmp_path):
    body = tensor(storage(6, kind=("torch", "QInt8Storage")), 0, (6,), (1,))
    array = read_torch_file(write_zip(tmp_path / "a.pth", program(body)))
    assert array.item() == "torch.QInt8Storage"


def test_a_big_endian_array_of_numpy_is_read(tmp_path):
    values = np.array([1, -2, 300], ">i4")
    body = pickle.dumps({"order": values}, protocol=2)
    array = read_torch_file(write_zip(tmp_path / "a.pth", body))["order"]
    np.testing.assert_array_equal(array, [1, -2, 300])


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numpy_are_read_in_every_protocol(protocol, tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32([[1, 2], [3, 4]]).T}
    body = pickle.dumps(arrays | {"c": np.float64(0.5)}, protocol=protocol)
    content = read_torch_file(write_zip(tmp_path / "a.pth", body))
    assert content["c"] == 0.5
    for key, array in arrays.items():
        np.testing.assert_array_equal(content[key], array)
