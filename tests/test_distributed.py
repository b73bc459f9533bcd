"""Two processes with two devices each, on loopback, are a cluster: the pod's path, made small."""

import socket
import subprocess
import sys

import numpy as np

import tiny

PROGRAM = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from ddae_jax import pretrain
sys.exit(pretrain.main(sys.argv[3:]))
"""


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_two_processes_train_as_one_does_and_write_everything_once(tmp_path):
    config = tiny.write_config(tmp_path)
    options = [f"--config={config}", "--config.epochs=0.5", "--config.log.figures_every_epochs=0.3"]
    watched = [f"--workdir={tmp_path / 'two'}", "--config.evaluation.knn_every_epochs=1"]
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index), *options, *watched],
            env=tiny.environment(num_devices=2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
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
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir())[-1] == "8"
    assert (tmp_path / "two" / "report.html").exists()
