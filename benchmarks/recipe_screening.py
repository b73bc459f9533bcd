"""Which choices make DDAE learn: a screening of its options, for equally many images.

    python -m benchmarks.recipe_screening FOLDER DATA_DIR PART [PART ...]

A run pretrains a ViT-nano on CIFAR-10 and is judged by k-NN, by a linear probe and by fine-tuning
with 10 % of the labels, all on the same images. The parts:

    factorial   16 runs over 15 two-level choices (a saturated design of resolution III: a main
                effect is confounded with products of two others), two seeds
    singles     one change from the reference each, for choices of more levels, two seeds
    mae         MAE, tuned likewise: learning rates, masks and decoders, two seeds
    final       DDAE's defaults and MAE as published, with a ViT-micro and 200,000 images, three
                seeds, fine-tuned at the best of three learning rates each; with k-NN accuracy on
                the way

Started again, or in several processes at once (one a core is fastest), it does what no other
process is doing; a run that was stopped goes on where it was. Results that are stored already are
not made again. Each run's result is stored in benchmarks/results/recipe_screening.json as it is
found; with no part named, the tables of docs/recipe.md are printed.
"""

import contextlib
import fcntl
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from benchmarks import few_labels
from benchmarks.downstream import recorded
from benchmarks.environment import RESULTS, store
from ddae_jax import finetune, pretrain
from ddae_jax.builders.evaluation import build_encode, build_labelled_images, build_predict
from ddae_jax.builders.networks import untrained_encoder_params
from ddae_jax.builders.restore import restore_encoder
from ddae_jax.config import from_plain
from ddae_jax.training.metrics import read_metrics
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir, read_json

NAME = "recipe_screening"
COMMON = {
    "model.size": "nano",
    "model.dtype": "float32",
    "batch_size": 64,
    "optimizer.learning_rate": 1.6e-2,  # of 256 images
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
FINETUNING = few_labels.OPTIONS | {
    "data.labelled_share": 0.1,
    "epochs": 8.0,  # of 5,000 images
    "optimizer.warmup_epochs": 0.8,
}
LIMIT = 10_000  # images to evaluate on, of either set
EPOCH = 50_000  # images
SHORT, LONG = 60_000, 200_000  # images of a run
RATES = (1.6e-2, 3.2e-2, 6.4e-2)  # of fine-tuning; the first one alone but for the final runs
WATCHED = {"evaluation.knn_every_epochs": 0.4, "evaluation.max_examples": 2_000}
SEEDS = (0, 1, 2)
MEASURES = ("knn", "linear", f"finetuned_{RATES[0]:g}")

Run = tuple[str, int, dict]
"""Method and supervision, images, and changes of keys."""

REFERENCE = {
    "decoder.depth": 2,
    "teacher.half_life_epochs": 10.0,
    "teacher.half_life_start_epochs": 0.1,
}
"""DDAE's defaults, but for what the length of a run and the size of the network ask for.

That is a decoder of two blocks, whose width :data:`COMMON` has, and a teacher whose half-lives are
as long beside a run of 4 epochs as the defaults' are beside one of 100.
"""

FACTORS: dict[str, tuple[str, dict]] = {
    "kind": ("`decoder.kind=self`", {"decoder.kind": "self"}),
    "share": ("`decoder.intermediate_share=0.25`", {"decoder.intermediate_share": 0.25}),
    "shared": ("a decoder for each depth", {"decoder.is_shared": False}),
    "norm": ("intermediate depths without the norm", {"supervision.normalize_intermediate": False}),
    "normalization": (
        "`targets.feature_normalization=layer`",
        {"targets.feature_normalization": "layer"},
    ),
    "weight": ("`targets.feature_weight=0.3`", {"targets.feature_weight": 0.3}),
    "start": (
        "features rise from the first step",
        {"targets.feature_start": 0.0},
    ),
    "fade": ("`targets.pixel_fade=1`", {"targets.pixel_fade": 1.0}),
    "pace": (
        "a fast teacher (half-life 0.1 epochs throughout)",
        {"teacher.half_life_epochs": 0.1},
    ),
    "places": ("`targets.feature_places=both`", {"targets.feature_places": "both"}),
    "depth_weights": (
        "depth weights 0.25, 0.5, 0.75, 1",
        {"supervision.depth_weights": "0.25,0.5,0.75,1"},
    ),
    "beta": (
        "beta from -1 to the far side within half the run (`beta_step=4`)",
        {"supervision.beta_init": -1.0, "supervision.beta_step": 4.0},
    ),
    "mask": ("blocks instead of random patches, 75 %", {"mask.kind": "block"}),
    "rate": ("`optimizer.learning_rate=8e-3`", {"optimizer.learning_rate": 8e-3}),
    "depth": ("4 decoder blocks", {"decoder.depth": 4}),
}
"""Of each choice, what its second level is called and changes in the reference."""

SINGLES: dict[str, tuple[str, dict]] = {
    "full": ("ddae,deep_dynamic", {"model.encoder_input": "full"}),
    "last": ("ddae,last", {}),
    "deep": ("ddae,deep", {}),
    "no_features": ("ddae,deep_dynamic", {"targets.feature_weight": 0.0}),
    "batch": ("ddae,deep_dynamic", {"targets.feature_normalization": "batch"}),
    "instance": ("ddae,deep_dynamic", {"targets.feature_normalization": "instance"}),
    "normalized_predictions": ("ddae,deep_dynamic", {"targets.normalize_predictions": True}),
    "visible_places": ("ddae,deep_dynamic", {"targets.feature_places": "visible"}),
    "random_90": ("ddae,deep_dynamic", {"mask.ratio": 0.9}),
    "copy": ("ddae,deep_dynamic", {"teacher.copy_every_epochs": 0.1}),
    "neighbourhood": ("ddae,deep_dynamic", {"supervision.weighting": "neighbourhood"}),
    "lr_4e-3": ("ddae,deep_dynamic", {"optimizer.learning_rate": 4e-3}),
    "beta_step_1": ("ddae,deep_dynamic", {"supervision.beta_step": 1.0}),
    "absolute_beta": (
        "ddae,deep_dynamic",
        {"supervision.beta_gradient": "absolute", "supervision.beta_step": 5.0},
    ),
}

MAE: dict[str, dict] = {
    "published": {},
    "lr_4e-3": {"optimizer.learning_rate": 4e-3},
    "lr_8e-3": {"optimizer.learning_rate": 8e-3},
    "lr_3.2e-2": {"optimizer.learning_rate": 3.2e-2},
    "random_65": {"mask.ratio": 0.65},
    "random_90": {"mask.ratio": 0.9},
    "block_75": {"mask.kind": "block"},
    "decoder_2": {"decoder.depth": 2},
    "cross_2": {"decoder.kind": "cross", "decoder.depth": 2},
}

MICRO = {
    "model.size": "micro",
    "decoder.width": 96,
    "decoder.num_heads": 3,
    "optimizer.learning_rate": 1.2e-2,
}
"""A wider network: a ViT-nano's linear probe gains nothing in the second half of a long run."""

FINAL: dict[str, tuple[str, dict]] = {
    "mae": ("mae,last", MICRO),
    "ddae": ("ddae,deep_dynamic", REFERENCE | MICRO),
}


def measure(
    folder: pathlib.Path,
    data_dir: str,
    cell: str,
    images: int,
    options: dict,
    rates: Sequence[float] = RATES[:1],
) -> dict:
    """Pretrains, or continues, in ``folder``, and judges what was learned.

    ``rates`` are the learning rates that it is fine-tuned at.
    """
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
    on_the_way = [(r["epoch"], r["knn/trained"]) for r in records if "knn/trained" in r]
    if on_the_way:
        untrained = max(record.get("knn/untrained", 0.0) for record in records)
        result["knn_on_the_way"] = {"untrained": untrained, "by_epoch": on_the_way}
    common = FINETUNING | {"init_from": folder, "data.data_dir": data_dir}
    common |= {"seed": options.get("seed", 0)}
    for rate in rates:
        tuned = folder.parent / f"finetuned_{rate:g}"
        changes = common | {"optimizer.learning_rate": rate}
        run(finetune, tuned, "configs/cifar10_finetune.py", changes)
        result[tuned.name] = read_json(Workdir(tuned).scores)["top1"]
    return result


def frozen_accuracy(folder: pathlib.Path, is_trained: bool = True) -> dict[str, float]:
    """k-NN and linear-probe accuracy of a run's features, or of its network before training."""
    workdir = Workdir(folder)
    config = from_plain(workdir.read_config(), workdir.config)
    mesh = make_mesh()
    images = build_labelled_images(config, mesh, limit=LIMIT)
    encode = build_encode(config, mesh, depth=0, pool="mean")
    if is_trained:
        params, _, _ = restore_encoder(workdir, config, mesh)
    else:
        params = untrained_encoder_params(config)
    features = images.features(encode, params)
    return {
        task: images.accuracy(build_predict(config, task), *features) for task in ("knn", "linear")
    }


def run(job, workdir: pathlib.Path, config: str, options: dict) -> None:
    """Runs a command to its end, in this process, which keeps the decoded images."""
    changes = [f"--config.{key}={value}" for key, value in options.items()]
    finish(job.main([f"--config={config}", f"--workdir={workdir}", *changes]))
    jax.clear_caches()


def finish(status: int) -> None:
    if status:
        raise SystemExit(status)


@contextlib.contextmanager
def claimed(path: pathlib.Path) -> Iterator[bool]:
    """Tells whether this process alone has the run in the body; the lock ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def work(folder: pathlib.Path, data_dir: str, runs: dict[str, Run]) -> None:
    """Does those of the runs that nobody has begun, and stores what they come to."""
    for name, (cell, images, options) in runs.items():
        with claimed(folder / f"{name}.lock") as is_ours:
            if name in recorded(NAME) or not is_ours:
                continue
            rates = RATES if name.startswith("final") else RATES[:1]
            result = measure(folder / name / "run", data_dir, cell, images, options, rates)
            add(name, {"cell": cell, "images": images, "options": options, **result})
            print(name, json.dumps(result), flush=True)


def add(name: str, result: dict) -> None:
    """Adds a run's result to those stored; other processes may do so at the same time."""
    with open(RESULTS / f".{NAME}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fixed = {"common": COMMON, "fine-tuning": FINETUNING, "examples": LIMIT}
        store(NAME, fixed | {"runs": recorded(NAME) | {name: result}})


def factorial() -> dict[str, Run]:
    """The runs of the factorial part, by name."""
    runs = {}
    for row, signs in enumerate(DESIGN):
        options = dict(REFERENCE)
        for (_, high), sign in zip(FACTORS.values(), signs, strict=True):
            options |= high if sign > 0 else {}
        for seed in SEEDS[:2]:
            name = f"factorial_{row:02d}_seed_{seed}"
            runs[name] = ("ddae,deep_dynamic", SHORT, options | {"seed": seed})
    return runs


def hadamard(order: int) -> np.ndarray:
    """Sylvester's matrix of ones and minus ones, whose columns are orthogonal."""
    matrix = np.ones((1, 1), int)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def repeated(name: str, cell: str, images: int, options: dict, seeds: Sequence[int]) -> dict:
    """A run for each seed, by name."""
    return {f"{name}_seed_{seed}": (cell, images, options | {"seed": seed}) for seed in seeds}


def singles() -> dict[str, Run]:
    """The reference, and one change from it each."""
    runs = repeated("reference", "ddae,deep_dynamic", SHORT, REFERENCE, SEEDS[:2])
    for name, (cell, changes) in SINGLES.items():
        runs |= repeated(f"single_{name}", cell, SHORT, REFERENCE | changes, SEEDS[:2])
    return runs


def mae() -> dict[str, Run]:
    """MAE, as published but for what is named."""
    runs = {}
    for name, changes in MAE.items():
        runs |= repeated(f"mae_{name}", "mae,last", SHORT, changes, SEEDS[:2])
    return runs


def final() -> dict[str, Run]:
    """Lists the runs of MAE and DDAE that are compared: wider networks, trained for longer."""
    runs = {}
    for name, (cell, options) in FINAL.items():
        runs |= repeated(f"final_{name}", cell, LONG, options | WATCHED, SEEDS)
    return runs


DESIGN = hadamard(16)[:, 1:]
"""A row a run, a column a factor: -1 for the reference's level, 1 for the other."""

PARTS = {"factorial": factorial, "singles": singles, "mae": mae, "final": final}


def effects(runs: dict[str, dict]) -> dict[str, dict[str, tuple[float, float]]]:
    """By factor and measure: what the second level does, and the standard error of that.

    The error is from the differences of the two seeds of each row.
    """
    found = {}
    for measure in MEASURES:
        values = np.array(
            [
                [runs[f"factorial_{row:02d}_seed_{seed}"][measure] for seed in SEEDS[:2]]
                for row in range(len(DESIGN))
            ]
        )
        variance = np.square(np.diff(values, axis=1)).mean() / 2
        error = 2 * np.sqrt(variance / values.size)
        means = values.mean(axis=1)
        for index, name in enumerate(FACTORS):
            effect = 2 * (DESIGN[:, index] * means).mean()
            found.setdefault(name, {})[measure] = (float(effect), float(error))
    return found


def tables(runs: dict[str, dict]) -> str:
    """Returns the results in Markdown: main effects, then means over seeds.

    Where fine-tuning had several learning rates, it is at that of the best mean.
    """
    lines = []
    if all(name in runs for name in factorial()):
        lines += ["| second level, instead of the reference's | " + " | ".join(MEASURES) + " |"]
        lines += ["|---" * (1 + len(MEASURES)) + "|"]
        for name, of_measures in effects(runs).items():
            shown = [f"{100 * e:+.1f} ± {100 * s:.1f}" for e, s in of_measures.values()]
            lines.append(f"| {FACTORS[name][0]} | " + " | ".join(shown) + " |")
        lines.append("")
    groups = {}
    for name, result in runs.items():
        if not name.startswith("factorial"):
            groups.setdefault(name.rpartition("_seed_")[0], []).append(result)
    lines += ["| run | images | seeds | knn | linear | finetuned | images/s |"]
    lines += ["|---" * (4 + len(MEASURES)) + "|"]
    for name, results in groups.items():
        shown = []
        for measure in (*MEASURES[:2], best_rate(results)):
            values = [100 * result[measure] for result in results if measure in result]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            shown.append(f"{np.mean(values):.1f}{spread}" if values else "")
        rate = np.median([result["images_per_s"] for result in results])
        lines.append(
            f"| {name} | {results[0]['images']:,} | {len(results)} | "
            + " | ".join(shown)
            + f" | {rate:.0f} |"
        )
    if all(name in runs for name in final()):
        shown = [f"{m} {100 * d:+.1f} ± {100 * e:.1f}" for m, (d, e) in advantage(runs).items()]
        lines += ["", f"DDAE over MAE: {', '.join(shown)}"]
        lines += [
            f"{name}: k-NN on the way, least over untrained: {100 * margin:+.1f} at epoch {epoch}"
            for name, (margin, epoch) in least_margins(runs).items()
        ]
    return "\n".join(lines)


def best_rate(results: Sequence[Mapping]) -> str:
    """Names the fine-tuning, among those at several learning rates, that has the best mean."""
    tuned = [name for name in results[0] if name.startswith("finetuned")]
    return max(tuned, key=lambda name: sum(r[name] for r in results), default=MEASURES[-1])


def advantage(runs: dict[str, dict]) -> dict[str, tuple[float, float]]:
    """Compares the final runs: DDAE's mean less MAE's, and its standard error, by measure."""

    def values(name: str) -> np.ndarray:
        results = [runs[f"final_{name}_seed_{seed}"] for seed in SEEDS]
        measures = (*MEASURES[:2], best_rate(results))
        return np.array([[result[measure] for measure in measures] for result in results])

    mae, ddae = values("mae"), values("ddae")
    differences = (ddae.mean(axis=0) - mae.mean(axis=0)).tolist()
    errors = np.sqrt((mae.var(axis=0, ddof=1) + ddae.var(axis=0, ddof=1)) / len(SEEDS)).tolist()
    names = (*MEASURES[:2], "finetuned")
    return dict(zip(names, zip(differences, errors, strict=True), strict=True))


def least_margins(runs: dict[str, dict]) -> dict[str, tuple[float, float]]:
    """By final run: how far k-NN on the way was above the untrained network at least, and when."""
    found = {}
    for name in final():
        watched = runs[name]["knn_on_the_way"]
        accuracy, epoch = min((accuracy, epoch) for epoch, accuracy in watched["by_epoch"])
        found[name] = (accuracy - watched["untrained"], epoch)
    return found


def main(folder: str = "", data_dir: str = "", *parts: str) -> None:
    """Does the runs of the parts, or prints what is stored."""
    for part in parts:
        work(pathlib.Path(folder), data_dir, PARTS[part]())
    print(tables(recorded(NAME)))


if __name__ == "__main__":
    main(*sys.argv[1:])
