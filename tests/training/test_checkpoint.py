"""Tests of saving and restoring: bit for bit, only whole checkpoints, and room for the disk."""

import dataclasses
import itertools
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoint_states import assert_same_bits, contents, make_state, save, target
from ddae_jax.training import checkpoint
from ddae_jax.training.checkpoint import CheckpointError, Checkpoints
from ddae_jax.training.program import TrainState
from ddae_jax.training.sharding import make_mesh, state_sharding

ROOT = pathlib.Path(__file__).parents[2]
DATA_STATE = {"step": 7, "grain": {"next_index": 123, "seed": [1, 2]}, "note": "é"}


def on_mesh(state, data, fsdp):
    mesh = make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    return jax.device_put(state, state_sharding(mesh, state))


# ---- what is saved is what is restored


@pytest.mark.slow
def test_state_and_data_position_come_back_bit_for_bit(tmp_path):
    state = make_state(7)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, 7, DATA_STATE)
        checkpoints.wait()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 7
        restored, data_state = checkpoints.restore(target(state))
    assert_same_bits(restored, state)
    assert data_state == DATA_STATE


@pytest.mark.slow
@pytest.mark.parametrize("step", [None, 20, 10])
def test_any_checkpoint_can_be_restored_the_latest_by_default(saved, step):
    with Checkpoints(saved, read_only=True) as checkpoints:
        restored, data_state = checkpoints.restore(target(make_state()), step)
    assert_same_bits(restored, make_state(step or 20))
    assert data_state == {"step": step or 20}


def test_a_checkpoint_of_one_mesh_is_restored_on_another(tmp_path):
    meshes = [(1, 8), (4, 2), (1, 1), (8, 1)]
    state = make_state(3)
    for number, (data, fsdp) in enumerate(meshes[:-1]):
        placed = on_mesh(state, data, fsdp)
        folder = tmp_path / str(number)
        wanted = target(state, *meshes[number + 1])
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(placed, 3, {})
            checkpoints.wait()
            restored, _ = checkpoints.restore(wanted)
        assert_same_bits(restored, state)
        for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
            assert leaf.sharding == expected.sharding
    kernel = on_mesh(state, 1, 8).params["encoder"]["layer"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8  # it is spread


def test_devices_share_the_writing_of_large_arrays_alone(tmp_path, monkeypatch):
    sliced, slice_in_dim = [], jax.lax.slice_in_dim

    def note(array, **options):
        sliced.append(array.shape)
        return slice_in_dim(array, **options)

    monkeypatch.setattr(jax.lax, "slice_in_dim", note)
    large = np.random.default_rng(0).normal(size=2**21).astype(np.float32)  # 1 MiB a device
    state = dataclasses.replace(make_state(3), teacher={"large": jnp.asarray(large)})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(on_mesh(state, 8, 1), 3, {})
        checkpoints.wait()
        restored, _ = checkpoints.restore(target(state))
    assert_same_bits(restored, state)
    assert sliced == [large.shape] * 8


@pytest.mark.slow
def test_part_of_a_state_is_the_same_as_in_the_whole(saved):
    whole = make_state(20)
    part = {"params": {"encoder": whole.params["encoder"]}}
    with Checkpoints(saved, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(target(part))
        teacher, earlier = checkpoints.restore_part(target({"teacher": whole.teacher}), step=10)
    assert (step, earlier) == (20, 10)
    assert_same_bits(restored, part)
    assert_same_bits(teacher, {"teacher": make_state(10).teacher})


@pytest.mark.slow
def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    state = on_mesh(make_state(1, width=64 * 1024), 1, 2)  # 11 MB take a while to write
    expected = jax.device_get(state)
    overwrite = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0
    )
    overwrite = overwrite.lower(state).compile()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, 1, {})
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(target(expected))
    assert_same_bits(restored, expected)


# ---- which are kept


def test_the_last_few_and_every_kth_are_kept(tmp_path):
    options = {"keep_last": 2, "keep_every_steps": 20}
    assert save(tmp_path, 10, 20, 30, 40, 50, 60, 70, **options) == [20, 40, 60, 70]
    # The same holds for a run that is continued, and for the folder itself.
    assert save(tmp_path, 80, 90, **options) == [20, 40, 60, 80, 90]
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"20", "40", "60", "80", "90"}


def test_without_every_kth_only_the_last_few_are_kept(tmp_path):
    assert save(tmp_path, 1, 2, 3, 4, 5, keep_last=3) == [3, 4, 5]


# ---- reading only


def test_opening_to_read_changes_nothing(copied):
    shutil.copytree(copied / "20", copied / "30.orbax-checkpoint-tmp")
    before = contents(copied)
    with Checkpoints(copied, read_only=True) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        checkpoints.restore(target(make_state()))
    assert contents(copied) == before


def test_checkpoints_that_are_not_there_are_not_made_by_reading(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoints: .*/run/checkpoints does not"):
        Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; there are: none"):
            checkpoints.restore(target(make_state()))


def test_a_missing_step_is_named_beside_those_that_exist(saved):
    with Checkpoints(saved, read_only=True) as checkpoints:
        for restore in (checkpoints.restore, checkpoints.restore_part):
            with pytest.raises(
                FileNotFoundError, match=r"no checkpoint of step 15 in .*there are: \[10, 20\]"
            ):
                restore(target(make_state()), step=15)


# ---- another model


def test_a_checkpoint_of_another_model_names_what_differs_parameters_first(saved):
    other = make_state(width=32)
    other.params["decoder"] = {"kernel": jnp.zeros((2, 2))}
    del other.params["supervision"]
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(CheckpointError) as caught,
    ):
        checkpoints.restore(target(other))
    lines = str(caught.value).splitlines()
    assert "the checkpoint of step 20" in lines[0]
    assert str(saved) in lines[0]
    assert [line.strip() for line in lines[1:5]] == [
        "params/decoder/kernel: missing in the checkpoint, (2, 2) in the model",
        "params/encoder/layer/kernel: (8, 16) in the checkpoint, (8, 32) in the model",
        "params/supervision/beta: (2, 3) in the checkpoint, missing in the model",
        "teacher/layer/kernel: (8, 16) in the checkpoint, (8, 32) in the model",
    ]
    assert lines[5].strip().startswith("opt_state/")
    assert lines[-1] == "Use the config it was made with, or another --workdir."


def test_a_part_of_another_model_is_refused(saved):
    part = {"params": {"encoder": make_state(width=32).params["encoder"]}}
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match=r"1 arrays differ:\n  params/encoder/layer/kernel"),
    ):
        checkpoints.restore_part(target(part))


# ---- half-written ones


@pytest.mark.parametrize("is_whole_inside", [True, False])
def test_a_half_written_checkpoint_is_never_picked_up(copied, is_whole_inside):
    half = copied / "40.orbax-checkpoint-tmp"  # orbax.checkpoint._src.path.atomicity
    shutil.copytree(copied / "20", half)
    if not is_whole_inside:
        (half / "state" / "_METADATA").unlink()
        shutil.rmtree(half / "data")
    for read_only in (True, False):
        with Checkpoints(copied, read_only=read_only) as checkpoints:
            assert checkpoints.steps() == [10, 20]
            restored, _ = checkpoints.restore(target(make_state()))
        assert_same_bits(restored, make_state(20))
    assert save(copied, 30) == [20, 30]
    assert not half.exists()  # opening for writing sweeps it away
    with Checkpoints(copied, read_only=True) as checkpoints:
        assert_same_bits(checkpoints.restore(target(make_state()))[0], make_state(30))


def test_a_half_deleted_checkpoint_is_no_checkpoint(copied):
    # An old checkpoint is deleted file by file; this is a state in which a killed run was found.
    (copied / "10" / "_CHECKPOINT_METADATA").unlink()
    (copied / "10" / "commit_success.txt").unlink(missing_ok=True)
    for read_only in (True, False):
        with Checkpoints(copied, read_only=read_only) as checkpoints:
            assert checkpoints.steps() == [20]
            restored, _ = checkpoints.restore(target(make_state()))
        assert_same_bits(restored, make_state(20))


def test_what_is_deleted_is_moved_away_whole_before_its_files_are(tmp_path, monkeypatch):
    seen = []
    delete = shutil.rmtree

    def watched(path, **options):
        if pathlib.Path(path).exists():
            seen.append(contents(path).keys() & {"1/_CHECKPOINT_METADATA", "1/state/_METADATA"})
        delete(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", watched)
    assert save(tmp_path, 1, 2, 3, keep_last=1) == [3]
    assert seen[0] == {"1/_CHECKPOINT_METADATA", "1/state/_METADATA"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["3"]


def test_what_a_kill_left_of_a_deleted_checkpoint_is_swept_away_by_the_next_run(copied):
    shutil.copytree(copied / "10" / "data", copied / ".deleted" / "5" / "data")
    with Checkpoints(copied, read_only=True) as checkpoints:
        assert checkpoints.steps() == [10, 20]
    assert (copied / ".deleted").exists()
    with Checkpoints(copied, keep_last=5) as checkpoints:
        assert not (copied / ".deleted").exists()
        assert checkpoints.steps() == [10, 20]


def test_closing_that_fails_does_not_hide_why_the_run_ended(tmp_path, monkeypatch, caplog):
    def fail(self):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "close", fail)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path):
        raise ZeroDivisionError
    assert "No space left on device" in caplog.text
    with pytest.raises(CheckpointError, match="No space left on device"), Checkpoints(tmp_path):
        pass


def large_state(step):
    """Makes a state of 32 MB that depends on its step; random, so that it cannot be compressed."""
    rng = np.random.default_rng(step)
    params = {f"layer_{n}": rng.random((512, 1024), np.float32) for n in range(16)}
    return TrainState(jnp.int32(step), jax.tree.map(jnp.asarray, params), {}, ())


def save_for_ever(folder):
    """Saves checkpoints until the process is killed."""
    with Checkpoints(folder, keep_last=2) as checkpoints:
        for step in itertools.count(1):
            checkpoints.save(large_state(step), step, {"step": step})
            print(step, flush=True)


def child(function, *arguments):
    """Starts a process, with one device, that calls a function of this file."""
    return subprocess.Popen(
        [sys.executable, __file__, function.__name__, *map(str, arguments)],
        env=os.environ
        | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def half_written_in(folder):
    return [path for path in folder.iterdir() if path.name.endswith(".orbax-checkpoint-tmp")]


def kill_while_saving(process, folder):
    """Kills the process at a moment when a temporary folder certainly exists."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if half_written_in(folder):
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            if half_written_in(folder):
                break
            process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait(timeout=30)
    assert half_written_in(folder)


@pytest.mark.slow
def test_a_run_killed_while_saving_leaves_only_whole_checkpoints(tmp_path):
    rng = random.Random(0)
    folders = [tmp_path / name for name in ("while_saving", "sometime", "sometime_else")]
    processes = [child(save_for_ever, folder) for folder in folders]
    try:
        for process, folder in zip(processes, folders, strict=True):
            while int(process.stdout.readline() or -1) not in (-1, 3):
                pass
            assert process.poll() is None, process.stderr.read()
            if folder.name == "while_saving":
                kill_while_saving(process, folder)
            else:
                time.sleep(rng.uniform(0, 0.5))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for folder in folders:
        with Checkpoints(folder, read_only=True) as checkpoints:
            seen = checkpoints.steps()
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.steps() == seen
            assert len(seen) >= 1
            for step in seen:
                expected = large_state(step)
                restored, data_state = checkpoints.restore(target(expected), step)
                assert_same_bits(restored, expected)
                assert data_state == {"step": step}
            latest = checkpoints.latest_step()
            checkpoints.save(large_state(latest + 1), latest + 1, {})
            checkpoints.wait()
            assert checkpoints.latest_step() == latest + 1
            assert half_written_in(folder) == []


# ---- a full disk


def fill_the_disk(folder, has_earlier):
    """Saves while a limit on the size of files makes writes fail midway, as a full disk does.

    Python ignores SIGXFSZ, so that such writes end in an OSError.
    """
    heard = []
    with Checkpoints(folder) as checkpoints:
        if has_earlier == "True":
            checkpoints.save(large_state(1), 1, {"step": 1})
            checkpoints.wait()
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, unlimited[1]))
        try:
            checkpoints.save(large_state(2), 2, {"step": 2})
            checkpoints.wait()
        except CheckpointError as error:
            heard.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print(json.dumps(heard))


@pytest.mark.slow
@pytest.mark.parametrize("has_earlier", [True, False])
def test_a_full_disk_leaves_the_earlier_checkpoints_usable_and_says_so(tmp_path, has_earlier):
    process = child(fill_the_disk, tmp_path, has_earlier)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    heard = json.loads(output.splitlines()[-1])
    assert len(heard) == 1
    assert heard[0].startswith(f"a checkpoint could not be saved in {tmp_path}: ")
    expected = "steps [1]. Make room" if has_earlier else "There is no earlier one. Make room"
    assert expected in heard[0]

    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == ([1] if has_earlier else [])
        if has_earlier:
            restored, data_state = checkpoints.restore(target(large_state(1)))
            assert_same_bits(restored, large_state(1))
            assert data_state == {"step": 1}
        checkpoints.save(large_state(2), 2, {"step": 2})  # there is room again
        checkpoints.wait()
        restored, _ = checkpoints.restore(target(large_state(2)))
    assert_same_bits(restored, large_state(2))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
