"""Fine-tuning with few labels: a pretrained encoder against the same network from scratch.

    python -m benchmarks.few_labels PRETRAINED FOLDER DATA_DIR

PRETRAINED is the workdir of a run on CIFAR-10; FOLDER takes the fine-tuning runs. Both have the
same images (drawn by the seed), the same steps and the same recipe, but for the layer-wise decay of
the learning rate, which a network from scratch does without: it has no layers to spare. For either
the best of a few learning rates is taken, by the test accuracy of the first seed; the network from
scratch has more of them to choose from. Started again, it goes on where it stopped. Writes
benchmarks/results/few_labels.json after each run, and prints a table.
"""

import pathlib
import sys

from benchmarks.downstream import backbone, recorded, scores_of
from benchmarks.environment import spread, store

NAME = "few_labels"
SEEDS = (0, 1, 2)
EPOCHS = {0.01: 60, 0.1: 10}  # by share of the labels: 30,000 and 50,000 images
RATES = {"pretrained": (1e-3, 4e-3), "from scratch": (1e-3, 4e-3, 1.6e-2)}  # for 256 images
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
    runs = recorded(NAME)
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
            options = common | BEGINNINGS[beginning] | changes
            config = "configs/cifar10_finetune.py"
            runs[name] = scores_of("finetune", config, workdir, options)["top1"]
            store(NAME, {"backbone": backbone(pretrained), "options": OPTIONS, "runs": runs})
        return runs[name]

    table = {}
    for share in EPOCHS:
        for beginning in BEGINNINGS:
            rates = RATES[beginning]
            best = max(rates, key=lambda rate: top1(share, beginning, rate, SEEDS[0]))
            found = [top1(share, beginning, best, seed) for seed in SEEDS]
            table[f"{share:.0%}, {beginning}"] = {"learning_rate": best, **spread(found)}
    stored = {"backbone": backbone(pretrained), "epochs": EPOCHS, "options": OPTIONS}
    store(NAME, stored | {"table": table, "runs": runs})
    for name, row in table.items():
        print(f"{name:20s} {row}")


if __name__ == "__main__":
    main(*sys.argv[1:])
