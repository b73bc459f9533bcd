"""The run that is evaluated, and what all tasks ask of it."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import TypeVar

import jax
from absl import flags as absl_flags
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.config import from_plain
from ddae_jax.config.checks import check_config
from ddae_jax.methods.supervised import LabelledTask
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.sharding import abstract, make_mesh, state_sharding
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger(__name__)

Images = TypeVar("Images")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to evaluate: its folder, its config as the flags change it, and the devices."""

    workdir: Workdir
    config: ConfigDict
    mesh: Mesh


def open_run(path: str, flag: str, flags: absl_flags.FlagValues, job: str = "pretrain") -> Run:
    """The run in a folder, with what the flags say about evaluation.

    Args:
        path: the folder.
        flag: that named it, for messages.
        flags: of the command.
        job: that it must be a run of.

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
    if config.job != job:
        raise ValueError(
            f"--{flag}={workdir.path} is a run of ddae_jax.{config.job}; --task={flags.task} is "
            f"for those of ddae_jax.{job}"
        )
    for name in ("encoder", "depth", "pool", "k", "temperature", "batch_size"):
        if flags[name].value is not None and name in config.evaluation:
            config.evaluation[name] = flags[name].value
    if flags.dtype is not None:
        config.model.dtype = flags.dtype
    if flags.data_dir is not None:
        config.data.data_dir = flags.data_dir
    config.mesh.data, config.mesh.fsdp = -1, 1
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"--{flag}={workdir.path}: {error}") from None
    return Run(workdir, config, make_mesh(**config.mesh))


def restore_labelled(
    run: Run, task: LabelledTask, step: int | None
) -> tuple[tuple[PyTree, PyTree], int]:
    """Parameters and teacher of a network that learned from labels, and the step they are of."""

    def init() -> dict:
        params = task.init(jax.random.key(0), run.config.data.channels)
        return {"params": params, "teacher": task.init_teacher(params)}

    shapes = jax.eval_shape(init)
    wanted = abstract(shapes, state_sharding(run.mesh, shapes))
    with Checkpoints(run.workdir.checkpoints, read_only=True) as checkpoints:
        state, step = checkpoints.restore_part(wanted, step)
    # What is empty is not stored.
    teacher = {name: state.get("teacher", {}).get(name, {}) for name in shapes["teacher"]}
    return (state["params"], teacher), step


def with_data_dir_hint(build_images: Callable[..., Images], *arguments, **options) -> Images:
    """What is built from the run's data. Tells how to say that it has moved."""
    try:
        return build_images(*arguments, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --data_dir=FOLDER says where it is now") from error


def draw(path: pathlib.Path, figure: Callable[..., None], *arguments) -> str | None:
    """Where the first process wrote a figure; None, with a warning, if it could not."""
    try:
        if jax.process_index() == 0:
            figure(path, *arguments)
    except OSError as error:
        _log.warning("the figure could not be written: %s", error)
        return None
    return str(path)
