"""Evaluates a run's frozen features.

    python -m ddae_jax.evaluate --workdir=runs/digits --task=knn
    python -m ddae_jax.evaluate --workdir=runs/digits --task=linear --encoder=teacher --depth=4

Everything but the workdir is known from its config and checkpoints. The last line printed is one
JSON object: the accuracy, and beside it that of the untrained network and of raw pixels.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence

import jax
from absl import flags as absl_flags
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax import build, command
from ddae_jax.config import from_plain, to_plain
from ddae_jax.config.checks import check_config
from ddae_jax.evaluation.classify import Examples
from ddae_jax.evaluation.features import cached, raw_pixel_size
from ddae_jax.models.vit import SIZES
from ddae_jax.networks import untrained_encoder_params
from ddae_jax.pretrained import restore_encoder
from ddae_jax.training.agreement import all_or_none
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir

TASKS = ("knn", "linear")


@dataclasses.dataclass(frozen=True)
class Readout:
    """Which features are evaluated: whose, of which checkpoint, after which block, pooled how."""

    step: int
    encoder: str
    depth: int
    pool: str
    limit: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with command.bad_input_is_explained():
        flags = command.parse_flags(argv, "ddae_jax.evaluate " + __doc__, _define_flags)
        command.start_devices(flags.distributed)
        with all_or_none():
            workdir = Workdir(flags.workdir)
            config = read_config(workdir, flags)
            mesh = make_mesh(**config.mesh)
        encoder_params, step, saved_at = restore_encoder(workdir, config, mesh, flags.step)
        readout = Readout(
            step,
            config.evaluation.encoder,
            config.evaluation.depth or SIZES[config.model.size].depth,
            config.evaluation.pool,
            flags.limit,
        )
        result = classify(flags.task, config, workdir, mesh, encoder_params, readout, saved_at)
    if jax.process_index() == 0:
        print(_table(flags.task, result))
        print(json.dumps(result))
    return 0


def classify(
    task: str,
    config: ConfigDict,
    workdir: Workdir,
    mesh: Mesh,
    encoder_params: PyTree,
    readout: Readout,
    saved_at: int,
) -> dict:
    """Accuracy of ``knn`` or ``linear`` on the features, and on the two baselines'."""
    try:
        images = build.build_labelled_images(config, mesh, limit=readout.limit or None)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --data_dir=FOLDER says where it is now") from error
    encode = build.build_encode(config, mesh, depth=readout.depth, pool=readout.pool)
    predict = build.build_predict(config, task)

    def accuracy(compute: Callable[[], tuple[Examples, Examples]], **key) -> float:
        key |= {"data": to_plain(config.data), "image_size": list(config.model.image_size)}
        key |= {"examples": images.fingerprint}
        train, test = cached(workdir.features, key, compute)
        sizes.update(num_train=len(train[1]), num_test=len(test[1]))
        return images.accuracy(predict, train, test)

    def untrained() -> tuple[Examples, Examples]:
        return images.features(encode, untrained_encoder_params(config))

    sizes = {}
    trained_key = dataclasses.asdict(readout)
    untrained_key = trained_key | {
        "encoder": "untrained",
        "step": 0,
        "seed": config.seed,
        "model": to_plain(config.model),
    }
    result = {
        "task": task,
        **trained_key,
        "accuracy": accuracy(
            lambda: images.features(encode, encoder_params), **trained_key, saved_at=saved_at
        ),
        "untrained": accuracy(untrained, **untrained_key),
        "raw_pixel_size": list(raw_pixel_size(config.model.image_size)),
        "raw_pixels": accuracy(images.pixels, encoder="none", limit=readout.limit),
        **sizes,
    }
    if task == "knn":
        result |= {"k": config.evaluation.k, "temperature": config.evaluation.temperature}
    return result


def read_config(workdir: Workdir, flags: absl_flags.FlagValues) -> ConfigDict:
    """The config stored in the workdir, with what the flags say about evaluation.

    Raises ``FileNotFoundError`` if the folder holds no run, ``ValueError`` for what does not fit.
    """
    stored = workdir.read_config()
    if stored is None:
        raise FileNotFoundError(
            f"--workdir={workdir.path} holds no run: there is no {workdir.config.name} in it"
        )
    config = from_plain(stored, workdir.config)
    for name in ("encoder", "depth", "pool", "k", "temperature", "batch_size"):
        if flags[name].value is not None:
            config.evaluation[name] = flags[name].value
    if flags.data_dir is not None:
        config.data.data_dir = flags.data_dir
    config.mesh.data, config.mesh.fsdp = -1, 1
    check_config(config)
    return config


def _table(task: str, result: dict) -> str:
    title = {"knn": "k-NN", "linear": "linear probe"}[task]
    trained = f"trained ({result['encoder']}, step {result['step']}, depth {result['depth']})"
    rows = {
        trained: result["accuracy"],
        "untrained network": result["untrained"],
        _raw_pixels(result["raw_pixel_size"]): result["raw_pixels"],
    }
    width = max(map(len, rows))
    lines = [
        f"{title} accuracy on {result['num_test']:,} images ({result['num_train']:,} to learn)"
    ]
    return "\n".join(lines + [f"  {name:{width}s}  {value:6.2%}" for name, value in rows.items()])


def _raw_pixels(size: Sequence[int]) -> str:
    height, width = size
    return f"raw pixels ({height} x {width})"


def _define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind: str, name: str, default, *arguments) -> None:
        getattr(absl_flags, f"DEFINE_{kind}")(name, default, *arguments, flag_values=flags)

    define("string", "workdir", None, "Folder of the run.")
    define("enum", "task", None, TASKS, "What to evaluate.")
    command.require("workdir", "FOLDER", flags)
    command.require("task", "|".join(TASKS), flags)

    def of_the_run(kind: str, name: str, *arguments) -> None:
        *others, text = arguments
        define(kind, name, None, *others, f"{text} (default: evaluation.{name} of the run)")

    of_the_run("enum", "encoder", ("student", "teacher"), "Whose features.")
    of_the_run("integer", "depth", "Block to read after; 0 for the last.")
    of_the_run("enum", "pool", ("mean", "class_token"), "Mean over patches, or class token.")
    define("integer", "step", None, "Of the checkpoint; the latest by default.")
    of_the_run("integer", "k", "Neighbours that vote (knn).")
    of_the_run("float", "temperature", "Of their votes; 0 for equal ones (knn).")
    of_the_run("integer", "batch_size", "Images encoded at a time.")
    define("integer", "limit", 0, "At most so many images of each set, spread evenly; 0 for all.")
    define("string", "data_dir", None, "Where the data is now, if it has moved.")
    define("bool", "distributed", False, "One of several processes: join the others first.")


if __name__ == "__main__":
    command.run(main)
