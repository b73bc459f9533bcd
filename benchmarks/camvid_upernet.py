"""UperNet on CamVid: on an encoder pretrained on its training images, against one from scratch.

    python -m benchmarks.camvid_upernet PRETRAINED FOLDER CAMVID [SEED...]

PRETRAINED is the workdir of a run with patches of 8 pixels; FOLDER takes the segmentation runs.
Both have the same steps and the same recipe, but for the layer-wise decay of the learning rate,
which a network from scratch does without. Scores are those on the 101 validation images. Started
again, it goes on where it stopped. Writes benchmarks/results/camvid_upernet.json after each run,
and prints a table.
"""

import pathlib
import sys

from benchmarks.downstream import backbone, recorded, scores_of
from benchmarks.environment import spread, store

NAME = "camvid_upernet"
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


def main(pretrained: str, folder: str, data_dir: str, *seeds: str) -> None:
    """Runs what has not been run, and stores and prints what all have come to."""
    for seed in seeds or ("0", "1", "2"):
        for beginning, changes in BEGINNINGS.items():
            name = f"{beginning}, seed {seed}"
            if name in recorded(NAME):
                continue
            common = {"init_from": pretrained, "data.data_dir": data_dir, "seed": seed}
            workdir = pathlib.Path(folder) / name.replace(" ", "_")
            options = OPTIONS | common | changes
            scores = scores_of("segment", "configs/camvid_upernet.py", workdir, options)
            kept = {key: scores[key] for key in ("miou", "pixel_accuracy", "iou")}
            runs = recorded(NAME) | {name: kept}
            store(NAME, {"backbone": backbone(pretrained), "options": OPTIONS, "runs": runs})
    runs = recorded(NAME)
    table = {
        beginning: {
            score: spread([run[score] for name, run in runs.items() if name.startswith(beginning)])
            for score in ("miou", "pixel_accuracy")
        }
        for beginning in BEGINNINGS
    }
    stored = {"backbone": backbone(pretrained), "options": OPTIONS, "table": table, "runs": runs}
    store(NAME, stored)
    for beginning, row in table.items():
        print(f"{beginning:14s} {row}")


if __name__ == "__main__":
    main(*sys.argv[1:])
