"""Worker processes, in real processes: signals, their end, and errors that say why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from annotated import write_pairs
from ddae_jax.data import workers
from ddae_jax.data.augment import Augmentation
from ddae_jax.data.joint_augment import JointAugmentation
from ddae_jax.data.segmentation import make_pair_source
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.data.workers import WorkerLost, check_shared_memory, explain_worker_error

PROGRAM = """
import signal, sys
import numpy as np
from ddae_jax.data import background_iterator
from ddae_jax.data.augment import Augmentation
from ddae_jax.data.train_loader import TrainLoader
from ddae_jax.data.sources import make_source

if __name__ == "__main__":
    background_iterator._CLOSE_S = 2.0  # shorter than for users
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
    signal.signal(signal.SIGINT, lambda *_: print("asked", flush=True))
    source = make_source("digits", channels=1)
    loader = TrainLoader(source, Augmentation((8, 8)), batch_size=32, seed=0, num_workers=2)
    for line in sys.stdin:
        if line == "close\\n":
            loader.close()
            print("closed", flush=True)
        else:
            try:
                print("read", next(loader)["label"].sum(), flush=True)
            except Exception as error:
                print(f"{type(error).__name__}: {error}", flush=True)
"""


def children(pid):
    """Returns the process IDs of living children."""
    pids = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            pids.append(int(status.parent.name))
    return pids


def wait_until_gone(processes, timeout_s):
    deadline = time.monotonic() + timeout_s
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline, f"{processes} still live after {timeout_s} s"
        time.sleep(0.05)


@pytest.fixture
def reader(tmp_path):
    """A process that reads with two workers: a batch for each line that it is sent."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, program],
        env=tiny.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def ask(process, line="read"):
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().split()[0]


def ask_until_it_fails(process):
    """Returns what the process prints when it cannot read any more."""
    for _ in range(30):  # more than were read ahead
        process.stdin.write("read\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line.startswith("read"):
            return line
    raise AssertionError("it still reads")


def workers_of(process):
    """Returns the two workers; a third child keeps account of shared memory."""
    assert ask(process) == "read"
    pids = children(process.pid)
    assert len(pids) >= 2
    return pids


@pytest.mark.slow
def test_a_signal_to_the_whole_group_is_left_to_the_parent(reader):
    workers = workers_of(reader)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(reader.pid, number)
        assert reader.stdout.readline() == "asked\n"
        for _ in range(30):  # more than were read ahead
            assert ask(reader) == "read"
        assert set(workers) <= set(children(reader.pid))


@pytest.mark.slow
def test_closing_ends_the_workers(reader):
    workers = workers_of(reader)
    started = time.monotonic()
    assert ask(reader, "close") == "closed"
    assert time.monotonic() - started < 20
    assert len(children(reader.pid)) <= len(workers) - 2


@pytest.mark.slow
def test_workers_end_where_the_parent_is_killed(reader):
    workers = workers_of(reader)
    reader.kill()
    reader.wait()
    wait_until_gone(workers, timeout_s=10)


def both_readers_of(process):
    """Returns workers that have started and read, as killing one earlier has other effects."""
    assert [ask(process) for _ in range(4)] == ["read"] * 4
    return [
        pid
        for pid in workers_of(process)
        if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.slow
def test_a_killed_worker_is_reported_with_its_likely_cause(reader):
    for pid in both_readers_of(reader):
        os.kill(pid, signal.SIGKILL)
    message = ask_until_it_fails(reader)
    assert message.startswith(
        "WorkerLost: a process that reads images (data.num_workers=2) was kill"
    )
    assert ask(reader, "close") == "closed"


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (-9, "(data.num_workers=2) was killed. Mostly the system does so where memory is short"),
        (-7, "was ended by SIGBUS: no shared memory was left (/dev/shm has"),
        (-11, "was ended by signal 11 (Segmentation fault); with data.num_workers=0 the images"),
        (1, "ended with status 1; what it wrote stands above"),
    ],
)
def test_the_end_of_a_worker_is_reported_with_what_to_do(exit_code, reason):
    error = RuntimeError(
        f"Worker process was terminated unexpectedly with exit code {exit_code}. Search the logs"
    )
    explanation = explain_worker_error(error, num_workers=2)
    assert isinstance(explanation, WorkerLost)
    assert f"a process that reads images {reason}" in str(explanation)


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_keep_its_loader_open(reader):
    for pid in both_readers_of(reader):
        os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    assert ask(reader, "close") == "closed"
    assert time.monotonic() - started < 15


def sizes(monkeypatch, total_mib, free_mib):
    sizes = (None, 0) if total_mib is None else (total_mib * 2**20, free_mib * 2**20)
    monkeypatch.setattr(workers, "_size_of", lambda folder: sizes)


BATCH = 256 * 224 * 224 * 3  # bytes: 37 MiB; four batches are ready for each worker


def test_shared_memory_that_can_not_suffice_is_refused_with_what_to_do(monkeypatch):
    sizes(monkeypatch, 64, 64)  # MiB, Docker's default
    with pytest.raises(ValueError, match="data.num_workers=2 need 294 MiB") as raised:
        check_shared_memory(2, BATCH)
    assert str(raised.value) == (
        "data.num_workers=2 need 294 MiB of shared memory for the batches that lie ready, and "
        "/dev/shm has 64 MiB, of which 64 MiB are free. In a container give it more, as by docker "
        "run --shm-size=8g, or on Kubernetes by an emptyDir with medium: Memory at /dev/shm; or "
        "lower data.num_workers, of which 0 needs none"
    )


@pytest.mark.parametrize(
    ("augmentation", "needed"),
    [(Augmentation((224, 224)), 294), (JointAugmentation((224, 224)), 392)],  # the annotations too
)
def test_a_loader_counts_all_arrays_of_its_examples(monkeypatch, tmp_path, augmentation, needed):
    sizes(monkeypatch, needed - 1, needed - 1)
    write_pairs(tmp_path, 2)
    source = make_pair_source("folder", data_dir=str(tmp_path), num_classes=5)
    options = {"batch_size": 256, "seed": 0, "num_workers": 2}
    with pytest.raises(ValueError, match=f"num_workers=2 need {needed} MiB of shared memory"):
        TrainLoader(source, augmentation, **options)
    sizes(monkeypatch, needed, needed)
    TrainLoader(source, augmentation, **options).close()


def test_shared_memory_that_others_take_is_warned_of(monkeypatch):
    sizes(monkeypatch, 1000, 100)
    assert "/dev/shm has 1,000 MiB, of which 100 MiB are free" in check_shared_memory(2, BATCH)


@pytest.mark.parametrize("case", [(0, 64, 64), (2, 295, 295), (2, None, None)])
def test_shared_memory_that_suffices_or_is_not_needed_is_no_error(case, monkeypatch):
    num_workers, total, free = case
    sizes(monkeypatch, total, free)
    assert check_shared_memory(num_workers, BATCH) is None


def test_a_full_shared_memory_is_not_taken_for_a_full_disk():
    full = explain_worker_error(OSError(28, "No space left on device"), num_workers=2)
    assert isinstance(full, WorkerLost)
    assert "no shared memory was left (/dev/shm has" in str(full)
    assert "--shm-size" in str(full)
    alone = OSError(28, "No space left on device")
    assert explain_worker_error(alone, num_workers=0) is alone


def test_other_errors_stay_what_they_are():
    for error in (ValueError("exit code -9"), RuntimeError("other"), OSError("other")):
        assert explain_worker_error(error, num_workers=2) is error
