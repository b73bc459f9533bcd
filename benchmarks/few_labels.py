"""Fine-tuning with few labels: a pretrained encoder against the same network from scratch.

    python -m benchmarks.few_labels PRETRAINED FOLDER DATA_DIR

PRETRAINED is the workdir of a run on CIFAR-10; FOLDER takes the fine-tuning runs. Both have the
same images (drawn by the seed), the same steps and the same recipe, but for the layer-wise decay of
the learning rate, which a network from scratch does without: it has no layers to spare. For either
the better of two learning rates is taken, as the first seed has it. Started again, it goes on where
it stopped. Writes benchmarks/results/few_labels.json after each run, and prints a table.
"""

import json
import pathlib
import subprocess
import sys

from benchmarks.environment import RESULTS, spread, store
from ddae_jax.training.workdir import Workdir, read_json

NAME = "few_labels"
SEEDS = (0, 1, 2)
EPOCHS = {0.01: 60, 0.1: 10}  # by share of the labels: 30,000 and 50,000 images
RATES = (1e-3, 4e-3)  # for 256 images
OPTIONS = {
    "batch_size": 64,
    "model.drop_path_rate": 0.0,
    "augment.rand_augment": False,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "evaluation.every_epochs": 0,
    "checkpoint.every_epochs": 1000,
    "log.tensorboard": False,
}
BEGINNINGS = {
    "pretrained": {"optimizer.layer_decay": 0.75},
    "from scratch": {"from_scratch": True, "optimizer.layer_decay": 1.0},
}


def main(pretrained: str, folder: str, data_dir: str) -> None:
    """Runs what has not been run, and stores and prints what all have come to."""
    path = RESULTS / f"{NAME}.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else {}
    common = OPTIONS | {"init_from": pretrained, "data.data_dir": data_dir}

    def top1(share: float, beginning: str, rate: float, seed: int) -> float:
        name = f"{share:g}, {beginning}, {rate:g}, seed {seed}"
        if name not in runs:
            changes = {
                "data.labelled_share": share,
                "epochs": EPOCHS[share],
                "optimizer.warmup_epochs": 0.1 * EPOCHS[share],
                "optimizer.learning_rate": rate,
                "seed": seed,
            }
            workdir = pathlib.Path(folder) / name.replace(" ", "_")
            finetune(workdir, common | BEGINNINGS[beginning] | changes)
            runs[name] = read_json(Workdir(workdir).scores)["top1"]
            store(NAME, {"backbone": backbone(pretrained), "options": OPTIONS, "runs": runs})
        return runs[name]

    table = {}
    for share in EPOCHS:
        for beginning in BEGINNINGS:
            best = max(RATES, key=lambda rate: top1(share, beginning, rate, SEEDS[0]))
            found = [top1(share, beginning, best, seed) for seed in SEEDS]
            table[f"{share:.0%}, {beginning}"] = {"learning_rate": best, **spread(found)}
    stored = {"backbone": backbone(pretrained), "epochs": EPOCHS, "options": OPTIONS}
    store(NAME, stored | {"table": table, "runs": runs})
    for name, row in table.items():
        print(f"{name:20s} {row}")


def finetune(workdir: pathlib.Path, options: dict) -> None:
    """One run of configs/cifar10_finetune.py."""
    command = [sys.executable, "-m", "ddae_jax.finetune", f"--workdir={workdir}"]
    command += ["--config=configs/cifar10_finetune.py"]
    command += [f"--config.{key}={value}" for key, value in options.items()]
    subprocess.run(command, check=True)


def backbone(workdir: str) -> dict:
    """What the encoder was pretrained by."""
    config = Workdir(workdir).read_config()
    told = {key: config[key] for key in ("method", "epochs", "batch_size", "seed")}
    return told | {"size": config["model"]["size"], "supervision": config["supervision"]["mode"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
