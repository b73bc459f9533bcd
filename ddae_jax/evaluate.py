"""Evaluates a run: its frozen features, its attention, or what a fine-tuned network reaches.

    python -m ddae_jax.evaluate --workdir=runs/digits --task=knn
    python -m ddae_jax.evaluate --workdir=runs/digits --task=linear --encoder=teacher --depth=4
    python -m ddae_jax.evaluate --workdir=runs/ddae --task=attention_distance --compare=runs/mae
    python -m ddae_jax.evaluate --workdir=runs/finetuned --task=classification

Everything but the workdir is known from its config and checkpoints. The last line printed is one
JSON object. Tasks for runs of ddae_jax.pretrain:

    knn, linear         accuracy on the features, of the untrained network, and of raw pixels
    few_shot            accuracy of a linear probe on 1 and on 10 labelled images of each class
    depths              knn and linear after every block, with a figure
    attention_distance  how far each head reaches, and what stays near, with a figure
    embed               the features themselves, with names and labels, to a file

Of ddae_jax.finetune: classification, its accuracy on the test split, with a figure. Of
ddae_jax.segment: segmentation, its mean IoU. Figures go to WORKDIR/figures/.
"""

import json
from collections.abc import Sequence

import jax
from absl import flags as absl_flags

from ddae_jax.config.keys import ALL_KEYS
from ddae_jax.evaluators import TASKS, check_options
from ddae_jax.jobs import cli, devices, exits
from ddae_jax.suggestions import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with exits.explain_bad_input():
        flags = cli.parse_flags(argv, "ddae_jax.evaluate " + __doc__, _define_flags)
        check_options(flags)
        devices.start_devices(flags.distributed)
        table, result = TASKS[flags.task](flags)
    if jax.process_index() == 0:
        print(printable(table))
        print(json.dumps(result))
    return 0


def _define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind: str, name: str, default, *arguments) -> None:
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, *arguments, flag_values=flags)

    define("string", "workdir", None, "Folder of the run.")
    define("enum", "task", None, list(TASKS), "What to evaluate.")
    cli.require("workdir", "FOLDER", flags)
    cli.require("task", "|".join(TASKS), flags)

    def of_the_run(kind: str, name: str, *arguments) -> None:
        *others, text = arguments
        define(kind, name, None, *others, f"{text} (default: evaluation.{name} of the run)")

    others = "Other runs' folders, by commas; FOLDER@STEP for a checkpoint before the latest"
    define("list", "compare", [], f"{others}, also of the same run (attention_distance).")
    of_the_run("enum", "encoder", ("student", "teacher"), "Whose features or attention.")
    of_the_run("integer", "depth", "Block to read after; 0 for the last.")
    pools = ALL_KEYS["evaluation.pool"].words
    of_the_run("enum", "pool", pools, "Mean of normed patches, class token, or normed mean.")
    define("integer", "step", None, "Of --workdir's checkpoint; the latest by default.")
    of_the_run("integer", "k", "Neighbours that vote (knn).")
    of_the_run("float", "temperature", "Of their votes; 0 for equal ones (knn).")
    of_the_run("integer", "batch_size", "Images encoded at a time.")
    whose = "Of the computation (default: model.dtype of the run)."
    define("enum", "dtype", None, ALL_KEYS["model.dtype"].words, whose)
    define("integer", "limit", 0, "At most so many images of each set, spread evenly; 0 for all.")
    define("string", "out", None, "File that features are written to: .npz or .parquet (embed).")
    define("string", "images", None, "Folder of images, instead of the run's data (embed).")
    define("string", "split", None, "Of the run's data; its test split by default (embed, ...).")
    define("list", "scales", [], "Of the image, by commas; results are averaged (segmentation).")
    define("bool", "flip", False, "Average results of the mirror image in (segmentation).")
    define("string", "data_dir", None, "Where the data is now, if it has moved.")
    define("bool", "distributed", False, "One of several processes: join the others first.")


if __name__ == "__main__":
    exits.run(main)
