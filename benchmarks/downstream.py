"""What studies of pretrained encoders share: runs of what comes after, and where they began."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping

from benchmarks.environment import RESULTS
from ddae_jax.training.workdir import Workdir, read_json


def scores_of(job: str, config: str, workdir: pathlib.Path, options: Mapping) -> dict:
    """Starts or continues a run of ``ddae_jax.JOB``, and returns its scores."""
    command = [sys.executable, "-m", f"ddae_jax.{job}", f"--workdir={workdir}"]
    command += [f"--config={config}"]
    command += [f"--config.{key}={value}" for key, value in options.items()]
    subprocess.run(command, check=True)
    return read_json(Workdir(workdir).scores)


def backbone(workdir: str) -> dict:
    """Returns the method, length and data of an encoder's pretraining."""
    config = Workdir(workdir).read_config()
    told = {key: config[key] for key in ("method", "epochs", "batch_size", "seed")}
    data = pathlib.PurePath(config["data"]["data_dir"])
    return told | {
        "size": config["model"]["size"],
        "supervision": config["supervision"]["mode"],
        "data": config["data"]["name"] or "/".join(data.parts[-3:]),
    }


def recorded(name: str) -> dict:
    """The runs that ``results/NAME.json`` has already."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["runs"] if path.is_file() else {}
