"""What ``python -m ddae_jax.evaluate`` can evaluate: one function a task, and the table of them."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import jax
import numpy as np
from absl import flags as absl_flags
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from ddae_jax import build
from ddae_jax.config import from_plain, to_plain
from ddae_jax.config.checks import check_config
from ddae_jax.evaluation.attention_distance import (
    RADII,
    Locality,
    measure_locality,
    uniform_distance,
    uniform_mass,
)
from ddae_jax.evaluation.classify import Examples
from ddae_jax.evaluation.features import cached, raw_pixel_size
from ddae_jax.evaluation.locality_figure import locality_figure, locality_table
from ddae_jax.models.vit import SIZES
from ddae_jax.networks import build_encoder, build_normalize, untrained_encoder_params
from ddae_jax.patches import Grid
from ddae_jax.pretrained import restore_encoder
from ddae_jax.training.agreement import all_or_none
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)

Images = TypeVar("Images")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to evaluate: its folder, its config as the flags change it, and the devices."""

    workdir: Workdir
    config: ConfigDict
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Readout:
    """Which features are evaluated: whose, of which checkpoint, after which block, pooled how."""

    step: int
    encoder: str
    depth: int
    pool: str
    limit: int


def classify(task: str, flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Accuracy of ``knn`` or ``linear`` on the features, and on the two baselines'."""
    if flags.compare:
        raise ValueError(f"--compare is for --task=attention_distance, not --task={task}")
    with all_or_none():
        run = open_run(flags.workdir, "workdir", flags)
    workdir, config, mesh = run.workdir, run.config, run.mesh
    encoder_params, step, saved_at = restore_encoder(workdir, config, mesh, flags.step)
    readout = Readout(
        step,
        config.evaluation.encoder,
        config.evaluation.depth or SIZES[config.model.size].depth,
        config.evaluation.pool,
        flags.limit,
    )
    images = _where_the_data_is(
        build.build_labelled_images, config, mesh, limit=readout.limit or None
    )
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
    return _accuracy_table(task, result), result


def attention_distance(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """How local the attention of a run's encoder is, and of those that it is compared with.

    All see the same images whole, those of the test split of ``--workdir``'s run, each at its size.
    """
    with all_or_none():
        runs = [open_run(flags.workdir, "workdir", flags)]
        runs += [open_run(path, "compare", flags) for path in flags.compare]
        names = _names(runs)
        grid = _common_grid(runs)
    steps = [flags.step, *(None for _ in flags.compare)]
    restored = [
        restore_encoder(run.workdir, run.config, run.mesh, step)
        for run, step in zip(runs, steps, strict=True)
    ]
    localities, of_runs = {}, {}
    for name, run, (params, step, _) in zip(names, runs, restored, strict=True):
        config = _with_images_of(runs[0].config, run.config)
        source = _where_the_data_is(build.build_source, config, config.data.test_split)
        batches = build.build_eval_batches(config, source, run.mesh, flags.limit or None)
        locality = measure_locality(
            build_encoder(config), params, build_normalize(config), batches, run.mesh
        )
        whose = {"encoder": config.evaluation.encoder, "step": step}
        localities[f"{name} ({whose['encoder']}, step {step})"] = locality
        of_runs[name] = {"workdir": str(run.workdir.path), **whose, **_plain_locality(locality)}
    figure = _draw(runs[0].workdir.figures / "attention_distance.png", localities)
    result = {
        "task": "attention_distance",
        "limit": flags.limit,
        "grid": list(grid),
        "uniform": {
            "distance": uniform_distance(grid),
            "mass_within": {f"{radius:g}": uniform_mass(grid, radius) for radius in RADII},
        },
        "runs": of_runs,
        "figure": figure,
    }
    return f"{locality_table(localities)}\nfigure: {figure or 'none'}", result


TASKS: Mapping[str, Callable[[absl_flags.FlagValues], tuple[str, dict]]] = MappingProxyType(
    {
        "knn": functools.partial(classify, "knn"),
        "linear": functools.partial(classify, "linear"),
        "attention_distance": attention_distance,
    }
)
"""What can be evaluated: from the flags to a table, and to what is printed as JSON."""


def open_run(path: str, flag: str, flags: absl_flags.FlagValues) -> Run:
    """The run in a folder, with what the flags say about evaluation.

    Args:
        path: the folder.
        flag: that named it, for messages.
        flags: of the command.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: for what does not fit.
    """
    workdir = Workdir(path)
    stored = workdir.read_config()
    if stored is None:
        raise FileNotFoundError(
            f"--{flag}={workdir.path} holds no run: there is no {workdir.config.name} in it"
        )
    config = from_plain(stored, workdir.config)
    for name in ("encoder", "depth", "pool", "k", "temperature", "batch_size"):
        if flags[name].value is not None:
            config.evaluation[name] = flags[name].value
    if flags.data_dir is not None:
        config.data.data_dir = flags.data_dir
    config.mesh.data, config.mesh.fsdp = -1, 1
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"--{flag}={workdir.path}: {error}") from None
    return Run(workdir, config, make_mesh(**config.mesh))


def _where_the_data_is(build_images: Callable[..., Images], *arguments, **options) -> Images:
    """What is built from the run's data. Tells how to say that it has moved."""
    try:
        return build_images(*arguments, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --data_dir=FOLDER says where it is now") from error


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder's, with as many above it as tell the runs apart."""
    paths = [run.workdir.path for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"--compare: {path} is given twice; name each run once")
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    above = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, above) for path in paths]


def _common_grid(runs: Sequence[Run]) -> Grid:
    """The patch grid of all runs. Raises ``ValueError`` if one has another than the first."""
    grid, *others = (build_encoder(run.config).grid for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other != grid:
            raise ValueError(
                f"--compare={run.workdir.path} has {other[0]} x {other[1]} patches, --workdir="
                f"{runs[0].workdir.path} has {grid[0]} x {grid[1]}; distances in patches can be "
                "compared on the same grid only"
            )
    return grid


def _with_images_of(other: ConfigDict, config: ConfigDict) -> ConfigDict:
    """The config, with the data of another run, at its own size and by its own statistics."""
    config = from_plain(to_plain(config))
    for name in ("source", "name", "data_dir", "test_split", "in_memory"):
        config.data[name] = other.data[name]
    return config


def _plain_locality(locality: Locality) -> dict:
    def plain(values: Float[np.ndarray, "depth heads"]) -> list[list[float]]:
        return np.round(values, 5).tolist()

    return {
        "num_images": locality.num_images,
        "patch_size": locality.patch_size,
        "distance": plain(locality.distance),
        "mass_within": {f"{radius:g}": plain(mass) for radius, mass in locality.mass.items()},
    }


def _draw(path: pathlib.Path, localities: Mapping[str, Locality]) -> str | None:
    """Where the figure was written; None, with a warning, if it could not be."""
    try:
        if jax.process_index() == 0:
            locality_figure(path, localities)
    except OSError as error:
        _log.warning("the figure could not be written: %s", error)
        return None
    return str(path)


def _accuracy_table(task: str, result: dict) -> str:
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
