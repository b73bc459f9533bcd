"""Stores what an evaluation of a run printed.

    python -m benchmarks.record_evaluation NAME --workdir=W --task=T [FLAGS of ddae_jax.evaluate]

Writes benchmarks/results/NAME.json: the JSON object that the task prints last, the flags, and what
the run was trained by, with the machine that it is called on.
"""

import json
import pathlib
import subprocess
import sys

from benchmarks.downstream import backbone
from benchmarks.environment import store


def main(name: str, *flags: str) -> None:
    """Evaluates, prints and stores."""
    command = [sys.executable, "-m", "ddae_jax.evaluate", *flags]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(printed)
    folders = [f.partition("=")[2] for f in flags if f.startswith(("--workdir=", "--compare="))]
    paths = [path for folder in folders for path in folder.split(",")]
    runs = {pathlib.PurePath(path).name: backbone(path.partition("@")[0]) for path in paths}
    options = [f for f in flags if not f.startswith(("--workdir=", "--compare=", "--data_dir="))]
    found = json.loads(printed.splitlines()[-1])
    print(store(name, {"flags": options, "runs": runs, "found": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
