"""Checks before a run starts: of the config, the workdir, and the other processes."""

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
from ddae_jax.config.downstream import TOLD_BY_INIT_FROM
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
    """Lets a run that began with earlier defaults go on with what it has stored.

    Args:
        config: of the command; is changed in place.
        workdir: of the run.
        given: keys that the command line sets.
        allow_config_changes: whether keys whose defaults are what they were are as the command has
            them.

    Returns:
        A line that names the keys which the command has otherwise; None if there are none.

    Raises ``ValueError`` for a stored config that cannot be read.
    """
    stored = stored_config(workdir)
    if stored is None:
        return None
    replaced = take_stored(
        config, stored, given, workdir.config, only_defaults=allow_config_changes
    )
    # What init_from tells is never as the command has it.
    told = {k: v for k, v in replaced.items() if not (config.init_from and k in TOLD_BY_INIT_FROM)}
    if not told:
        return None
    kept = flatten(config)
    return (
        "continuing with the stored config, as defaults have changed since (--config.KEY=VALUE "
        "--allow_config_changes changes a key): "
        + ", ".join(f"{key}={kept[key]!r} (now {value!r})" for key, value in told.items())
    )


def claim(workdir: Workdir, config: ConfigDict, allow_config_changes: bool) -> None:
    """Lets this run, and no other, write to the workdir; all its processes see the same one.

    Raises ``WorkdirInUse``, or ``ValueError`` as :func:`check_workdir` does: another run may have
    come and gone since that was asked, and ``ValueError`` if the folder is not shared.
    """
    token = broadcast(secrets.randbelow(2**31))
    with all_or_none():
        if jax.process_index() == 0:
            workdir.claim(token)
            check_workdir(workdir, config, allow_config_changes)
    with all_or_none():
        workdir.check_is_shared(token)


def check_belongs_to(workdir: Workdir, job: str) -> None:
    """Raises ``ValueError`` if the folder holds another job's run, or files that are no run's."""
    workdir.check_is_a_run_or_empty()
    stored = workdir.read_config()
    if stored is not None and job_of(stored) != job:
        raise ValueError(
            f"--workdir={workdir.path} holds a run of ddae_jax.{job_of(stored)}; give another"
        )


def check_workdir(workdir: Workdir, config: ConfigDict, allow_config_changes: bool) -> None:
    """Checks the config against the one stored in the run's folder.

    A run that has no checkpoint yet has nothing to be continued: it may start over with any config.

    Raises ``ValueError`` if the folder holds a run with another config (its differing keys are
    named), or files that are no run's.
    """
    workdir.check_is_a_run_or_empty()
    stored = stored_config(workdir)
    if stored is None:
        return
    differences = contradictions(stored, to_plain(config), workdir.config)
    keeps_batch_size = not any(line.startswith("batch_size:") for line in differences)
    if differences and not (allow_config_changes and keeps_batch_size):
        shown = "\n  ".join(differences)
        advice = "Give the config it was started with or another --workdir"
        if not keeps_batch_size:
            advice += (
                ". A run keeps its batch_size: its steps are counted by it. "
                "optimizer.micro_batches=2, with --allow_config_changes, takes the same batch in "
                "two parts, in less memory"
            )
        elif not any(line.startswith(("method:", "model.size:")) for line in differences):
            advice += ", or --allow_config_changes to continue it with these"
        raise ValueError(f"{workdir.path} holds a run with another config:\n  {shown}\n{advice}")


def stored_config(workdir: Workdir) -> dict[str, Any] | None:
    """The config of the run that is there to be continued, by today's keys; None without one."""
    stored = workdir.read_config() if workdir.has_checkpoint() else None
    return None if stored is None else to_plain(from_plain(stored, workdir.config))


def check_started_alike(config: ConfigDict) -> None:
    """Raises ``ValueError`` unless all processes have this config, but for folders, and code."""
    if jax.process_count() > 1:
        told = {k: v for k, v in flatten(to_plain(config)).items() if k not in FOLDERS}
        check_same_everywhere(told | code_version())


def code_version() -> dict[str, str]:
    """What must be the same in all processes of a run beside its config."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return {**versions, "code of ddae_jax": digest.hexdigest()[:12]}


def absolute(folder: str) -> str:
    """A folder as it can be found from elsewhere later; addresses and nothing stay as they are."""
    is_path = folder and "://" not in folder
    return os.path.abspath(os.path.expanduser(folder)) if is_path else folder


def check_not_over(
    epochs: float, now: Schedule, step: int, before: Mapping[str, int] | None
) -> None:
    """Raises ``CheckpointError`` if a run that was to go on is over by today's epochs or images.

    Args:
        epochs: of the config.
        now: the schedule of the run that is continued.
        step: of the checkpoint.
        before: its ``total_steps`` and ``steps_per_epoch``; None if an earlier version saved it.
    """
    if before and now.total_steps < before["total_steps"] and now.total_steps <= step:
        raise CheckpointError(
            f"this run has {step / before['steps_per_epoch']:.4g} epochs behind it (step {step}), "
            f"and epochs={epochs:g}, of {now.steps_per_epoch} steps each, are over at "
            f"step {now.total_steps}. Give more epochs, or another --workdir"
        )
