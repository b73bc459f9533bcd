"""Every method under every supervision, on CIFAR-10, for equally many images: cost and accuracy.

    python -m benchmarks.method_grid FOLDER DATA_DIR [NUM_EPOCHS]

Each cell is a run of configs/cifar10.py with a small encoder, in a folder of its own; BEiT and
BEiT v2 predict the tokens of one tokenizer, which is distilled from the run ``ddae,deep_dynamic``.
One more run: MAE with fewer decoder blocks for intermediate depths.
Started again, it goes on where it stopped. Writes benchmarks/results/method_grid.json after each
run, and prints the table of docs/methods.md.
"""

import itertools
import json
import pathlib
import subprocess
import sys

from benchmarks.environment import RESULTS, spread, store
from ddae_jax.methods import METHODS
from ddae_jax.methods.supervision import MODES
from ddae_jax.training.metrics import read_metrics
from ddae_jax.training.workdir import Workdir

NAME = "method_grid"
OPTIONS = {
    "model.size": "nano",
    "model.dtype": "float32",
    "batch_size": 64,
    "optimizer.learning_rate": 4e-3,  # of 256 images
    "optimizer.warmup_epochs": 0.15,
    "teacher.half_life_start_epochs": 0.02,
    "teacher.half_life_epochs": 1.0,
    "log.every_steps": 50,
    "evaluation.knn_every_epochs": 0,
    "log.tensorboard": False,
    "checkpoint.every_epochs": 100,
}
DECODER = {"decoder.width": 64, "decoder.depth": 4, "decoder.num_heads": 2}
TOKENIZER = {"tokenizer.num_codes": 256}
LIMIT = 10_000  # images to evaluate on, of either set
VARIANTS = {
    "mae,deep_dynamic, 1 of 4 decoder blocks at intermediate depths": (
        "mae,deep_dynamic",
        {"decoder.intermediate_blocks": 1},
    ),
}


def main(folder: str, data_dir: str, num_epochs: str = "1.2") -> None:
    """Runs what has not been run, and stores and prints what all have come to."""
    folder = pathlib.Path(folder)
    common = OPTIONS | {"data.data_dir": data_dir, "epochs": num_epochs}
    teacher, tokenizer = folder / "ddae,deep_dynamic", folder / "tokenizer"
    results = read_results()
    order = sorted(map(",".join, itertools.product(METHODS, MODES)), key=needs_tokenizer)
    cells = {cell: (cell, {}) for cell in order} | VARIANTS
    for name, (cell, changes) in cells.items():
        if name in results:
            continue
        if needs_tokenizer(cell):
            changes = {"targets.tokenizer": tokenizer}
            if "tokenizer" not in results:
                options = common | TOKENIZER | {"tokenizer.teacher": teacher}
                pretrain("configs/cifar10_tokenizer.py", tokenizer, options)
                results["tokenizer"] = measured(tokenizer)
        if cell.startswith("mae"):
            changes = DECODER | changes
        workdir = folder / name.replace(" ", "_")
        pretrain(f"configs/cifar10.py:{cell}", workdir, common | changes)
        results[name] = measured(workdir) | evaluated(workdir)
        result = {"epochs": float(num_epochs), "options": OPTIONS | DECODER | TOKENIZER}
        store(NAME, result | {"examples": LIMIT, "cells": results})
    print(table(results))


def needs_tokenizer(cell: str) -> bool:
    """Whether a cell's method predicts tokens."""
    return cell.startswith("beit")


def read_results() -> dict:
    """Reads the stored results, by cell."""
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text())["cells"] if path.is_file() else {}


def pretrain(config: str, workdir: pathlib.Path, options: dict) -> None:
    """Runs pretraining to its end."""
    changes = [f"--config.{key}={value}" for key, value in options.items()]
    run("ddae_jax.pretrain", f"--config={config}", f"--workdir={workdir}", *changes)


def measured(workdir: pathlib.Path) -> dict:
    """Rate, memory and losses of a run."""
    records = read_metrics(Workdir(workdir).metrics)
    steady = [r["images_per_s"] for r in records if "images_per_s" in r][1:]  # after compilation
    last = records[-1]
    kept = ("beta/", "plain_loss/", "codebook/", "loss/features", "loss/commitment")
    return {
        "steps": last["step"],
        "images_per_s": spread(steady),
        "peak_host_gib": last["peak_host_gib"],
        "last": {key: value for key, value in last.items() if key.startswith(kept)},
    }


def evaluated(workdir: pathlib.Path) -> dict:
    """k-NN and linear-probe accuracy, and the untrained network's."""
    found = {}
    for task in ("knn", "linear"):
        arguments = (f"--workdir={workdir}", f"--task={task}", f"--limit={LIMIT}")
        result = json.loads(run("ddae_jax.evaluate", *arguments).splitlines()[-1])
        found[task] = {key: result[key] for key in ("accuracy", "untrained", "raw_pixels")}
    return found


def run(module: str, *arguments: str) -> str:
    """Runs a command and gives what it printed; its errors end this one."""
    command = [sys.executable, "-m", module, *arguments]
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def table(results: dict) -> str:
    """A row for each run, in Markdown."""
    lines = [
        "| method, supervision | k-NN | untrained | linear | untrained | images/s | x | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in results.items():
        if name == "tokenizer":
            continue
        rate = cell["images_per_s"]["median"]
        variant_of = VARIANTS[name][0] if name in VARIANTS else name
        last = results.get(f"{variant_of.split(',')[0]},last", cell)
        accuracies = [
            cell[task][key] for task in ("knn", "linear") for key in ("accuracy", "untrained")
        ]
        shown = " | ".join(f"{100 * value:.1f} %" for value in accuracies)
        lines.append(
            f"| {name} | {shown} | {rate:.0f} | {last['images_per_s']['median'] / rate:.2f}x | "
            f"{cell['peak_host_gib']:.1f} GiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
