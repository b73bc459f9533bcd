"""Restoring of parts of a checkpoint, such as the encoder's parameters."""

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
    """Restores the encoder that ``config.evaluation`` names.

    Args:
        workdir: of the run.
        config: of the run.
        mesh: of devices that the parameters are laid out over.
        step: of the checkpoint; the latest by default.

    Returns:
        The parameters; the checkpoint's step; and when it was saved, nanoseconds, which
        distinguishes the run from another one made in the same folder.

    Raises:
        ValueError: for the teacher of a run that has none.
    """
    if config.evaluation.encoder == "teacher" and not has_momentum_encoder(config):
        raise ValueError("--encoder=teacher: this run has no teacher (targets.feature_weight=0)")
    shapes = encoder_part(config)
    sharding = state_sharding(mesh, shapes)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(abstract(shapes, sharding), step)
        saved_at = checkpoints.saved_at(step)
    return encoder_of(restored), step, saved_at


def restore_params(workdir: Workdir, shapes: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Restores part of the student's parameters, unsharded, and the checkpoint's step.

    Args:
        workdir: of the run.
        shapes: of the parameters to restore.
        step: of the checkpoint; the latest by default.

    Raises as :meth:`ddae_jax.training.checkpoint.Checkpoints.restore_part` does.
    """
    restored, step = restore_part(workdir, {"params": shapes}, step)
    return restored["params"], step


def is_imported(workdir: Workdir, config: ConfigDict) -> bool:
    """Returns whether a folder holds imported weights, which have no records of training."""
    return bool(config.init_from) and not workdir.metrics.exists()


def read_run(folder: pathlib.Path, key: str) -> tuple[Workdir, ConfigDict]:
    """Reads the config of a pretraining run.

    Args:
        folder: of the run.
        key: the config key that names the folder, for messages.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if the run is another job's, or its config is not valid.
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
    """Returns shapes of the part of a state that holds the encoder of ``config.evaluation``."""
    shapes = jax.eval_shape(lambda: untrained_encoder_params(config))
    is_teacher = config.evaluation.encoder == "teacher"
    return {"teacher": shapes} if is_teacher else {"params": {"encoder": shapes}}


def encoder_of(part: PyTree) -> PyTree:
    """Returns the encoder's parameters from a part that :func:`encoder_part` describes."""
    return part["teacher"] if "teacher" in part else part["params"]["encoder"]


def restore_part(workdir: Workdir, shapes: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Restores arrays of a checkpoint, unsharded, in host memory; returns its step with them."""
    sharding = jax.tree.map(lambda _: replicated(make_mesh()), shapes)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        restored, step = checkpoints.restore_part(abstract(shapes, sharding), step)
    return jax.tree.map(np.asarray, restored), step
