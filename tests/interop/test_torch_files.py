"""Files of torch: their content is what torch saved, and nothing in them is run."""

import io
import os
import pickle
import pickletools
import re
import shutil
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import golden_arrays
from ddae_jax.interop.torch_files import read_torch_file
from pickled import (
    WRITERS,
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
FORMATS = ("zip", "legacy")
every_format = pytest.mark.parametrize("form", FORMATS)


def legacy_fields(form):
    return (b"N",) if form == "legacy" else ()


class Call:
    """Object whose pickle asks for a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@every_format
def test_arrays_are_those_that_torch_saved(form):
    arrays = read_torch_file(FOLDER / f"{form}.pth")["model"]
    with np.load(FOLDER / "expected.npz") as stored:
        expected = dict(stored)
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array, strict=True, err_msg=key)


@every_format
def test_settings_beside_the_arrays_are_plain_values(form):
    content = read_torch_file(FOLDER / f"{form}.pth")
    assert content["args"] == {"lr": 1e-3, "dtype": "torch.float16", "sizes": [1, 2]}
    assert (content["epoch"], content["best"], content["shape"]) == (3, 0.5, (3, 4))
    np.testing.assert_array_equal(content["order"], [[0, 1, 2], [3, 4, 5]])
    assert {key: array.shape for key, array in content["network"].items()} == {
        "weight": (3, 2),
        "bias": (3,),
    }


@every_format
@given(
    offset=st.integers(0, 8),
    shape_and_strides=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=3),
)
def test_a_tensor_is_what_its_strides_say_or_it_is_refused(
    tmp_path_factory, form, offset, shape_and_strides
):
    shape, strides = zip(*shape_and_strides, strict=True) if shape_and_strides else ((), ())
    indices = [
        offset + sum(i * step for i, step in zip(index, strides, strict=True))
        for index in np.ndindex(*shape)
    ]
    body = program(tensor(storage(6, more=legacy_fields(form)), offset, shape, strides))
    path = WRITERS[form](tmp_path_factory.mktemp("strides") / "a.pth", body)
    if max(indices, default=0) < 6:
        expected = np.array(indices, np.float32).reshape(shape)
        np.testing.assert_array_equal(read_torch_file(path), expected)
    else:
        with pytest.raises(ValueError, match="reaches outside its storage of 6 values"):
            read_torch_file(path)


@every_format
@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_call_to_the_system_is_refused_by_name_and_not_made(form, protocol, tmp_path):
    marker = tmp_path / "it_ran"
    body = pickle.dumps({"model": Call(os.system, f"touch {marker}")}, protocol=protocol)
    path = WRITERS[form](tmp_path / "a.pth", body)
    message = rf"{re.escape(str(path))} is refused: it asks for posix\.system, which no file"
    with pytest.raises(ValueError, match=message + ".*Nothing of it was run"):
        read_torch_file(path)
    assert not marker.exists()
    pickle.loads(body)  # the standard library's unpickler makes the call
    assert marker.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (name("builtins", "eval") + tuple_of(text("1")) + b"R", r"builtins\.eval"),
        (name("__builtin__", "eval") + tuple_of(text("1")) + b"R", r"__builtin__\.eval"),
        (b"(" + text("true") + b"ios\nsystem\n", r"os\.system"),
        (text("posix") + text("system") + b"\x93", r"posix\.system"),
        (name("subprocess", "Popen"), r"subprocess\.Popen"),
        (name("shutil", "rmtree"), r"shutil\.rmtree"),
        (name("a" * 1000, "b"), "by more than 1,000 letters"),
        (b"\x82\x01", "an extension of pickle"),
        (name("numpy", "ndarray") + b")R", "only to be named"),
        (text("x") + b")R", "calls what is no function"),
        (name("torch", "FloatStorage") + b")R", "calls what is no function"),
        (b"N" + b"K\x01K\x02s", "sets items of what is no dict"),
        (b"NK\x01a", "no list"),
        (tuple_of(text("module"), name("torch", "Size")) + b"Q", "that is no storage"),
        (text("0") + b"Q", "that is no storage"),
        (storage(6, kind=("torch", "Size")), "not its type, key and number"),
        (storage(-1), "a part of a storage"),
        (storage(6, more=[tuple_of(text("1"), number(0), number(2))]), "a part of a storage"),
        (tensor(text("x"), 0, (1,), (1,)), "has no storage"),
        (tensor(storage(6), -1, (1,), (1,)), "whole numbers"),
        (tensor(storage(6), 5, (2,), (-1,)), "whole numbers"),
        (tensor(storage(6), 0, (6,), (1 << 30,)), "reaches outside"),
        (tensor(storage(6), 0, (1 << 30, 1 << 30), (0, 0)), "many times larger"),
        (tensor(storage(1 << 30), 0, (1,), (1,)), "takes 4294967296 bytes, but .* has 24"),
        (tensor(storage(6, key="1"), 0, (1,), (1,)), "takes 24 bytes, but .* has 0"),
        (tensor(storage(6, key="../version"), 0, (1,), (1,)), "takes 24 bytes, but .* has 0"),
    ],
)
def test_other_forbidden_requests_are_refused_by_name(body, message, tmp_path):
    path = write_zip(tmp_path / "a.pth", program(body))
    pattern = f"(?s)a.pth is refused: .*{message}.*Nothing of it was run"
    with pytest.raises(ValueError, match=pattern):
        read_torch_file(path)


@pytest.mark.parametrize(
    "body",
    [
        # attempts to set attributes of a class, a function, or a dtype that others share
        name("collections", "OrderedDict") + b"N}" + text("items") + b"K\x01s\x86b",
        name("torch._utils", "_rebuild_parameter") + b"N}" + text("function") + b"Ns\x86b",
        name("torch._utils", "_rebuild_tensor_v2") + b"}" + text("x") + b"K\x01sb",
        name("torch", "FloatStorage") + b"N}" + text("dtype") + text("O") + b"s\x86b",
    ],
)
def test_a_pickle_that_changes_what_it_names_is_refused(body, tmp_path):
    path = write_zip(tmp_path / "a.pth", program(body))
    with pytest.raises(ValueError, match=r"a\.pth is refused: it changes what it may only name"):
        read_torch_file(path)
    read_torch_file(FOLDER / "zip.pth")


@pytest.mark.parametrize(
    "body",
    [
        name("torch._utils", "_rebuild_parameter") + b")\x81",
        b"\x80\x09",
        b"",
        b"\x85",
        b"h\x07",
        b"}(Nu",
    ],
)
def test_a_broken_pickle_is_called_damaged(body, tmp_path):
    path = write_zip(tmp_path / "a.pth", program(body))
    with pytest.raises(ValueError, match=r"a\.pth is damaged or incomplete, or no file of torch"):
        read_torch_file(path)


def test_attributes_of_a_dict_do_not_take_the_place_of_its_methods(tmp_path):
    state = b"}" + text("items") + name("torch", "Size") + b"sb"
    path = write_zip(
        tmp_path / "a.pth", program(name("collections", "OrderedDict") + b")R" + state)
    )
    assert list(read_torch_file(path).items()) == []


def test_many_views_of_one_storage_do_not_fill_the_memory(tmp_path):
    one = tensor(storage(1 << 16), 0, (1 << 16,), (1,))
    path = write_zip(tmp_path / "a.pth", program(b"](" + one * 100 + b"e"), count=1 << 16)
    with pytest.raises(ValueError, match="claim to be many times larger than the file"):
        read_torch_file(path)


def test_compressed_records_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program(tensor(storage(6), 0, (6,), (1,))))
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(ValueError, match="its records are compressed"):
        read_torch_file(path)


def test_overlapping_records_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", program(b"N"), count=1000)
    raw = path.read_bytes()
    start = raw.index(b"PK\x01\x02")  # the list of records, each of 46 bytes and a name
    end = raw.index(b"PK\x05\x06")
    places = [m.start() for m in re.finditer(b"PK\x01\x02", raw)]
    entry = next(
        raw[a:b] for a, b in zip(places, [*places[1:], end], strict=True) if b"data/0" in raw[a:b]
    )
    others = b"".join(entry.replace(b"data/0", f"data/{n}".encode()) for n in range(1, 9))
    total = 3 + 8
    counts = struct.pack("<HHII", total, total, end - start + len(others), start)
    tail = raw[end : end + 8] + counts + b"\0\0"
    path.write_bytes(raw[:end] + others + tail)
    with pytest.raises(ValueError, match="its records claim to be larger than the file"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"byteorder": b"big"}, "it is big-endian"),
        ({"data/data.pkl": b""}, None),
    ],
)
def test_big_endian_archives_are_refused_and_nested_pickles_ignored(records, message, tmp_path):
    path = write_zip(tmp_path / "a.pth", program(b"N"), **records)
    if message is None:
        assert read_torch_file(path) is None
    else:
        with pytest.raises(ValueError, match=message):
            read_torch_file(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": {"little_endian": False}}, "it is big-endian"),
        ({"count": 5}, "claimed to have 6 values, but has 5"),
        ({"keys": ["1"]}, "damaged"),
        ({"keys": []}, "damaged"),
    ],
)
def test_a_legacy_file_that_contradicts_itself_is_refused(changes, message, tmp_path):
    body = program(tensor(storage(6, more=(b"N",)), 0, (6,), (1,)))
    np.testing.assert_array_equal(
        read_torch_file(write_legacy(tmp_path / "good.pth", body)), np.arange(6)
    )
    with pytest.raises(ValueError, match=message):
        read_torch_file(write_legacy(tmp_path / "a.pth", body, **changes))


def test_a_legacy_storage_of_two_sizes_is_refused(tmp_path):
    two = [tensor(storage(n, more=(b"N",)), 0, (1,), (1,)) for n in (6, 7)]
    path = write_legacy(tmp_path / "a.pth", program(tuple_of(*two)))
    with pytest.raises(ValueError, match="several dtypes or sizes"):
        read_torch_file(path)


def call_of(module, function, *arguments):
    return name(module, function) + tuple_of(*arguments) + b"R"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (call_of("pathlib", "PosixPath", text("/"), text("out"), text("a")), "/out/a"),
        (call_of("pathlib._local", "PosixPath", text("a"), text("b")), "a/b"),
        (call_of("torch", "device", text("cuda"), number(1)), "cuda:1"),
        (call_of("torch", "device", text("cpu")), "cpu"),
        (call_of("__builtin__", "set", b"](K\x01K\x02e"), [1, 2]),
        (name("yacs.config", "CfgNode") + b")\x81" + text("lr") + b"K\x02s", {"lr": 2}),
        (
            name("omegaconf.dictconfig", "DictConfig") + b")\x81}" + text("_content") + b"}sb",
            {"_content": {}},
        ),
        (call_of("collections", "defaultdict", name("__builtin__", "list")), {}),
        (call_of("flax.core", "FrozenDict", b"}" + text("a") + b"K\x01s"), {"a": 1}),
        (name("types", "SimpleNamespace") + b")R}" + text("a") + b"K\x01sb", {"a": 1}),
        (call_of("collections", "deque", b"]", number(3)) + b"K\x07a", [7]),
        (call_of("datetime", "datetime", b"C\x02ab"), {}),
    ],
)
def test_settings_paths_and_devices_beside_weights_are_plain(body, expected, tmp_path):
    path = write_zip(tmp_path / "a.pth", program(body))
    assert read_torch_file(path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("step", [b"(", b"N", b"]", b"K\x01"])
def test_a_pickle_of_endless_steps_is_refused_before_they_are_taken(step, tmp_path, monkeypatch):
    taken = 0
    steps = pickletools.genops

    def counted(stream):
        nonlocal taken
        for item in steps(stream):
            taken += 1
            yield item

    monkeypatch.setattr(pickletools, "genops", counted)
    path = write_zip(tmp_path / "a.pth", program(step * 3_000_000))
    with pytest.raises(ValueError, match="takes more than 500,000 steps, which no file of weights"):
        read_torch_file(path)
    assert taken == 500_001


def module_of(**items):
    state = b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"
    return name("__torch__.torch.nn", "Module") + b")\x81" + state + b"b"


def test_a_program_of_torchscript_is_read_for_its_arrays(tmp_path):
    inner = module_of(weight=tensor(storage(6), 0, (6,), (1,)), training=b"\x89")
    body = program(module_of(conv=inner, scale=tensor(storage(6), 2, (), ())))
    arrays = read_torch_file(write_zip(tmp_path / "a.pth", body, **{"constants.pkl": b""}))
    assert arrays.keys() == {"conv.weight", "scale"}
    np.testing.assert_array_equal(arrays["conv.weight"], np.arange(6))


def test_a_program_whose_modules_multiply_is_refused(tmp_path):
    twice = module_of(weight=tensor(storage(6), 0, (6,), (1,)))
    for _ in range(40):  # each module holds the one before twice, by the memo
        twice = twice + b"q\x01" + b"0" + module_of(a=b"h\x01", b=b"h\x01")
    path = write_zip(tmp_path / "a.pth", program(twice), **{"constants.pkl": b""})
    with pytest.raises(ValueError, match="takes more than 500,000 steps"):
        read_torch_file(path)


@every_format
def test_a_truncated_file_is_named(form, tmp_path):
    raw = (FOLDER / f"{form}.pth").read_bytes()
    for end in range(4, len(raw) - 1, 97):
        path = tmp_path / f"{end}.pth"
        path.write_bytes(raw[:end])
        with pytest.raises(ValueError, match=f"{end}.pth is damaged or incomplete"):
            read_torch_file(path)


@every_format
@given(data=st.data())
def test_a_file_with_a_changed_byte_is_read_or_named(form, data, tmp_path_factory):
    raw = bytearray((FOLDER / f"{form}.pth").read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "a.pth"
    path.write_bytes(raw)
    message = None
    try:
        read_torch_file(path)
    except ValueError as error:
        message = str(error)
    assert message is None or str(path) in message


@pytest.mark.parametrize("content", [b"version https://git-lfs", b"", b"<html>", b"ustar"])
def test_a_text_is_no_file_of_torch(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match="a.pth is no file of torch: it begins with"):
        read_torch_file(tmp_path / "a.pth")


def test_a_pickle_of_others_is_no_file_of_torch(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="a pickle that torch did not write"):
        read_torch_file(tmp_path / "a.pth")


def test_an_archive_of_others_is_no_file_of_torch(tmp_path):
    shutil.copy(FOLDER / "expected.npz", tmp_path / "a.pth")
    with pytest.raises(ValueError, match="compressed|no data.pkl"):
        read_torch_file(tmp_path / "a.pth")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="no data.pkl"):
        read_torch_file(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.pth"):
        read_torch_file(tmp_path / "a.pth")
