"""Checkpoints of a run: train state and data position, saved together and in the background.

:mod:`ddae_jax.training.checkpoint_contents` reads a single checkpoint and tests that it is intact.
"""

import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from ddae_jax.training.checkpoint_contents import (
    CheckpointError,
    DamagedCheckpoint,
    StoredState,
    altered_arrays,
    commit_marker,
    read_checkpoint,
    state_handler,
    with_digests,
)
from ddae_jax.training.digests import array_digests
from ddae_jax.training.multihost import OtherProcessFailed, all_or_none, broadcast, gather_json
from ddae_jax.training.program import TrainState
from ddae_jax.training.workdir import DISK_FULL

_log = logging.getLogger(__name__)

# Folder that old checkpoints are moved to, each in one operation, before their files are deleted
# one by one.
_DELETED = ".deleted"

# Folder that damaged checkpoints are moved to, for inspection.
_DAMAGED = "damaged"

# The system's messages for a full disk: Orbax and TensorStore pass on the message only.
_DISK_FULL = tuple(map(os.strerror, DISK_FULL))


class Checkpoints:
    """Checkpoints of one run, by step.

    A checkpoint is written to a temporary folder, which is renamed once it is whole: one that was
    being written when the process died is never picked up, and is swept away when the next run
    opens the folder for writing. A checkpoint that is to be deleted is renamed first, and so never
    half there. All processes of a run must open, save and restore together; the latest step is the
    one that the first process sees.

    Args:
        directory: folder of the checkpoints.
        keep_last: number of latest checkpoints to keep.
        keep_every_steps: checkpoints at multiples of this step are kept for good; None for none.
        read_only: whether to open them for restoring only; nothing is created or swept away.

    Raises:
        FileNotFoundError: if ``read_only`` and the folder does not exist.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_every_steps: int | None = None,
        read_only: bool = False,
    ):
        self._directory = pathlib.Path(directory).resolve()
        if read_only and not self._directory.is_dir():
            raise FileNotFoundError(f"there are no checkpoints: {self._directory} does not exist")
        self._is_read_only = read_only
        self._sweep()
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": state_handler(),
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep_last,
                keep_period=keep_every_steps,
                cleanup_tmp_directories=not read_only,
                todelete_subdir=None if read_only else _DELETED,
                create=not read_only,
                read_only=read_only,
                enable_async_checkpointing=not read_only,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._manager.close()
        except Exception as closing_error:
            if error is None:
                raise self._cannot_write(closing_error) from closing_error
            _log.warning("closing the checkpoints failed too: %s", _first_line(closing_error))
        self._sweep()

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, ascending, as this process sees them."""
        return sorted(step for step in self._folders() if self._marker(step).exists())

    def latest_step(self) -> int | None:
        """Returns the step of the latest whole checkpoint that the first process sees, or None."""
        latest = broadcast(max(self.steps(), default=-1))
        return None if latest < 0 else latest

    def save(self, state: TrainState, step: int, data_state: Mapping[str, Any]) -> None:
        """Starts a save, and returns as soon as the state may be donated: its arrays are copied.

        A digest of each array is saved too, by which :meth:`restore` detects damage.

        Args:
            state: the train state.
            step: its step.
            data_state: position in the data; JSON must be able to hold it.

        Raises:
            CheckpointError: if this checkpoint, or the one before, cannot be written.
        """
        self.wait()
        self._sweep()
        data = with_digests(data_state, array_digests(state))
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data)
                ),
                force=True,
            )
        except Exception as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Waits until the save that was started is finished.

        Raises:
            CheckpointError: if the checkpoint cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error

    def restore(
        self, abstract_state: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores a checkpoint's state and data position.

        Damaged checkpoints that are passed over are named in the log, and moved to ``damaged/``
        unless these checkpoints are read-only.

        Args:
            abstract_state: shapes, dtypes and shardings to restore into.
            step: step of the checkpoint; None for the latest one that is intact.

        Returns:
            The state, and the data position as it was given to :meth:`save`.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            DamagedCheckpoint: if the checkpoint of ``step`` is damaged, or all of them are.
            CheckpointError: if it holds another model (the first differences are named), or cannot
                be read because of the machine.
        """
        stored, _ = self._restore(abstract_state, step, is_part=False)
        return stored.tree, stored.data

    def restore_part(self, abstract_part: PyTree, step: int | None = None) -> tuple[PyTree, int]:
        """Restores some of a checkpoint's arrays, for use without training.

        Args:
            abstract_part: shapes, dtypes and shardings of a part of the state, as nested dicts.
            step: step of the checkpoint; None for the latest one that is intact.

        Returns:
            The arrays, and the checkpoint's step.

        Raises:
            FileNotFoundError, DamagedCheckpoint, CheckpointError: as :meth:`restore` does.
        """
        stored, step = self._restore(abstract_part, step, is_part=True)
        return stored.tree, step

    def exist(self) -> bool:
        """Returns whether the first process sees any checkpoint, intact or damaged."""
        return bool(broadcast(bool(self._folders())))

    def saved_at(self, step: int) -> int:
        """Returns the time at which a checkpoint was saved, nanoseconds since 1970."""
        try:
            return json.loads(self._marker(step).read_text())["commit_timestamp_nsecs"]
        except (ValueError, KeyError, TypeError):  # the file is damaged, but nothing else needs it
            return self._marker(step).stat().st_mtime_ns

    def existing_step(self, step: int | None = None) -> int:
        """Returns ``step``, or the latest one if it is None.

        Raises:
            FileNotFoundError: if there is no whole checkpoint of that step.
        """
        step = self.latest_step() if step is None else step
        steps = self.steps()
        if step not in steps:
            missing = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{missing} in {self._directory}; there are: {steps or 'none'}")
        return step

    def _restore(
        self, abstract_tree: PyTree, step: int | None, is_part: bool
    ) -> tuple[StoredState, int]:
        """Returns the contents of one checkpoint, that of ``step`` or the latest intact one.

        Each process reads by itself; then they tell each other whether they succeeded.
        """
        with all_or_none():
            if step is not None or not self.exist():
                step = self.existing_step(step)
        candidates = gather_json({"steps": self._folders()})[0]["steps"] if step is None else [step]
        damages: dict[int, str] = {}
        for candidate in candidates:
            stored, damage = self._try_to_read(abstract_tree, candidate, is_part)
            if damage is None:
                damage = altered_arrays(stored.tree, stored.digests)
            if damage is None:
                self._set_aside(damages, candidate)
                return stored, candidate
            damages[candidate] = damage
        others = [other for other in self.steps() if other not in damages]
        if others:
            raise DamagedCheckpoint(
                f"the checkpoint of step {step} in {self._directory} is damaged: {damage}. There "
                f"are others: {others}"
            )
        list_of_damages = "\n  ".join(f"step {step}: {damage}" for step, damage in damages.items())
        raise DamagedCheckpoint(
            f"no checkpoint in {self._directory} is intact:\n  {list_of_damages}\n"
            "Bring the files back from a copy, or start anew in another --workdir."
        )

    def _try_to_read(
        self, abstract_tree: PyTree, step: int, is_part: bool
    ) -> tuple[StoredState | None, str | None]:
        """Reads a checkpoint in all processes.

        Returns:
            The contents, and None; or the damage as second value, if any process notices some.

        Raises:
            Exception: whatever else goes wrong in this process.
            OtherProcessFailed: if something else goes wrong in another process.
        """
        stored = damage = failure = None
        try:
            stored = read_checkpoint(self._directory, step, abstract_tree, is_part)
        except DamagedCheckpoint as error:
            damage = str(error)
        except Exception as error:
            failure = error
        reports = gather_json({"damage": damage, "has_failed": failure is not None})
        if failure is not None:
            failure.is_known_to_all = True
            raise failure
        if any(report["has_failed"] for report in reports):
            raise OtherProcessFailed("another process could not read a checkpoint; see its message")
        return stored, next((report["damage"] for report in reports if report["damage"]), None)

    def _set_aside(self, damages: Mapping[int, str], usable: int) -> None:
        """Warns of damaged checkpoints, and moves them out of the way of later ones."""
        for step, damage in damages.items():
            _log.warning(
                "the checkpoint of step %d is DAMAGED: %s. Going on with that of step %d, the "
                "latest one that is intact",
                step,
                damage,
                usable,
            )
        if not damages or self._is_read_only:
            return
        with all_or_none():
            if jax.process_index() == 0:
                for step in damages:
                    moved = self._directory / _DAMAGED / str(step)
                    shutil.rmtree(moved, ignore_errors=True)
                    moved.parent.mkdir(exist_ok=True)
                    os.replace(self._directory / str(step), moved)
                _log.warning("what is left of it is kept in %s", self._directory / _DAMAGED)
        self._manager.reload()

    def _folders(self) -> list[int]:
        """Returns the steps that have a folder, whole or not, the latest first."""
        names = [path.name for path in self._directory.glob("[0-9]*")]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _sweep(self) -> None:
        if not self._is_read_only and jax.process_index() == 0:
            shutil.rmtree(self._directory / _DELETED, ignore_errors=True)

    def _marker(self, step: int) -> pathlib.Path:
        return commit_marker(self._directory / str(step))

    def _cannot_write(self, error: Exception) -> CheckpointError:
        self._manager.reload()
        usable, reason = self.steps(), _first_line(error)
        advice = "Make room" if reason in _DISK_FULL else "Mend that"
        return CheckpointError(
            f"a checkpoint could not be saved in {self._directory}: {reason}. "
            + (
                f"The earlier ones are whole and usable: steps {usable}. {advice}, then start "
                "the same command again; it continues from the latest."
                if usable
                else f"There is no earlier one. {advice}, then start the same command again."
            )
        )


def _first_line(error: Exception) -> str:
    for disk_full in _DISK_FULL:
        if disk_full in str(error):  # it ends a line that names internal files
            return disk_full
    return (str(error).strip() or type(error).__name__).splitlines()[0]
