"""UperNet on CamVid: on an encoder pretrained on its training images, against one from scratch.

    python -m benchmarks.camvid_upernet PRETRAINED FOLDER CAMVID

PRETRAINED is the workdir of a run with patches of 8 pixels; FOLDER takes the segmentation runs.
Both have the same steps and the same recipe, but for the layer-wise decay of the learning rate,
which a network from scratch does without. The learning rate of either is the best of a few for one
seed, by the validation images; the seeds that are told are others. Scores are those on the 101
validation images. Started again, it goes on where it stopped. Writes
benchmarks/results/camvid_upernet.json after each run, and prints a table.
"""

import pathlib
import sys

from benchmarks.downstream import backbone, recorded, scores_of
from benchmarks.environment import spread, store

NAME = "camvid_upernet"
CHOOSING_SEED, SEEDS = 0, (1, 2)
RATES = (2e-2, 6e-2)  # for 256 images; a batch has 8
OPTIONS = {
    "epochs": 10,
    "head.width": 32,
    "model.drop_path_rate": 0.0,
    "optimizer.warmup_epochs": 1,
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
    told = {"backbone": backbone(pretrained), "options": OPTIONS, "choosing_seed": CHOOSING_SEED}

    def scores(beginning: str, rate: float, seed: int) -> dict:
        name = f"{beginning}, {rate:g}, seed {seed}"
        if name not in runs:
            changes = {
                "init_from": pretrained,
                "data.data_dir": data_dir,
                "optimizer.learning_rate": rate,
                "seed": seed,
            }
            workdir = pathlib.Path(folder) / name.replace(" ", "_")
            options = OPTIONS | BEGINNINGS[beginning] | changes
            found = scores_of("segment", "configs/camvid_upernet.py", workdir, options)
            runs[name] = {key: found[key] for key in ("miou", "pixel_accuracy", "iou")}
            store(NAME, told | {"runs": runs})
        return runs[name]

    table = {}
    for beginning in BEGINNINGS:
        best = max(RATES, key=lambda rate: scores(beginning, rate, CHOOSING_SEED)["miou"])
        found = [scores(beginning, best, seed) for seed in SEEDS]
        table[beginning] = {"learning_rate": best} | {
            score: spread([each[score] for each in found]) for score in ("miou", "pixel_accuracy")
        }
    store(NAME, told | {"table": table, "runs": runs})
    for beginning, row in table.items():
        print(f"{beginning:14s} {row}")


if __name__ == "__main__":
    main(*sys.argv[1:])
