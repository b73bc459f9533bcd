"""Checkpoints: state and data position together, saved in the background, never half of one."""

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

from ddae_jax.training.agreement import all_or_none, from_first
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import DISK_FULL

_log = logging.getLogger(__name__)

# Old checkpoints are moved here in one operation before their files are deleted one by one.
_DELETED = ".deleted"

# Devices that all hold an array share the writing of it where each writes so much. It takes a
# program for each shape and device, compiled at the first save, which small parts are not worth.
_LEAST_SHARE_BYTES = 2**20

# Orbax hands on the words only.
_DISK_FULL = tuple(map(os.strerror, DISK_FULL))


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not fit what it is to be restored into."""


class Checkpoints:
    """The checkpoints of one run, by step.

    A checkpoint is written to a temporary folder and renamed when it is whole, so one that was
    being written when the process died is never picked up; it is swept away when the next run
    opens the folder for writing. One that is deleted is renamed first, and so never half there.
    All processes of a run open, save and restore together; the first one knows the latest step.

    Args:
        directory: where they are, or will be.
        keep_last: how many of the latest to keep.
        keep_every_steps: those at multiples of it are kept for good; None for no such ones.
        read_only: open for restoring only; nothing is created or swept away.
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
                "state": ocp.PyTreeCheckpointHandler(type_handler_registry=_type_handlers()),
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
        except Exception as also:
            if error is None:
                raise self._cannot_write(also) from also
            _log.warning("closing the checkpoints failed too: %s", _first_line(also))
        self._sweep()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending, as this process sees them."""
        return sorted(s for s in self._manager.all_steps() if self._metadata(s).exists())

    def latest_step(self) -> int | None:
        """The step of the latest whole checkpoint, or None."""
        latest = from_first(max(self.steps(), default=-1))
        return None if latest < 0 else latest

    def save(self, state: TrainState, step: int, data_state: Mapping[str, Any]) -> None:
        """Starts to save; returns once the arrays are copied, and the state may be donated.

        Raises :class:`CheckpointError` if this save, or the one before, cannot be written.
        """
        self.wait()
        self._sweep()
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(dict(data_state))
                ),
                force=True,
            )
        except Exception as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Returns when what was started is saved. Raises :class:`CheckpointError` if it is not."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error

    def restore(
        self, abstract_state: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """State and data position of a checkpoint, the latest by default.

        Args:
            abstract_state: shapes, dtypes and shardings to restore into.
            step: of the checkpoint.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            CheckpointError: if it holds another model; the first differences are named.
        """
        with all_or_none():
            step = self.existing_step(step)
            self._check_fits(abstract_state, step)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=_restore_arguments(abstract_state), data=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["data"]

    def restore_part(self, abstract_part: PyTree, step: int | None = None) -> PyTree:
        """Only those arrays of a checkpoint's state that are asked for, for use without training.

        Args:
            abstract_part: part of the state's tree, as nested dicts, with shardings.
            step: of the checkpoint; the latest by default.

        Raises as :meth:`restore` does.
        """
        with all_or_none():
            step = self.existing_step(step)
            self._check_fits(abstract_part, step, is_part=True)
        part = _restore_arguments(abstract_part, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=part))["state"]

    def saved_at(self, step: int) -> int:
        """When the checkpoint was saved, nanoseconds since 1970."""
        return json.loads(self._metadata(step).read_text())["commit_timestamp_nsecs"]

    def existing_step(self, step: int | None = None) -> int:
        """``step``, or the latest one. Raises ``FileNotFoundError`` if it has no checkpoint."""
        wanted = self.latest_step() if step is None else step
        found = self.steps()
        if wanted not in found:
            missing = "no checkpoint" if wanted is None else f"no checkpoint of step {wanted}"
            raise FileNotFoundError(f"{missing} in {self._directory}; there are: {found or 'none'}")
        return wanted

    def _sweep(self) -> None:
        if not self._is_read_only and jax.process_index() == 0:
            shutil.rmtree(self._directory / _DELETED, ignore_errors=True)

    def _metadata(self, step: int) -> pathlib.Path:
        return self._directory / str(step) / "_CHECKPOINT_METADATA"

    def _check_fits(self, abstract_state: PyTree, step: int, is_part: bool = False) -> None:
        metadata = self._manager.item_metadata(step)["state"]
        stored = getattr(metadata, "tree", metadata)
        told = differences(stored, abstract_state, "in the checkpoint", is_part)
        if told:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._directory} is of another model; {told}\n"
                "Use the config it was made with, or another --workdir."
            )

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


def _type_handlers() -> ocp.type_handlers.TypeHandlerRegistry:
    """How Orbax writes and reads leaves: its own ways, but for small arrays.

    What it notes of arrays beside them, for random keys alone, is left out: a state has none.
    """
    handlers = ocp.type_handlers
    of_arrays = handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SHARE_BYTES)
    others = [kind for kind in handlers.supported_types() if kind is not jax.Array]
    return handlers.create_type_handler_registry(
        (jax.Array, of_arrays), *((kind, handlers.get_type_handler(kind)) for kind in others)
    )


def _restore_arguments(abstract_tree: PyTree, **options) -> ocp.args.PyTreeRestore:
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_tree)
    return ocp.args.PyTreeRestore(abstract_tree, restore_args=restore_args, **options)


def differences(theirs: PyTree, ours: PyTree, where: str, is_part: bool = False) -> str:
    """How many arrays differ in shape, and the first by name; nothing if none does.

    Args:
        theirs: arrays, or their shapes, that were found.
        ours: those that the model has.
        where: theirs are, in words.
        is_part: theirs may have more.
    """
    found, wanted = _shapes_by_name(theirs), _shapes_by_name(ours)
    differing = [
        f"{name}: {found.get(name, 'missing')} {where}, {wanted.get(name, 'missing')} in the model"
        for name in sorted(
            wanted if is_part else found | wanted,
            key=lambda name: (name.startswith("opt_state"), name),
        )
        if found.get(name) != wanted.get(name)
    ]
    if not differing:
        return ""
    return "\n  ".join([f"{len(differing)} arrays differ:", *differing[:5]])


def _shapes_by_name(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shape of each array, by a name that does not tell dicts, tuples and dataclasses apart."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(_key_name(key) for key in path): tuple(leaf.shape) for path, leaf in leaves}


def _key_name(key) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _first_line(error: Exception) -> str:
    for full in _DISK_FULL:
        if full in str(error):  # at the end of a line that names files nobody knows
            return full
    return (str(error).strip() or type(error).__name__).splitlines()[0]
