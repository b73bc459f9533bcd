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

PROGRAM = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from ddae_jax import evaluate, pretrain
from ddae_jax.models import vit
vit.SIZES["micro"] = vit.Size(16, 3, 2)  # as the config file of pretraining has it
job = {"pretrain": pretrain, "evaluate": evaluate}[sys.argv[3]]
sys.exit(job.main(sys.argv[4:]))
"""


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def start(job, *options, of_process=((), ())):
    """Two processes of a job; ``of_process`` are further options for each of them."""
    address = free_address()
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index), job, *options, *own],
            env=tiny.environment(num_devices=2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, own in enumerate(of_process)
    ]


def finish(processes):
    """What they printed, and what they logged; they end with status 0."""
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
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
    return tiny.write_config(tmp_path_factory.mktemp("config"))


def test_two_processes_train_as_one_does_and_write_everything_once(config, tmp_path):
    options = [f"--config={config}", "--config.epochs=0.5", "--config.log.figures_every_epochs=0.3"]
    watched = [f"--workdir={tmp_path / 'two'}", "--config.evaluation.knn_every_epochs=1"]
    finish(start("pretrain", *options, *watched))
    one = tiny.run("pretrain", *options, f"--workdir={tmp_path / 'one'}", num_devices=4)
    assert one.returncode == 0, one.stderr
    many, alone = (
        {r["step"]: r for r in tiny.records(tmp_path / name) if "loss" in r}
        for name in ("two", "one")
    )
    assert list(many) == list(alone)
    for step, record in alone.items():
        for name in ("loss", "gradient_norm", "beta/pixels/depth_3"):
            np.testing.assert_allclose(many[step][name], record[name], rtol=2e-5, err_msg=name)
    assert many[11]["knn/trained"] > 0.1
    assert saved_steps(tmp_path / "two")[-1] == 11
    assert (tmp_path / "two" / "report.html").exists()
    # What only the first process can read must not decide for it alone what all of them compute.
    shutil.copytree(tmp_path / "two", tmp_path / "copy")
    places = ([f"--workdir={tmp_path / 'two'}"], [f"--workdir={tmp_path / 'copy'}"])
    first, second = (
        finish(start("evaluate", "--task=knn", "--limit=200", of_process=places))[0]
        for _ in range(2)
    )
    assert first[0] == second[0]
    assert json.loads(first[0][-1])["accuracy"] > 0.1
    assert "".join(first[1]) == ""  # the other process computes, and says nothing


@pytest.mark.parametrize("which", [0, 1])
def test_a_stop_of_one_of_two_processes_stops_and_saves_both_at_the_same_step(
    which, config, tmp_path
):
    workdir = tmp_path / "run"
    options = [f"--config={config}", f"--workdir={workdir}", "--config.epochs=40"]
    processes = start("pretrain", *options)
    wait_for_step(workdir, 6, processes)
    processes[which].send_signal(signal.SIGTERM)
    finish(processes)
    last = tiny.records(workdir)[-1]["step"]
    assert 6 <= last < 880
    assert saved_steps(workdir)[-1] == last
    processes = start("pretrain", *options)
    wait_for_step(workdir, last + 2, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    _, logs = finish(processes)
    assert f"continuing from the checkpoint of step {last}" in logs[0]
    assert saved_steps(workdir)[-1] == tiny.records(workdir)[-1]["step"] > last


def test_where_one_process_cannot_start_the_other_ends_too_and_each_says_why(config, tmp_path):
    options = [f"--config={config}", "--config.data.source=folder", "--config.data.channels=1"]
    images = tmp_path / "images"
    images.mkdir()
    tiny.write_image(images / "one.png")
    data = ([f"--config.data.data_dir={images}"], ["--config.data.data_dir=/no/such"])
    processes = start("pretrain", *options, f"--workdir={tmp_path / 'run'}", of_process=data)
    logs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], logs
    assert "error: another process of this run could not start" in logs[0]
    assert "error: no folder /no/such" in logs[1]
    assert not (tmp_path / "run" / "config.json").exists()
