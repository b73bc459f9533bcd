"""Which choices make DDAE learn: a screening of its options, for equally many images.

    python -m benchmarks.recipe_screening FOLDER DATA_DIR PART ...

A run pretrains a ViT-nano on CIFAR-10 and is judged by k-NN, linear probe and fine-tuning with
10 % of the labels, all on the same images. PARTs are named sets of runs (:data:`PARTS`). Started
again, or in several processes at once, it does what nobody has begun; what was cut off goes on
where it stopped after its ``claimed`` file is removed. Results lie in FOLDER/RUN/result.json;
``python -m benchmarks.recipe_screening FOLDER`` gathers them into
benchmarks/results/recipe_screening.json and prints the tables of docs/recipe.md.
"""

import json
import os
import pathlib
import statistics
import time

import jax

from ddae_jax import build, finetune, pretrain
from ddae_jax.config import from_plain
from ddae_jax.networks import untrained_encoder_params
from ddae_jax.pretrained import restore_encoder
from ddae_jax.training.logging import read_metrics
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir, read_json, write_json

NAME = "recipe_screening"
COMMON = {
    "model.size": "nano",
    "model.dtype": "float32",
    "batch_size": 64,
    "optimizer.learning_rate": 4e-3,  # of 256 images
    "optimizer.warmup_epochs": 0.15,
    "decoder.width": 64,
    "decoder.depth": 4,
    "decoder.num_heads": 2,
    "log.every_steps": 50,
    "log.tensorboard": False,
    "evaluation.knn_every_epochs": 0,
    "checkpoint.every_epochs": 0.4,
    "checkpoint.keep_last": 1,
}
FINETUNING = {
    "data.labelled_share": 0.1,
    "epochs": 8.0,  # of 5,000 images
    "batch_size": 64,
    "optimizer.learning_rate": 4e-3,
    "optimizer.warmup_epochs": 0.8,
    "model.drop_path_rate": 0.0,
    "augment.rand_augment": False,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "evaluation.every_epochs": 0,
    "checkpoint.every_epochs": 1000,
    "log.tensorboard": False,
}
LIMIT = 10_000  # images to evaluate on, of either set
EPOCH = 50_000  # images


def measure(
    folder: pathlib.Path, data_dir: str, cell: str, images: int, options: dict, tune: bool = True
) -> dict:
    """Pretrains, or continues, in ``folder``, and judges what was learned."""
    common = COMMON | {"data.data_dir": data_dir, "epochs": images / EPOCH}
    began = time.perf_counter()
    run(pretrain, folder, f"configs/cifar10.py:{cell}", common | options)
    seconds = time.perf_counter() - began
    records = read_metrics(Workdir(folder).metrics)
    kept = ("beta/", "plain_loss", "loss/visible", "rank/", "deviation/", "position_share/")
    result = {
        "images_per_s": statistics.median(r["images_per_s"] for r in records if "loss" in r),
        "seconds": seconds,
        "last": {key: value for key, value in records[-1].items() if key.startswith(kept)},
        **frozen_accuracy(folder),
    }
    if tune:
        tuned = folder.parent / "finetuned"
        changes = FINETUNING | {"init_from": folder, "data.data_dir": data_dir}
        changes |= {"seed": options.get("seed", 0)}
        run(finetune, tuned, "configs/cifar10_finetune.py", changes)
        result["finetuned"] = read_json(Workdir(tuned).scores)["top1"]
    return result


def frozen_accuracy(folder: pathlib.Path, is_trained: bool = True) -> dict[str, float]:
    """k-NN and linear-probe accuracy of a run's features, or of its network before training."""
    workdir = Workdir(folder)
    config = from_plain(workdir.read_config(), workdir.config)
    mesh = make_mesh()
    images = build.build_labelled_images(config, mesh, limit=LIMIT)
    encode = build.build_encode(config, mesh, depth=0, pool="mean")
    if is_trained:
        params, _, _ = restore_encoder(workdir, config, mesh)
    else:
        params = untrained_encoder_params(config)
    features = images.features(encode, params)
    return {
        task: images.accuracy(build.build_predict(config, task), *features)
        for task in ("knn", "linear")
    }


def run(job, workdir: pathlib.Path, config: str, options: dict) -> None:
    """Runs a command to its end, in this process, which keeps the decoded images."""
    changes = [f"--config.{key}={value}" for key, value in options.items()]
    finish(job.main([f"--config={config}", f"--workdir={workdir}", *changes]))
    jax.clear_caches()


def finish(status: int) -> None:
    if status:
        raise SystemExit(status)


def work(folder: pathlib.Path, data_dir: str, runs: dict, tune: bool = True) -> None:
    """Does those of the runs that nobody has begun."""
    for name, (cell, images, options) in runs.items():
        workdir = folder / name
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(folder / f"{name}.claimed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        result = measure(workdir / "run", data_dir, cell, images, options, tune)
        write_json(
            workdir / "result.json",
            {"cell": cell, "images": images, "options": options, **result},
        )
        print(name, json.dumps(result), flush=True)
