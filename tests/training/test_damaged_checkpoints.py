"""Tests of damaged checkpoints: damage is noticed and reported, and an earlier one is restored."""

import errno
import json
import os
import pathlib
import random
import re
import shutil

import pytest

from checkpoint_states import assert_same_bits, contents, make_state, target
from ddae_jax.training.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint


def shake(path, rng):
    """Flips a bit of a file, cuts it short, or deletes it or a folder; returns what was done."""
    if path.is_dir():
        shutil.rmtree(path)
        return "deleted"
    content = bytearray(path.read_bytes())
    what = rng.choice(["flipped", "cut", "deleted"]) if content else "deleted"
    if what == "deleted":
        path.unlink()
    elif what == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        flip(path, rng.randrange(8 * len(content)))
    return what


def said(caplog):
    """Returns the messages that this package has logged."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("ddae_jax")]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.slow
def test_no_random_fault_is_continued_in_silence(saved, tmp_path, caplog):
    """With each of 100 faults, the saved arrays are restored, or earlier ones with a warning."""
    rng = random.Random(0)
    wanted = target(make_state())
    outcomes = []
    for number in range(100):
        folder = shutil.copytree(saved, tmp_path / str(number))
        path = rng.choice(sorted((folder / "20").rglob("*")))
        what = shake(path, rng)
        caplog.clear()
        with Checkpoints(folder, read_only=True) as checkpoints:
            restored, data_state = checkpoints.restore(wanted)
        step = int(restored.step)
        assert_same_bits(restored, make_state(step))
        assert data_state == {"step": step}
        assert bool(said(caplog)) == (step == 10), (what, path)
        outcomes.append(step)
        shutil.rmtree(folder)
    assert outcomes.count(10) > 30


@pytest.mark.slow
def test_a_bit_flipped_in_the_arrays_is_noticed(tmp_path, caplog):
    """It is noticed in any file of a larger state: TensorStore has no checksums of arrays."""
    kept = tmp_path / "kept"
    expected = {}
    with Checkpoints(kept) as checkpoints:
        for step in (10, 20):
            expected[step] = make_state(step, width=2**15)  # arrays of 1 MiB
            checkpoints.save(expected[step], step, {"step": step})
    files = sorted((kept / "20" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    assert files[-1].stat().st_size > 2**19
    rng = random.Random(0)
    outcomes = []
    for number in range(20):
        folder = shutil.copytree(kept, tmp_path / "copied")
        path = files[-1 - number % 3]
        flip(folder / path.relative_to(kept), rng.randrange(8 * path.stat().st_size))
        caplog.clear()
        with Checkpoints(folder, read_only=True) as checkpoints:
            restored, _ = checkpoints.restore(target(expected[10]))
        outcomes.append(int(restored.step))
        assert_same_bits(restored, expected[outcomes[-1]])
        assert bool(said(caplog)) == (outcomes[-1] == 10)
        shutil.rmtree(folder)
    assert outcomes.count(10) > 10


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("_CHECKPOINT_METADATA", "20/_CHECKPOINT_METADATA is missing"),
        ("data", "20/data/metadata: No such file or directory"),
        ("state", "20/state/_METADATA: No such file or directory"),
        ("state/_METADATA", "20/state/_METADATA: No such file or directory"),
        ("state/manifest.ocdbt", r"20/state: NOT_FOUND: .* does not exist"),
        ("state/d", r"20/state/d/\w+: NOT_FOUND: "),
    ],
)
def test_what_is_missing_is_named_and_the_checkpoint_before_is_restored(
    copied, caplog, path, named
):
    missing = copied / "20" / path
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    with Checkpoints(copied, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(target({"params": make_state().params}))
    assert step == 10
    assert_same_bits(restored["params"], make_state(10).params)
    (warning,) = said(caplog)
    assert re.fullmatch(
        rf"the checkpoint of step 20 is DAMAGED: .*{named}.*\. Going on with that of step 10, the "
        "latest one that is intact",
        warning,
    )


def test_an_empty_folder_of_the_newest_step_is_told_of(copied, caplog):
    (copied / "30").mkdir()
    with Checkpoints(copied, read_only=True) as checkpoints:
        restored, _ = checkpoints.restore(target(make_state()))
    assert int(restored.step) == 20
    assert "step 30 is DAMAGED" in caplog.text


def test_a_damaged_checkpoint_makes_way_for_the_one_that_is_saved_again(copied, caplog):
    (copied / "20" / "state" / "_METADATA").write_text("{}")
    with Checkpoints(copied, keep_last=5) as checkpoints:
        restored, _ = checkpoints.restore(target(make_state()))
        assert int(restored.step) == 10
        checkpoints.save(make_state(20), 20, {"step": 20})
        checkpoints.wait()
        assert checkpoints.steps() == [10, 20]
    assert (copied / "damaged" / "20" / "state" / "_METADATA").read_text() == "{}"
    assert f"kept in {copied}/damaged" in caplog.text
    caplog.clear()
    with Checkpoints(copied) as checkpoints:
        assert_same_bits(checkpoints.restore(target(make_state()))[0], make_state(20))
    assert not said(caplog)


def test_a_damaged_checkpoint_that_is_asked_for_is_refused_beside_the_others(copied):
    (copied / "10" / "data" / "metadata").write_text("[1]")
    with (
        Checkpoints(copied, read_only=True) as checkpoints,
        pytest.raises(DamagedCheckpoint, match=r"step 10 .* is damaged: .*There are others: \[20"),
    ):
        checkpoints.restore(target(make_state()), step=10)


def test_where_none_is_intact_each_is_named(copied):
    shutil.rmtree(copied / "10")
    (copied / "10").mkdir()
    (copied / "20" / "state" / "_METADATA").unlink()
    with Checkpoints(copied) as checkpoints, pytest.raises(DamagedCheckpoint) as caught:
        checkpoints.restore(target(make_state()))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"no checkpoint in {copied} is intact:"
    assert lines[1].startswith(f"  step 20: {copied}/20/state/_METADATA: No such file")
    assert lines[2] == f"  step 10: {copied}/10/_CHECKPOINT_METADATA is missing"
    assert lines[3].endswith("or start anew in another --workdir.")
    assert (copied / "20").exists()  # nothing is moved if no checkpoint is usable


@pytest.mark.parametrize("has_digests", [True, False])
def test_a_data_position_of_another_step_is_damage(copied, caplog, has_digests):
    path = copied / "20" / "data" / "metadata"
    stored = json.loads(path.read_text()) | {"step": 21}
    if not has_digests:  # as an earlier version saved it
        del stored["arrays"], stored["digest"]
    path.write_text(json.dumps(stored))
    with Checkpoints(copied, read_only=True) as checkpoints:
        restored, data_state = checkpoints.restore(target(make_state()))
    assert (int(restored.step), data_state) == (10, {"step": 10})
    expected = "it is not what was saved" if has_digests else "its data position is that of step 21"
    assert expected in caplog.text


@pytest.mark.parametrize("written", ["{}", '{"step": null}', '{"step": "20"}'])
def test_a_data_position_of_no_step_is_damage(copied, caplog, written):
    (copied / "20" / "data" / "metadata").write_text(written)
    with Checkpoints(copied, read_only=True) as checkpoints:
        restored, data_state = checkpoints.restore(target(make_state()))
        _, step = checkpoints.restore_part({"params": target(make_state()).params})
    assert (int(restored.step), data_state, step) == (10, {"step": 10}, 10)
    assert "step 20 is DAMAGED" in caplog.text


def test_a_checkpoint_under_the_name_of_another_step_is_damage(copied, caplog):
    (copied / "20").rename(copied / "30")
    with Checkpoints(copied, read_only=True) as checkpoints:
        assert int(checkpoints.restore(target(make_state()))[0].step) == 10
    assert "step 30 is DAMAGED" in caplog.text


def test_a_checkpoint_without_digests_is_restored_as_before(copied):
    path = copied / "20" / "data" / "metadata"
    path.write_text(json.dumps({"step": 20}))
    with Checkpoints(copied, read_only=True) as checkpoints:
        restored, data_state = checkpoints.restore(target(make_state()))
    assert_same_bits(restored, make_state(20))
    assert data_state == {"step": 20}


def test_what_the_machine_cannot_read_is_not_called_damaged(copied, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    before = contents(copied)
    monkeypatch.setattr(pathlib.Path, "read_text", refuse)
    with (
        Checkpoints(copied) as checkpoints,
        pytest.raises(CheckpointError, match=r"cannot be read: .*Permission denied\. Nothing was"),
    ):
        checkpoints.restore(target(make_state()))
    assert contents(copied) == before
