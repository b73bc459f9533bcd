"""Measures what the quickstart shows: digits with few labels, after pretraining and from scratch.

    python -m benchmarks.quickstart FOLDER

Pretrains by configs/digits.py with three seeds; then fine-tunes with 5 labels a class and with 1
(configs/digits_finetune.py), from each of them and from scratch, where the layer-wise decay of the
learning rate is off. Both have the same images, steps and learning rates; of either, the rate
counts that is best on the average of the seeds. Started again, it goes on where it stopped. Writes
benchmarks/results/quickstart.json after each run, and prints a table.
"""

import functools
import pathlib
import subprocess
import sys
import time
from statistics import mean, stdev

from benchmarks.downstream import recorded, scores_of
from benchmarks.environment import store
from benchmarks.few_labels import BEGINNINGS
from ddae_jax.training.metrics import read_metrics
from ddae_jax.training.workdir import Workdir

NAME = "quickstart"
SEEDS = (0, 1, 2)
RATES = (1e-3, 4e-3, 1.6e-2)  # for 256 images
SHARES = {5: 0.035, 1: 0.007}  # of 1,442 training images, by labels a class


def main(folder: str) -> None:
    """Runs what has not been run, and stores and prints what all have come to."""
    runs = recorded(NAME)
    for seed in SEEDS:
        pretrained = pathlib.Path(folder).resolve() / f"pretrained_{seed}"
        keep(runs, f"pretrained, seed {seed}", functools.partial(pretrain, pretrained, seed))
        for labels, share in SHARES.items():
            for beginning, changes in BEGINNINGS.items():
                for rate in RATES:
                    options = {
                        "init_from": pretrained,
                        "seed": seed,
                        "data.labelled_share": share,
                        "optimizer.learning_rate": rate,
                        **changes,
                    }
                    name = f"{labels} labels, {beginning}, {rate:g}, seed {seed}"
                    keep(runs, name, functools.partial(finetune, folder, name, options))
    print("\n".join(table(runs)))


def keep(runs: dict, name: str, make) -> None:
    """Makes a result that there is not yet, and stores all."""
    if name not in runs:
        runs[name] = make()
        store(NAME, {"runs": runs})


def pretrain(workdir: pathlib.Path, seed: int) -> dict[str, float]:
    """Pretrains, and returns k-NN accuracies, of both baselines too, and the seconds it took."""
    command = [sys.executable, "-m", "ddae_jax.pretrain", "--config=configs/digits.py"]
    began = time.perf_counter()
    subprocess.run([*command, f"--workdir={workdir}", f"--config.seed={seed}"], check=True)
    seconds = time.perf_counter() - began
    found = {}
    for record in read_metrics(Workdir(workdir).metrics):
        found |= {key: value for key, value in record.items() if key.startswith("knn/")}
    return found | {"seconds": seconds}


def finetune(folder: str, name: str, options: dict) -> dict[str, float]:
    """Fine-tunes, and returns the share of test images that are right."""
    workdir = pathlib.Path(folder) / name.replace(" ", "_").replace(",", "")
    return {"top1": scores_of("finetune", "configs/digits_finetune.py", workdir, options)["top1"]}


def table(runs: dict[str, dict]) -> list[str]:
    """Makes a table in Markdown: means and standard deviations over seeds, in percent."""
    lines = ["| | mean | deviation | learning rate |", "|---|---|---|---|"]
    for measure in ("knn/trained", "knn/untrained", "knn/raw_pixels"):
        found = [runs[f"pretrained, seed {seed}"][measure] for seed in SEEDS]
        lines.append(f"| {measure} | {100 * mean(found):.1f} | {100 * stdev(found):.1f} | |")
    for labels in SHARES:
        for beginning in BEGINNINGS:
            of_rate = {
                rate: [
                    runs[f"{labels} labels, {beginning}, {rate:g}, seed {seed}"]["top1"]
                    for seed in SEEDS
                ]
                for rate in RATES
            }
            rate = max(RATES, key=lambda rate: mean(of_rate[rate]))
            shown = f"{100 * mean(of_rate[rate]):.1f} | {100 * stdev(of_rate[rate]):.1f}"
            lines.append(f"| {labels} labels a class, {beginning} | {shown} | {rate:g} |")
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:])
