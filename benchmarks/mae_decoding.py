"""MAE with a deep, narrow decoder: what decoding intermediate depths costs, and what it gives.

    python -m benchmarks.mae_decoding FOLDER DATA_DIR [NUM_EPOCHS]

The decoder of the grid (benchmarks/method_grid.py) has four blocks as wide as the encoder's; MAE's
own has eight, narrower ones, of which one is enough for intermediate depths. Here the small encoder
of the grid has such a decoder: accuracy of two runs on CIFAR-10, as the grid has them, and
seconds of their steps, in turn. Started again, it goes on where it stopped. Writes
benchmarks/results/mae_decoding.json and prints a table.
"""

import json
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.environment import RESULTS, store, time_in_turn
from benchmarks.method_grid import LIMIT, OPTIONS, evaluated, measured, pretrain
from ddae_jax import build, job
from ddae_jax import pretrain as pretraining
from ddae_jax.command import load_config
from ddae_jax.training.sharding import make_mesh, put_batch
from ddae_jax.training.step import jit_train_step

NAME = "mae_decoding"
DECODER = {"decoder.width": 32, "decoder.depth": 8, "decoder.num_heads": 2}
CELLS = {
    "mae,last": ("mae,last", {}),
    "mae,deep_dynamic, 1 of 8 decoder blocks at intermediate depths": (
        "mae,deep_dynamic",
        {"decoder.intermediate_blocks": 1},
    ),
}
REPEATS = 15


def main(folder: str, data_dir: str, num_epochs: str = "1.2") -> None:
    """Runs what has not been run, times steps, stores and prints."""
    path = RESULTS / f"{NAME}.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else {}
    told = {"epochs": float(num_epochs), "options": OPTIONS | DECODER, "examples": LIMIT}
    for name, (cell, changes) in CELLS.items():
        if name in runs:
            continue
        workdir = pathlib.Path(folder) / name.replace(" ", "_")
        options = OPTIONS | DECODER | changes | {"data.data_dir": data_dir, "epochs": num_epochs}
        pretrain(f"configs/cifar10.py:{cell}", workdir, options)
        runs[name] = measured(workdir) | evaluated(workdir)
        store(NAME, told | {"runs": runs})
    seconds = time_in_turn({name: runnable(*CELLS[name]) for name in CELLS}, REPEATS)
    store(NAME, told | {"runs": runs, "seconds_of_a_step": seconds})
    for name, run in runs.items():
        ratio = seconds[name]["median"] / seconds["mae,last"]["median"]
        knn, linear = (run[task]["accuracy"] for task in ("knn", "linear"))
        print(f"{name:65s} {ratio:.2f}x  k-NN {knn:.1%}  linear {linear:.1%}")


def runnable(cell: str, changes: dict) -> Callable[[], None]:
    """Takes a step and waits for it."""
    config = load_config(f"configs/cifar10.py:{cell}")
    for key, value in (OPTIONS | DECODER | changes).items():
        config.update_from_flattened_dict({key: value})
    mesh = make_mesh()
    data = job.Data(image_size=tuple(config.model.image_size))
    program = pretraining.build_program(config, build.Schedule(100, 1000), data)
    held = {"state": program.fresh_state(mesh)}
    step = jit_train_step(program.step(), mesh, held["state"])
    rng = np.random.default_rng(0)
    shapes = pretraining.batch_shapes(config, data)
    batch = {name: rng.integers(0, 256, s.shape).astype(s.dtype) for name, s in shapes.items()}
    batch = put_batch(batch, mesh)

    def run() -> None:
        held["state"], metrics = step(held["state"], batch)
        jax.block_until_ready(metrics)

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
