"""Checks of config, workdir and other processes before a run starts."""

import hashlib
import importlib.metadata
import os
import pathlib
import secrets
from collections.abc import Container, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from ddae_jax.config import from_plain, to_plain
from ddae_jax.config.downstream import INHERITED_KEYS
from ddae_jax.config.keys import FOLDERS
from ddae_jax.config.schema import flatten
from ddae_jax.config.values import contradictions, job_of, take_stored
from ddae_jax.training.checkpoint import CheckpointError
from ddae_jax.training.multihost import all_or_none, broadcast, check_same_everywhere
from ddae_jax.training.schedules import Schedule
from ddae_jax.training.workdir import Workdir


def keep_as_stored(
    config: ConfigDict, workdir: Workdir, given: Container[str], allow_config_changes: bool = False
) -> str | None:
    """Replaces defaults that have changed since a run began by the values that it has stored.

    Args:
        config: of the command; is changed in place.
        workdir: of the run.
        given: keys that the command line sets.
        allow_config_changes: whether keys whose defaults have not changed keep the command's
            values.

    Returns:
        A message that names the replaced keys; None if there are none.

    Raises:
        ValueError: for a stored config that cannot be read.
    """
    stored = stored_config(workdir)
    if stored is None:
        return None
    replaced = take_stored(
        config, stored, given, workdir.config, only_defaults=allow_config_changes
    )
    # Keys inherited from init_from never have the command's values: the message omits them.
    defaults = {k: v for k, v in replaced.items() if not (config.init_from and k in INHERITED_KEYS)}
    if not defaults:
        return None
    values = flatten(config)
    return (
        "continuing with the stored config, as defaults have changed since (--config.KEY=VALUE "
        "--allow_config_changes changes a key): "
        + ", ".join(f"{key}={values[key]!r} (now {value!r})" for key, value in defaults.items())
    )


def claim(workdir: Workdir, config: ConfigDict, allow_config_changes: bool) -> None:
    """Claims the workdir for this run alone, and checks that all its processes share it.

    The config is checked again, because another run may have used the workdir since the first
    check.

    Raises:
        WorkdirInUse: if another run has claimed the workdir.
        ValueError: as :func:`check_workdir` does, or if the processes do not share the folder.
    """
    token = broadcast(secrets.randbelow(2**31))
    with all_or_none():
        if jax.process_index() == 0:
            workdir.claim(token)
            check_workdir(workdir, config, allow_config_changes)
    with all_or_none():
        workdir.check_is_shared(token)


def check_belongs_to(workdir: Workdir, job: str) -> None:
    """Raises ``ValueError`` if the folder holds another job's run, or other files."""
    workdir.check_is_a_run_or_empty()
    stored = workdir.read_config()
    if stored is not None and job_of(stored) != job:
        raise ValueError(
            f"--workdir={workdir.path} holds a run of ddae_jax.{job_of(stored)}; give another"
        )


def check_workdir(workdir: Workdir, config: ConfigDict, allow_config_changes: bool) -> None:
    """Checks the config against the one stored in the run's folder.

    A run without a checkpoint may start over with any config.

    Raises ``ValueError`` if the folder holds a run with another config (the differing keys are
    named), or files that do not belong to a run.
    """
    workdir.check_is_a_run_or_empty()
    stored = stored_config(workdir)
    if stored is None:
        return
    differences = contradictions(stored, to_plain(config), workdir.config)
    keeps_batch_size = not any(line.startswith("batch_size:") for line in differences)
    if differences and not (allow_config_changes and keeps_batch_size):
        lines = "\n  ".join(differences)
        advice = "Give the config it was started with or another --workdir"
        if not keeps_batch_size:
            advice += (
                ". A run keeps its batch_size: its steps are counted by it. "
                "optimizer.micro_batches=2, with --allow_config_changes, takes the same batch in "
                "two parts, in less memory"
            )
        elif not any(line.startswith(("method:", "model.size:")) for line in differences):
            advice += ", or --allow_config_changes to continue it with these"
        raise ValueError(f"{workdir.path} holds a run with another config:\n  {lines}\n{advice}")


def stored_config(workdir: Workdir) -> dict[str, Any] | None:
    """Returns the stored config of a run to be continued, with today's keys; None without one."""
    stored = workdir.read_config() if workdir.has_checkpoint() else None
    return None if stored is None else to_plain(from_plain(stored, workdir.config))


def check_started_alike(config: ConfigDict) -> None:
    """Raises ``ValueError`` unless all processes have the same code and config, except folders."""
    if jax.process_count() > 1:
        facts = {k: v for k, v in flatten(to_plain(config)).items() if k not in FOLDERS}
        check_same_everywhere(facts | code_version())


def code_version() -> dict[str, str]:
    """Returns library versions and a digest of this package's code, equal in all processes."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return {**versions, "code of ddae_jax": digest.hexdigest()[:12]}


def absolute(folder: str) -> str:
    """Returns the absolute path of a folder; URLs and the empty string stay as they are."""
    is_path = folder and "://" not in folder
    return os.path.abspath(os.path.expanduser(folder)) if is_path else folder


def check_not_over(
    epochs: float, now: Schedule, step: int, before: Mapping[str, int] | None
) -> None:
    """Raises ``CheckpointError`` if the run is already over with today's epochs or images.

    Args:
        epochs: of the config.
        now: today's schedule of the continued run.
        step: of the checkpoint.
        before: ``total_steps`` and ``steps_per_epoch`` stored in the checkpoint; None if an earlier
            version saved it.
    """
    if before and now.total_steps < before["total_steps"] and now.total_steps <= step:
        raise CheckpointError(
            f"this run has {step / before['steps_per_epoch']:.4g} epochs behind it (step {step}), "
            f"and epochs={epochs:g}, of {now.steps_per_epoch} steps each, are over at "
            f"step {now.total_steps}. Give more epochs, or another --workdir"
        )
