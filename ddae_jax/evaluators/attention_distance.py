"""Task attention_distance: the locality of attention of one or several runs."""

import os
from collections.abc import Sequence

import numpy as np
from absl import flags as absl_flags
from jaxtyping import Float
from ml_collections import ConfigDict

from ddae_jax.builders.data import build_eval_batches, build_source
from ddae_jax.builders.networks import build_encoder, build_normalize
from ddae_jax.builders.restore import restore_encoder
from ddae_jax.config import from_plain, to_plain
from ddae_jax.evaluation.attention_distance import (
    RADII,
    Locality,
    measure_locality,
    uniform_distance,
    uniform_mass,
)
from ddae_jax.evaluators.run_folder import Run, draw, open_run, with_data_dir_hint
from ddae_jax.figures.attention_distance import locality_figure, locality_table
from ddae_jax.patches import Grid
from ddae_jax.training.multihost import all_or_none


def attention_distance(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Measures the locality of attention of a run's encoder, and of others to compare with.

    ``--compare`` names their folders, or checkpoints as ``FOLDER@STEP``. All encoders see the same
    whole images, those of the test split of ``--workdir``'s run, each at its own input size.

    Args:
        flags: flags of the command.

    Returns:
        A table, and the measurements of each run as plain values.

    Raises:
        FileNotFoundError: if a folder holds no run, or a checkpoint or the data is not there.
        ValueError: if a checkpoint is given twice, or the grids of patches differ.
    """
    others = [_path_and_step(argument) for argument in flags.compare]
    with all_or_none():
        runs = [open_run(flags.workdir, "workdir", flags)]
        runs += [open_run(path, "compare", flags) for path, _ in others]
        grid = _common_grid(runs)
    steps = [flags.step, *(step for _, step in others)]
    restored = [
        restore_encoder(run.workdir, run.config, run.mesh, step)
        for run, step in zip(runs, steps, strict=True)
    ]
    names = _names(runs, [step for _, step, _ in restored])
    localities, results = {}, {}
    for name, run, (params, step, _) in zip(names, runs, restored, strict=True):
        config = _with_images_of(runs[0].config, run.config)
        source = with_data_dir_hint(build_source, config, config.data.test_split)
        batches = build_eval_batches(config, source, run.mesh, flags.limit or None)
        locality = measure_locality(
            build_encoder(config), params, build_normalize(config), batches, run.mesh
        )
        encoder = config.evaluation.encoder
        title = name.removesuffix(f"@{step}")
        localities[f"{title} ({encoder}, step {step})"] = locality
        results[name] = {
            "workdir": str(run.workdir.path),
            "encoder": encoder,
            "step": step,
            **_locality_to_json(locality),
        }
    figure = draw(runs[0].workdir.figures / "attention_distance.png", locality_figure, localities)
    result = {
        "task": "attention_distance",
        "limit": flags.limit,
        "grid": list(grid),
        "uniform": {
            "distance": uniform_distance(grid),
            "mass_within": {f"{radius:g}": uniform_mass(grid, radius) for radius in RADII},
        },
        "runs": results,
        "figure": figure,
    }
    return f"{locality_table(localities)}\nfigure: {figure or 'none'}", result


def _path_and_step(argument: str) -> tuple[str, int | None]:
    """Splits ``FOLDER@STEP``; the step is None if the argument is itself a folder."""
    folder, _, step = argument.rpartition("@")
    if folder and step.isdecimal() and not os.path.isdir(os.path.expanduser(argument)):
        return folder, int(step)
    return argument, None


def _names(runs: Sequence[Run], steps: Sequence[int]) -> list[str]:
    """Returns a unique name for each checkpoint: its run's folder, and ``@STEP`` if needed.

    Folders of the same name are preceded by the folders above them; ``@STEP`` is added if a run
    occurs at several steps. Raises ``ValueError`` if a run occurs twice at the same step.
    """
    paths = [run.workdir.path for run in runs]
    checkpoints = list(zip(paths, steps, strict=True))
    for path, step in checkpoints:
        if checkpoints.count((path, step)) > 1:
            raise ValueError(
                f"--compare: {path} is given twice at step {step}; name each run once, or another "
                "step of it as FOLDER@STEP"
            )
    names = [path.name for path in paths]
    if len(set(names)) < len(set(paths)):
        above = os.path.commonpath([path.parent for path in paths])
        names = [os.path.relpath(path, above) for path in paths]
    return [
        f"{name}@{step}" if paths.count(path) > 1 else name
        for name, (path, step) in zip(names, checkpoints, strict=True)
    ]


def _common_grid(runs: Sequence[Run]) -> Grid:
    """Returns the patch grid of all runs; raises ``ValueError`` if their grids differ."""
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
    """Returns a copy of ``config`` with the data of ``other``; image size and statistics stay."""
    config = from_plain(to_plain(config))
    for name in ("source", "name", "data_dir", "test_split", "in_memory"):
        config.data[name] = other.data[name]
    return config


def _locality_to_json(locality: Locality) -> dict:
    def rounded(values: Float[np.ndarray, "depth heads"]) -> list[list[float]]:
        return np.round(values, 5).tolist()

    return {
        "num_images": locality.num_images,
        "patch_size": locality.patch_size,
        "distance": rounded(locality.distance),
        "mass_within": {f"{radius:g}": rounded(mass) for radius, mass in locality.mass.items()},
    }
