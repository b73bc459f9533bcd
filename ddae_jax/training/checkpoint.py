"""Checkpoints: state and data position together, saved in the background, never half of one."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from ddae_jax.training.digests import array_digests, leaves_by_name
from ddae_jax.training.multihost import OtherProcessFailed, all_or_none, broadcast, gather_json
from ddae_jax.training.state import TrainState
from ddae_jax.training.workdir import DISK_FULL

_log = logging.getLogger(__name__)

# Old checkpoints are moved here in one operation before their files are deleted one by one.
_DELETED = ".deleted"

# Checkpoints that cannot be used are moved here, for whoever wants to look at them.
_DAMAGED = "damaged"

_COMMITTED = "_CHECKPOINT_METADATA"  # by which Orbax marks a checkpoint as whole

# What is stored beside the data position: a digest of each array, and one of all of it.
_ARRAYS, _DIGEST = "arrays", "digest"

# Devices that all hold an array share the writing of it where each writes so much. It takes a
# program for each shape and device, compiled at the first save, which small parts are not worth.
_LEAST_SHARE_BYTES = 2**20

# Orbax and TensorStore hand on the words only.
_DISK_FULL = tuple(map(os.strerror, DISK_FULL))
# Errors in reading that tell of a machine or a network, which may be well again tomorrow.
_OF_THE_MACHINE = (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OF_THE_MACHINE += (errno.EPERM, errno.ESTALE, errno.ETIMEDOUT)
_OF_THE_MACHINE = tuple(map(os.strerror, _OF_THE_MACHINE))


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or cannot be restored into what it is meant for."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint has lost something, or holds something else than was saved."""


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
                "state": _state_handler(),
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
        return sorted(step for step in self._folders() if self._metadata(step).exists())

    def latest_step(self) -> int | None:
        """The step of the latest whole checkpoint, or None."""
        latest = broadcast(max(self.steps(), default=-1))
        return None if latest < 0 else latest

    def save(self, state: TrainState, step: int, data_state: Mapping[str, Any]) -> None:
        """Starts to save; returns once the arrays are copied, and the state may be donated.

        A digest of each array is saved with it, by which :meth:`restore` notices damage.

        Raises :class:`CheckpointError` if this save, or the one before, cannot be written.
        """
        self.wait()
        self._sweep()
        data = dict(data_state) | {_ARRAYS: array_digests(state)}
        data[_DIGEST] = _digest_of_json(data)
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
        """Returns when what was started is saved. Raises :class:`CheckpointError` if it is not."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error

    def restore(
        self, abstract_state: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """State and data position of a checkpoint, the latest one that is intact by default.

        A damaged one is named in the log, and moved to ``damaged/`` unless this is read-only.

        Args:
            abstract_state: shapes, dtypes and shardings to restore into.
            step: of the checkpoint.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            DamagedCheckpoint: if that of ``step``, or each of them, is damaged.
            CheckpointError: if it holds another model (the first differences are named), or cannot
                be read because of the machine.
        """
        state, data, _ = self._restore(abstract_state, step, is_part=False)
        return state, data

    def restore_part(self, abstract_part: PyTree, step: int | None = None) -> tuple[PyTree, int]:
        """Only those arrays of a checkpoint's state that are asked for, for use without training.

        Args:
            abstract_part: part of the state's tree, as nested dicts, with shardings.
            step: of the checkpoint; the latest one that is intact by default.

        Returns:
            The arrays, and the checkpoint's step.

        Raises as :meth:`restore` does.
        """
        part, _, step = self._restore(abstract_part, step, is_part=True)
        return part, step

    def exist(self) -> bool:
        """Whether there is any checkpoint, be it damaged."""
        return bool(broadcast(bool(self._folders())))

    def saved_at(self, step: int) -> int:
        """When the checkpoint was saved, nanoseconds since 1970."""
        try:
            return json.loads(self._metadata(step).read_text())["commit_timestamp_nsecs"]
        except (ValueError, KeyError, TypeError):  # damaged, and needed for nothing else
            return self._metadata(step).stat().st_mtime_ns

    def existing_step(self, step: int | None = None) -> int:
        """``step``, or the latest one. Raises ``FileNotFoundError`` if it has no checkpoint."""
        wanted = self.latest_step() if step is None else step
        found = self.steps()
        if wanted not in found:
            missing = "no checkpoint" if wanted is None else f"no checkpoint of step {wanted}"
            raise FileNotFoundError(f"{missing} in {self._directory}; there are: {found or 'none'}")
        return wanted

    def _restore(
        self, abstract_tree: PyTree, step: int | None, is_part: bool
    ) -> tuple[PyTree, dict[str, Any], int]:
        """Arrays, data position and step of one checkpoint: of ``step``, or the latest intact one.

        Reading is done by each process for itself; whether it went well they tell each other.
        """
        with all_or_none():
            if step is not None or not self.exist():
                step = self.existing_step(step)
        candidates = gather_json({"steps": self._folders()})[0]["steps"] if step is None else [step]
        damages: dict[int, str] = {}
        for candidate in candidates:
            found, damage = self._try_to_read(abstract_tree, candidate, is_part)
            if damage is None:
                tree, data, digests = found
                damage = _altered(tree, digests)
            if damage is None:
                self._leave_out(damages, candidate)
                return tree, data, candidate
            damages[candidate] = damage
        told = "\n  ".join(f"step {step}: {damage}" for step, damage in damages.items())
        rest = [other for other in self.steps() if other not in damages]
        raise DamagedCheckpoint(
            f"no checkpoint in {self._directory} is intact:\n  {told}\n"
            "Bring the files back from a copy, or start anew in another --workdir."
            if not rest
            else f"the checkpoint of step {step} in {self._directory} is damaged: {damage}. There "
            f"are others: {rest}"
        )

    def _try_to_read(
        self, abstract_tree: PyTree, step: int, is_part: bool
    ) -> tuple[tuple[PyTree, dict[str, Any], Mapping[str, str] | None] | None, str | None]:
        """What :meth:`_read` gives, or what is damaged, if it is so for any process.

        Raises what is wrong otherwise, or ``OtherProcessFailed`` if something is in another one.
        """
        found = damage = failure = None
        try:
            found = self._read(abstract_tree, step, is_part)
        except DamagedCheckpoint as error:
            damage = str(error)
        except Exception as error:
            failure = error
        told = gather_json({"damage": damage, "has_failed": failure is not None})
        if failure is not None:
            failure.is_known_to_all = True
            raise failure
        if any(other["has_failed"] for other in told):
            raise OtherProcessFailed("another process could not read a checkpoint; see its message")
        return found, next((other["damage"] for other in told if other["damage"]), None)

    def _read(
        self, abstract_tree: PyTree, step: int, is_part: bool
    ) -> tuple[PyTree, dict[str, Any], Mapping[str, str] | None]:
        """Arrays, data position and the digests that the arrays should have, if they were stored.

        Raises ``DamagedCheckpoint``, and ``CheckpointError`` as :meth:`restore` does.
        """
        folder = self._directory / str(step)
        if not self._metadata(step).exists():
            raise DamagedCheckpoint(f"{self._metadata(step)} is missing")
        with _reading(folder / "data" / "metadata") as file:
            data = json.loads(file.read_text())
            has_digest = _ARRAYS in data or _DIGEST in data  # else it is of an earlier version
            if has_digest and data.pop(_DIGEST, None) != _digest_of_json(data):
                raise ValueError("it is not what was saved")
            digests = data.pop(_ARRAYS, None)
            # Weights that an earlier version imported have no position, as step 0.
            position = data.get("step", step if has_digest or not step else None)
            if position != step:
                raise ValueError(f"its data position is that of step {position}")
        handler = _state_handler()
        with _reading(folder / "state" / "_METADATA") as file:
            json.loads(file.read_text())  # without it, Orbax makes one up
        with _reading(folder / "state"), _without_late_replies():
            stored = _stored_shapes(digests) if digests else _shapes_in(handler, folder / "state")
        told = differences(stored, abstract_tree, is_part=is_part)
        if told:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._directory} is of another model; {told}\n"
                "Use the config it was made with, or another --workdir."
            )
        with _reading(folder / "state"), _without_late_replies():
            arguments = _restore_arguments(abstract_tree, partial_restore=is_part)
            tree = handler.restore(folder / "state", args=arguments)
            if not is_part and int(tree.step) != step:
                raise ValueError(f"it is that of step {int(tree.step)}")
        return tree, data, digests

    def _leave_out(self, damages: Mapping[int, str], usable: int) -> None:
        """Tells of damaged checkpoints, and moves them out of the way of those to come."""
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
                    kept = self._directory / _DAMAGED / str(step)
                    shutil.rmtree(kept, ignore_errors=True)
                    kept.parent.mkdir(exist_ok=True)
                    os.replace(self._directory / str(step), kept)
                _log.warning("what is left of it is kept in %s", self._directory / _DAMAGED)
        self._manager.reload()

    def _folders(self) -> list[int]:
        """Steps that have a folder, whole or not, the latest first."""
        names = [path.name for path in self._directory.glob("[0-9]*")]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _sweep(self) -> None:
        if not self._is_read_only and jax.process_index() == 0:
            shutil.rmtree(self._directory / _DELETED, ignore_errors=True)

    def _metadata(self, step: int) -> pathlib.Path:
        return self._directory / str(step) / _COMMITTED

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


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Raises what goes wrong in the body as damage of a file or folder.

    Raises :class:`CheckpointError` if the machine is at fault: what cannot be read now may be well
    tomorrow.
    """
    try:
        yield path
    except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        told = _explained(error, path)
        if any(words in str(error) for words in _OF_THE_MACHINE):
            raise CheckpointError(
                f"a checkpoint cannot be read: {told}. Nothing was changed; mend that, then start "
                "the same command again."
            ) from error
        raise DamagedCheckpoint(told) from error


def _explained(error: Exception, path: pathlib.Path) -> str:
    """Which file below a path an error is about, and what it says of it."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    files = re.findall(rf"{re.escape(str(path))}/[^\s\\\"',;:\]]+", text)
    # TensorStore says of each of its layers which one it called, and adds what it was asked.
    first, *layers = re.sub(
        r" (\[(source locations|tensorstore_spec)|See full TensorStore details).*", "", text
    ).split(": ")
    reason = ": ".join([first, *layers[-2:]]) if layers and first.isupper() else text
    reason = re.sub(r' "/[^"]*"', "", reason)
    return f"{files[0] if files else path}: {textwrap.shorten(reason, 200)}"


@contextlib.contextmanager
def _without_late_replies() -> Iterator[None]:
    """Keeps what TensorStore answers after a failed restore from printing tracebacks.

    Orbax gives up at the first array that cannot be read, and closes the loop that waits for the
    others. Their answers come later; so after an error this stays as it is.
    """
    before = sys.unraisablehook

    def print_if_unknown(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = print_if_unknown
    yield
    sys.unraisablehook = before


def _digest_of_json(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stored_shapes(digests: Mapping[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each array, by its name, as its digest tells them."""
    shapes = {}
    for name, digest in digests.items():
        dtype, sides = re.match(r"(\w+)\[(.*)\]", digest).groups()
        shape = tuple(int(side) for side in sides.split(",") if side)
        shapes[name] = jax.ShapeDtypeStruct(shape, dtype)
    return shapes


def _shapes_in(handler: ocp.PyTreeCheckpointHandler, folder: pathlib.Path) -> PyTree:
    """What Orbax says of the arrays of a checkpoint that was saved without digests."""
    metadata = handler.metadata(folder)
    return getattr(metadata, "tree", metadata)


def _altered(tree: PyTree, digests: Mapping[str, str] | None) -> str | None:
    """Which arrays are not what was saved; None if all are, or if nothing tells. For all processes.

    Raises ``TypeError`` as :func:`array_digests` does.
    """
    found = {} if digests is None else array_digests(tree)
    altered = [name for name, digest in found.items() if digests.get(name) != digest]
    if not altered:
        return None
    return f"{len(altered)} arrays are not what was saved: {', '.join(altered[:3])}" + (
        ", ..." if len(altered) > 3 else ""
    )


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(type_handler_registry=_type_handlers())


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


def differences(
    theirs: PyTree, ours: PyTree, where: str = "in the checkpoint", is_part: bool = False
) -> str:
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
    return {name: tuple(leaf.shape) for name, leaf in leaves_by_name(tree).items()}


def _first_line(error: Exception) -> str:
    for full in _DISK_FULL:
        if full in str(error):  # at the end of a line that names files nobody knows
            return full
    return (str(error).strip() or type(error).__name__).splitlines()[0]
