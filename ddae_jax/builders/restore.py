"""Restoring: a part of what a run has stored, such as its encoder's parameters."""

import pathlib

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.networks import untrained_encoder_params
from ddae_jax.config import from_plain
from ddae_jax.config.checks import check_config
from ddae_jax.config.pretraining import has_momentum_encoder
from ddae_jax.interop.weight_files import suggest_weight_files
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.sharding import abstract, make_mesh, replicated, state_sharding
from ddae_jax.training.workdir import Workdir


def restore_encoder(
    workdir: Workdir, config: ConfigDict, mesh: Mesh, step: int | None = None
) -> tuple[PyTree, int, int]:
    """Parameters of the encoder that ``config.evaluation`` names, their step, and when saved.

    The time, nanoseconds, tells a run from another one that was made in the same folder.

    Raises ``ValueError`` for the teacher of a run that has none.
    """
    if config.evaluation.encoder == "teacher" and not has_momentum_encoder(config):
        raise ValueError("--encoder=teacher: this run has no teacher (targets.feature_weight=0)")
    wanted = encoder_part(config)
    sharding = state_sharding(mesh, wanted)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(abstract(wanted, sharding), step)
        saved_at = checkpoints.saved_at(step)
    return encoder_of(restored), step, saved_at


def restore_params(workdir: Workdir, shapes: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Those of a student's parameters that are asked for, whole in this process, and their step.

    Args:
        workdir: of the run.
        shapes: of these parameters, a part of all.
        step: of the checkpoint; the latest by default.

    Raises as :meth:`ddae_jax.training.checkpoint.Checkpoints.restore_part` does.
    """
    restored, step = restore_part(workdir, {"params": shapes}, step)
    return restored["params"], step


def is_imported(workdir: Workdir, config: ConfigDict) -> bool:
    """Whether a folder holds somebody's weights as they were: they have no records of training."""
    return bool(config.init_from) and not workdir.metrics.exists()


def read_run(folder: pathlib.Path, key: str) -> tuple[Workdir, ConfigDict]:
    """Reads the config of a pretraining run.

    Args:
        folder: of the run.
        key: the config key that names it, for messages.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if it is another job's, or its config is not valid.
    """
    workdir = Workdir(folder)
    stored = workdir.read_config()
    if stored is None:
        raise FileNotFoundError(
            f"{key}={str(folder)!r} holds neither a run nor weights: there is no "
            f"{workdir.config.name} and no model.safetensors in it{suggest_weight_files(folder)}"
        )
    config = from_plain(stored, workdir.config)
    if config.job != "pretrain":
        raise ValueError(
            f"{key}={str(folder)!r} is a run of ddae_jax.{config.job}; give one of "
            "ddae_jax.pretrain"
        )
    check_config(config)
    return workdir, config


def encoder_part(config: ConfigDict) -> PyTree:
    """The part of a state that has the encoder which ``config.evaluation`` names."""
    shapes = jax.eval_shape(lambda: untrained_encoder_params(config))
    is_teacher = config.evaluation.encoder == "teacher"
    return {"teacher": shapes} if is_teacher else {"params": {"encoder": shapes}}


def encoder_of(part: PyTree) -> PyTree:
    """Returns the encoder's parameters of a part that :func:`encoder_part` describes."""
    return part["teacher"] if "teacher" in part else part["params"]["encoder"]


def restore_part(workdir: Workdir, wanted: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Arrays of a run's checkpoint, whole in this process's memory, and its step."""
    sharding = jax.tree.map(lambda _: replicated(make_mesh()), wanted)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(abstract(wanted, sharding), step)
    return jax.tree.map(np.asarray, restored), step
