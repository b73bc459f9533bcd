import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from ddae_jax.training import workdir as workdir_module
from ddae_jax.training.workdir import Workdir, WorkdirInUse, write_atomically

# Loads the module alone, as the whole package would take seconds to import.
HOLD = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("workdir", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
workdir = module.Workdir(sys.argv[2])
workdir.claim()
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Returns another process that has claimed ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, workdir_module.__file__, tmp_path / "run"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    "name", ["", " ", "None", "null", "none", "NONE", "runs/None", "./null", "None/", "undefined"]
)
def test_a_variable_that_is_not_set_is_no_folder(name):
    with pytest.raises(ValueError, match=f"--workdir={name} is no folder; a script may have a"):
        Workdir(name)


def test_the_current_folder_is_one():
    assert Workdir(".").path == pathlib.Path.cwd()


def test_a_name_that_is_not_utf8_is_refused_and_shown(tmp_path):
    with pytest.raises(ValueError, match=r"/w_\\xff is not in UTF-8, .* of another name"):
        Workdir(os.fsdecode(os.fsencode(tmp_path) + b"/w_\xff"))


def test_a_second_run_in_a_workdir_is_refused_naming_the_first(holder, tmp_path):
    workdir = Workdir(tmp_path / "run")
    for _ in range(2):  # a refusal must not break the lock
        with pytest.raises(
            WorkdirInUse, match=rf"\(process {holder.pid}\) is writing to {tmp_path}/run; "
        ):
            workdir.claim()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_workdir_is_free_once_its_process_is_gone_however_it_went(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait(timeout=10)
    workdir = Workdir(tmp_path / "run")
    workdir.claim()
    # This process holds the lock now, and the file names it.
    with pytest.raises(WorkdirInUse, match=rf"\(process {os.getpid()}\)"):
        Workdir(tmp_path / "run").claim()


def test_a_claim_makes_the_folder_and_nothing_before_it_does(tmp_path):
    workdir = Workdir(tmp_path / "a" / "b")
    assert workdir.read_config() is None
    workdir.check_is_a_run_or_empty()
    assert list(tmp_path.iterdir()) == []
    workdir.claim()
    assert workdir.path.is_dir()


def test_a_file_is_no_workdir(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(NotADirectoryError, match=rf"--workdir={path} is a file; give a folder"):
        Workdir(path).claim()
    assert path.read_text() == "mine"


def test_a_folder_with_other_peoples_files_is_refused_naming_some(tmp_path):
    for name in ("thesis.tex", "a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"no run's \(a.png, b.png, c.png, ...\); give an empty"):
        Workdir(tmp_path).check_is_a_run_or_empty()
    (tmp_path / "thesis.tex").unlink()
    with pytest.raises(ValueError, match=r"no run's \(a.png, b.png, c.png\); give an empty"):
        Workdir(tmp_path).check_is_a_run_or_empty()


def test_a_run_s_own_files_are_welcome_with_or_without_its_config(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim()
    workdir.compilation_cache.mkdir()
    workdir.check_is_a_run_or_empty()  # killed before it stored its config
    workdir.write_config({"seed": 1})
    (tmp_path / "notes.txt").touch()
    workdir.check_is_a_run_or_empty()


def test_the_stored_config_comes_back_exactly(tmp_path):
    workdir = Workdir(tmp_path / "run")
    config = {"seed": 3, "model": {"size": "B", "image_size": [32, 24]}, "rate": 1.5e-4, "né": None}
    workdir.write_config(config)
    assert workdir.read_config() == config
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config


@pytest.mark.parametrize("text", ["", '{"seed": ', "[1, 2]", "3"])
def test_a_config_that_is_no_json_object_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config.json .*; repair it, or use a new"):
        Workdir(tmp_path).read_config()


def test_what_a_kill_leaves_of_a_first_config_does_not_lock_the_workdir(tmp_path):
    (tmp_path / ".config.123.json").write_text('{"se')
    workdir = Workdir(tmp_path)
    workdir.check_is_a_run_or_empty()
    workdir.claim()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_released_workdir_is_free_in_the_same_process(tmp_path):
    first, second = Workdir(tmp_path), Workdir(tmp_path)
    first.claim()
    with pytest.raises(WorkdirInUse):
        second.claim()
    first.release()
    second.claim()
    second.release()


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run"])
def test_an_address_is_no_folder(address):
    with pytest.raises(
        ValueError, match=rf"--workdir={address} is an address, not a folder; mount"
    ):
        Workdir(address)


def test_processes_of_a_run_recognise_the_folder_that_the_first_one_claimed(tmp_path):
    first, second = Workdir(tmp_path), Workdir(tmp_path)
    first.claim(token=123)
    second.check_is_shared(123)
    with pytest.raises(ValueError, match="is not the folder that the first process"):
        second.check_is_shared(124, patience_s=0)
    with pytest.raises(ValueError, match="is not the folder that the first process"):
        Workdir(tmp_path / "other").check_is_shared(123, patience_s=0.2)
    first.release()


def test_paths_of_a_run_are_where_people_look(tmp_path):
    workdir = Workdir(tmp_path)
    names = "config.json metrics.jsonl checkpoints figures report.html tensorboard features"
    found = {path.name for path in vars(workdir).values() if isinstance(path, pathlib.Path)}
    assert set(names.split()) <= found
    assert workdir.checkpoints == tmp_path / "checkpoints"


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Workdir("~/run").path == tmp_path / "run"


def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomically(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800 of it")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "sub" / "text"
    texts = [letter * 200_000 for letter in "ab"]
    write_atomically(path, texts[0])
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "reading\n"
    for number in range(200):
        write_atomically(path, texts[number % 2])
    output, _ = reader.communicate("stop", timeout=10)
    sizes, count = json.loads(output)
    assert sizes == [200_000]
    assert count > 0


READ = """
import json, pathlib, select, sys
path, sizes, count = pathlib.Path(sys.argv[1]), set(), 0
print("reading", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    sizes.add(len(path.read_text()))
    count += 1
print(json.dumps([sorted(sizes), count]))
"""
