"""Two processes with two devices each, on loopback, are a cluster: the pod's path, made small."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import tiny
from ddae_jax.builders.data import build_loader, build_source
from ddae_jax.config import from_plain
from ddae_jax.jobs import exits

pytestmark = pytest.mark.slow  # each test starts processes that wait for each other

PROGRAM = """
import sys
import jax
index, patch = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
# All processes find what the first compiled: on CPUs the key would tell them apart.
from jax._src import cache_key
cache_key._hash_accelerator_config = cache_key._hash_devices
import undrawn
pretrain = undrawn.load("pretrain")
exec(patch)
sys.exit(pretrain.main(sys.argv[3:]))
"""


# The runs that these begin are long enough to be stopped.
STOPPED = ("--config.epochs=40", *tiny.SIMPLEST)


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def start(*options, of_process=((), ()), num_devices=2, patch=""):
    """Processes that pretrain together, two unless ``of_process`` has more or fewer.

    ``of_process`` are further options of each of them, ``num_devices`` the devices of each, and
    ``patch`` is code that they run first, in which ``index`` tells which one it is.
    """
    cluster = [f"--coordinator={free_address()}", f"--num_processes={len(of_process)}"]
    numbers = [f"--process_id={index}" for index in range(len(of_process))]
    environment = tiny.environment(num_devices)
    environment["PYTHONPATH"] += f":{tiny.ROOT / 'tests'}"
    program = [sys.executable, "-c", PROGRAM]
    return [
        subprocess.Popen(
            [*program, str(index), patch, *options, *own, *cluster, number],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, (own, number) in enumerate(zip(of_process, numbers, strict=True))
    ]


def finish(processes, status=0):
    """What they printed, and what they logged; they end with the status."""
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), said
    printed = [[line for line in out.splitlines() if "[Gloo]" not in line] for out, _ in said]
    return printed, [log for _, log in said]


def wait_for_step(workdir, step, processes):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = workdir / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines[-1:] if line.endswith("}")):
            return
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    raise AssertionError(f"no step {step}")


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write_config(tmp_path_factory.mktemp("config"), depth=2)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """For runs that are stopped or fail, whatever network they train."""
    return tiny.write_config(tmp_path_factory.mktemp("shallow"), depth=1)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """What a run of two processes left, and its options."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    options = [f"--config={config}", "--config.epochs=0.7", "--config.log.figures_every_epochs=0.3"]
    options.append("--config.checkpoint.keep_every=1")
    watched = [f"--workdir={workdir}", "--config.evaluation.knn_every_epochs=0.5"]
    finish(start(*options, *watched))
    return workdir, options


@pytest.mark.xdist_group("undisturbed pair")
def test_two_processes_train_as_one_does_and_write_everything_once(undisturbed, tmp_path):
    workdir, options = undisturbed
    one = tiny.run("pretrain", *options, f"--workdir={tmp_path / 'one'}", num_devices=4)
    assert one.returncode == 0, one.stderr
    many, alone = (
        {r["step"]: r for r in tiny.records(folder) if "loss" in r}
        for folder in (workdir, tmp_path / "one")
    )
    assert set(alone) <= set(many)
    for step, record in alone.items():
        for name in ("loss", "gradient_norm", "beta/pixels/depth_2"):
            np.testing.assert_allclose(many[step][name], record[name], rtol=2e-5, err_msg=name)
    assert many[15]["knn/trained"] > 0.1
    assert saved_steps(workdir)[-1] == 15
    assert (workdir / "report.html").exists()


PICTURES_FAIL = """
from ddae_jax.hooks.pretraining import PretrainingReport
def fail(*_):
    raise OSError(28, "No space left on device")
PretrainingReport.draw = fail
"""


@pytest.fixture(scope="module")
def stopped(shallow, tmp_path_factory):
    """What a run left whose pictures fail, and of which one process is asked to stop; its logs."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    options = [f"--config={shallow}", f"--workdir={workdir}", *STOPPED]
    options.append("--config.log.figures_every_epochs=0.1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(exits.STOPPED_STATUS, "75")
        processes = start(*options, patch=PICTURES_FAIL)
    wait_for_step(workdir, 6, processes)
    processes[1].send_signal(signal.SIGTERM)
    _, logs = finish(processes, status=75)
    return workdir, logs


@pytest.mark.xdist_group("stopped pair")
def test_a_stop_of_one_of_two_processes_stops_and_saves_both_at_the_same_step(stopped):
    workdir, _ = stopped
    last = tiny.records(workdir)[-1]["step"]
    assert 6 <= last < 880
    assert saved_steps(workdir)[-1] == last


@pytest.mark.xdist_group("stopped pair")
def test_pictures_that_fail_in_the_one_process_that_draws_them_stop_nobody(stopped):
    workdir, logs = stopped
    assert "step 2: figures or report could not be written" in logs[0]
    assert "could not be written" not in logs[1]
    assert tiny.records(workdir)[-1]["step"] >= 6


def test_launched_by_slurm_a_signal_to_all_of_them_saves_and_ends_well(shallow, tmp_path):
    workdir = tmp_path / "run"
    options = [f"--config={shallow}", f"--workdir={workdir}", *STOPPED, "--distributed"]
    job = {
        "SLURM_JOB_ID": free_address().rpartition(":")[2],  # the port follows from it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    processes = [
        subprocess.Popen(
            tiny.command("pretrain", *options),
            env=tiny.environment(2) | job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    wait_for_step(workdir, 6, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    finish(processes)
    assert saved_steps(workdir)[-1] == tiny.records(workdir)[-1]["step"] >= 6


# Keeps each process's part of each batch, and asks for a stop when the batch of step STOP is read.
KEEPS_BATCHES = """
import pathlib, signal
import numpy as np
from ddae_jax.data.train_loader import TrainLoader
read = TrainLoader.next_unless
def keep(self, is_over):
    step, batch = self.step, read(self, is_over)
    if batch is None:
        return batch
    np.save(pathlib.Path({folder!r}) / f"{{step}}-{{index}}.npy", batch["image"])
    if step == {stop} and index == 0:
        signal.raise_signal(signal.SIGTERM)
    return batch
TrainLoader.next_unless = keep
"""


def begin_as(workdir, other, step):
    """Leaves of a run, in another folder, what there was when it had saved this step."""
    shutil.copytree(workdir, other)
    for saved in saved_steps(other):
        if saved > step:
            shutil.rmtree(other / "checkpoints" / str(saved))
    records = [record for record in tiny.records(other) if record["step"] <= step]
    (other / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    assert saved_steps(other)[-1] == step


@pytest.mark.xdist_group("undisturbed pair")
def test_continued_by_other_processes_devices_and_shares_it_is_as_if_never_stopped(
    undisturbed, tmp_path
):
    workdir, options = undisturbed
    moved = tmp_path / "moved"
    begin_as(workdir, moved, step=4)
    seen = tmp_path / "seen"
    seen.mkdir()
    ends = [4]
    for num_devices, fsdp, stop in ((1, 1, 5), (4, 4, 9)):
        finish(
            start(
                *options,
                f"--workdir={moved}",
                f"--config.mesh.fsdp={fsdp}",
                of_process=((),),
                num_devices=num_devices,
                patch=KEEPS_BATCHES.format(folder=str(seen), stop=stop),
            )
        )
        assert saved_steps(moved)[-1] > stop
        ends.append(saved_steps(moved)[-1])
    patch = KEEPS_BATCHES.format(folder=str(seen), stop=None)
    last = [f"--workdir={moved}", "--config.mesh.fsdp=2"]
    _, logs = finish(start(*options, *last, patch=patch))
    assert ends == sorted(set(ends))
    assert f"continuing from the checkpoint of step {ends[-1]}" in logs[0]

    many, once = (
        {r["step"]: r["loss"] for r in tiny.records(folder) if "loss" in r}
        for folder in (moved, workdir)
    )
    for step in (*range(2, 15, 2), 15):
        np.testing.assert_allclose(many[step], once[step], rtol=2e-5, err_msg=f"step {step}")

    settings = from_plain(json.loads((workdir / "config.json").read_text()))
    with build_loader(settings, build_source(settings, "train")) as of_one_process:
        for step in range(15):
            expected = next(of_one_process)["image"]
            if step < 4:
                continue
            parts = [np.load(path) for path in sorted(seen.glob(f"{step}-*.npy"))]
            np.testing.assert_array_equal(np.concatenate(parts), expected, err_msg=f"step {step}")


@pytest.mark.xdist_group("undisturbed pair")
def test_where_one_is_killed_the_other_ends_and_both_restarted_end_bit_identical(
    undisturbed, tmp_path
):
    workdir, options = undisturbed
    run = (*options, f"--workdir={tmp_path / 'killed'}")
    processes = start(*run)
    wait_for_step(tmp_path / "killed", 8, processes)
    processes[1].kill()  # the first one alone writes compiled programs, of which none is left half
    # JAX would miss it after a minute, and abort.
    _, log = processes[0].communicate(timeout=30)
    assert processes[0].returncode == 1, log
    said = log.splitlines()[-1]
    assert said.startswith(("error: process 1 of this run, on ", "The same command, started on"))
    _, logs = finish(start(*run))
    assert "continuing from the checkpoint of step" in logs[0]
    one, other = (
        {r["step"]: r["loss"] for r in tiny.records(folder) if "loss" in r}
        for folder in (workdir, tmp_path / "killed")
    )
    assert max(other) == 15
    assert other == {step: one[step] for step in other}


def test_where_the_first_one_is_killed_the_other_says_so_though_jax_aborts(tmp_path):
    program = """
import sys, time
from ddae_jax.jobs import devices
devices.start_devices(False, devices.Cluster(sys.argv[1], 2, int(sys.argv[2])))
print("together", flush=True)
time.sleep(120)
"""
    address = free_address()
    environment = tiny.environment() | {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, index],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in ("0", "1")
    ]
    for process in processes:
        assert any(line == "together\n" for line in process.stdout)
    processes[0].kill()
    _, log = processes[1].communicate(timeout=30)
    assert processes[1].returncode == 1, log
    assert "error: process 0 of this run, on " in log.splitlines()[-1]
    assert log.endswith("a run continues from its latest checkpoint\n")
    processes[0].communicate()


# One process cannot read the batch of step 9: there is an error, or nothing comes.
CANNOT_READ = """
import time
from ddae_jax.data.disks import ReadFailed
from ddae_jax.data.train_loader import TrainLoader
read = TrainLoader.next_unless
def fail(self, is_over):
    if index == {index} and self.step == 9:
        if {hangs}:
            while not is_over():
                time.sleep(0.1)
            return None
        raise ReadFailed("a.png cannot be read")
    return read(self, is_over)
TrainLoader.next_unless = fail
"""


@pytest.mark.parametrize("index", [0, 1])
def test_where_one_process_cannot_read_on_both_save_the_last_finished_step(
    shallow, tmp_path, index
):
    workdir = tmp_path / "run"
    options = [f"--config={shallow}", f"--workdir={workdir}", *STOPPED]
    options.append("--config.checkpoint.every_epochs=100")
    processes = start(*options, patch=CANNOT_READ.format(index=index, hangs=False))
    _, logs = finish(processes, status=1)
    assert logs[index].endswith("error: a.png cannot be read\n")
    assert "no batch can be read after step 9, which is saved" in logs[index]
    assert "error: another process of this run cannot read on" in logs[1 - index]
    assert saved_steps(workdir) == [9]
    position = json.loads((workdir / "checkpoints/9/data/metadata").read_text())
    assert position["step"] == 9


def test_a_stop_of_all_saves_though_one_process_waits_for_a_batch_that_never_comes(
    shallow, tmp_path
):
    workdir = tmp_path / "run"
    options = [f"--config={shallow}", f"--workdir={workdir}", *STOPPED]
    options += ["--config.checkpoint.every_epochs=100", "--config.log.every_steps=1"]
    processes = start(*options, patch=CANNOT_READ.format(index=1, hangs=True))
    wait_for_step(workdir, 6, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    finish(processes)
    assert saved_steps(workdir) == [9]


def test_a_stop_ends_both_though_what_one_measures_never_ends(shallow, tmp_path):
    patch = """
import time
from ddae_jax.hooks.pretraining import PretrainingReport
from ddae_jax.training import signals
signals._TOGETHER_S = 2.0
def hang(self):
    print("measuring", flush=True)
    while index == 1:
        time.sleep(0.1)
    return {}
PretrainingReport.baselines = hang
"""
    options = [f"--config={shallow}", f"--workdir={tmp_path / 'run'}", *STOPPED]
    processes = start(*options, patch=patch)
    for process in processes:
        assert any(line == "measuring\n" for line in process.stdout)
    time.sleep(1)
    began = time.monotonic()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    _, logs = finish(processes, status=1)
    assert time.monotonic() - began < 30
    assert "SIGTERM: what is going on has not ended for 2 s" in logs[1]


def test_an_error_in_one_process_ends_both_and_is_told(shallow, tmp_path):
    patch = """
from ddae_jax.training.metrics import MetricsWriter
write = MetricsWriter.write
def fail(self, step, metrics):
    write(self, step, metrics)
    if step >= 6:
        raise OSError(28, "No space left on device")
MetricsWriter.write = fail
"""
    options = [f"--config={shallow}", f"--workdir={tmp_path / 'run'}", *STOPPED]
    processes = start(*options, patch=patch)
    logs = [process.communicate(timeout=150)[1] for process in processes]
    assert all(process.returncode for process in processes)
    assert "No space left on device" in logs[0]


def test_processes_that_were_started_differently_do_not_start_together(config, tmp_path):
    differently = (["--config.seed=1"], ["--config.seed=2"])
    processes = start(f"--config={config}", f"--workdir={tmp_path}", of_process=differently)
    logs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], logs
    for log in logs:
        assert "error: the processes of this run were not started alike" in log
        assert "seed: 1 in process 0, 2 in process 1" in log


def test_workdirs_that_are_not_the_same_folder_are_refused(config, tmp_path):
    patch = """
from ddae_jax.training.workdir import Workdir
Workdir.check_is_shared.__defaults__ = (0.5,)
"""
    places = ([f"--workdir={tmp_path / 'one'}"], [f"--workdir={tmp_path / 'other'}"])
    processes = start(f"--config={config}", of_process=places, patch=patch)
    logs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], logs
    assert f"{tmp_path / 'other'} is not the folder that the first process" in logs[1]


def test_a_stop_of_one_process_while_they_prepare_stops_both(shallow, tmp_path):
    patch = """
import signal
from ddae_jax import pretrain
make = pretrain.build_source
def stopped(*arguments):
    if index == 1:
        signal.raise_signal(signal.SIGTERM)
    return make(*arguments)
pretrain.build_source = stopped
"""
    workdir = tmp_path / "run"
    options = [f"--config={shallow}", f"--workdir={workdir}", *STOPPED]
    finish(start(*options, patch=patch))
    assert saved_steps(workdir)[-1] <= 8


def test_where_one_process_cannot_start_the_other_ends_too_and_each_says_why(config, tmp_path):
    options = [f"--config={config}", "--config.data.source=folder", "--config.data.channels=1"]
    images = tmp_path / "images"
    images.mkdir()
    for number in range(16):
        tiny.write_image(images / f"{number}.png")
    data = ([f"--config.data.data_dir={images}"], ["--config.data.data_dir=/no/such"])
    processes = start(*options, f"--workdir={tmp_path / 'run'}", of_process=data)
    logs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], logs
    assert "error: another process of this run could not start" in logs[0]
    assert "error: no folder /no/such" in logs[1]
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.xdist_group("undisturbed pair")
def test_a_tokenizer_learns_from_two_processes_what_it_learns_from_one(undisturbed, tmp_path):
    workdir, options = undisturbed
    options = [*options, "--config.method=vqkd", "--config.model.encoder_input=full"]
    options += ["--config.epochs=0.18"]
    options += [f"--config.tokenizer.teacher={workdir}", "--config.tokenizer.num_codes=12"]
    finish(start(*options, f"--workdir={tmp_path / 'two'}"))
    one = tiny.run("pretrain", *options, f"--workdir={tmp_path / 'one'}", num_devices=4)
    assert one.returncode == 0, one.stderr
    many, alone = (
        [r for r in tiny.records(tmp_path / name) if "loss" in r] for name in ("two", "one")
    )
    assert [r["step"] for r in many] == [r["step"] for r in alone] == [2, 4]
    for of_two, of_one in zip(many, alone, strict=True):
        for name in ("loss", "loss/commitment", "codebook/perplexity", "codebook/used"):
            np.testing.assert_allclose(of_two[name], of_one[name], rtol=1e-3, err_msg=name)
