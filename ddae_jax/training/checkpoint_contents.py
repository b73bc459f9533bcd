"""Contents of a checkpoint: how it is stored, read, and tested for damage.

A checkpoint is a folder that Orbax writes. ``state/`` holds the arrays of the train state; ``data``
holds, as JSON, the data position, a digest of each array, and a digest of this JSON itself.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from ddae_jax.training.digests import array_digests, leaves_by_name

_COMMITTED = "_CHECKPOINT_METADATA"  # file by which Orbax marks a checkpoint as whole

# Keys that are stored beside the data position: a digest of each array, and one of all of it.
_ARRAYS, _DIGEST = "arrays", "digest"

# Devices that hold copies of an array share the writing of it if each of them gets at least this
# much. Sharing needs a program for each shape and device, which is compiled at the first save, and
# is not worth it for small parts.
_LEAST_SHARE_BYTES = 2**20

# The system's messages for errors in reading that are faults of a machine or a network, and may
# pass. Orbax and TensorStore pass on the message only.
_MACHINE_FAULTS = tuple(
    os.strerror(number)
    for number in (
        *(errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.EPERM, errno.ESTALE, errno.ETIMEDOUT),
    )
)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or cannot be restored as asked."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is incomplete, or its contents are not what was saved."""


class StoredState(NamedTuple):
    """State that was read from a checkpoint.

    Attributes:
        tree: arrays, as they were asked for.
        data: the data position.
        digests: the digest that each array should have; None if an earlier version of this package
            saved the checkpoint without digests.
    """

    tree: PyTree
    data: dict[str, Any]
    digests: Mapping[str, str] | None


def commit_marker(folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of the file that marks the checkpoint in ``folder`` as whole."""
    return folder / _COMMITTED


def with_digests(data: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """Returns the data position as it is stored: with the digests of arrays, and one of it all.

    Args:
        data: the data position; JSON must be able to hold it.
        digests: from :func:`ddae_jax.training.digests.array_digests`.
    """
    stored = dict(data) | {_ARRAYS: digests}
    stored[_DIGEST] = _digest_of_json(stored)
    return stored


def read_checkpoint(
    directory: pathlib.Path, step: int, abstract_tree: PyTree, is_part: bool
) -> StoredState:
    """Reads a checkpoint without comparing its arrays with their digests.

    Args:
        directory: folder of all checkpoints of the run.
        step: step of the checkpoint.
        abstract_tree: shapes, dtypes and shardings to restore into.
        is_part: whether ``abstract_tree`` is only a part of the stored state, as nested dicts.

    Raises:
        DamagedCheckpoint: if something is missing, cannot be parsed, or is of another step.
        CheckpointError: if the checkpoint holds another model (the first differences are named), or
            cannot be read because of the machine.
    """
    folder = directory / str(step)
    if not commit_marker(folder).exists():
        raise DamagedCheckpoint(f"{commit_marker(folder)} is missing")
    with _reading(folder / "data" / "metadata") as file:
        data = json.loads(file.read_text())
        has_digest = _ARRAYS in data or _DIGEST in data  # earlier versions stored no digests
        if has_digest and data.pop(_DIGEST, None) != _digest_of_json(data):
            raise ValueError("it is not what was saved")
        digests = data.pop(_ARRAYS, None)
        # Weights imported by an earlier version are of step 0 and have no data position.
        position = data.get("step", step if has_digest or not step else None)
        if position != step:
            raise ValueError(f"its data position is that of step {position}")
    handler = state_handler()
    with _reading(folder / "state" / "_METADATA") as file:
        json.loads(file.read_text())  # if it is missing, Orbax silently assumes defaults
    with _reading(folder / "state"), _without_late_replies():
        shapes = _shapes_from(digests) if digests else _shapes_in(handler, folder / "state")
    mismatch = differences(shapes, abstract_tree, is_part=is_part)
    if mismatch:
        raise CheckpointError(
            f"the checkpoint of step {step} in {directory} is of another model; {mismatch}\n"
            "Use the config it was made with, or another --workdir."
        )
    with _reading(folder / "state"), _without_late_replies():
        arguments = _restore_arguments(abstract_tree, partial_restore=is_part)
        tree = handler.restore(folder / "state", args=arguments)
        if not is_part and int(tree.step) != step:
            raise ValueError(f"it is that of step {int(tree.step)}")
    return StoredState(tree, data, digests)


def altered_arrays(tree: PyTree, digests: Mapping[str, str] | None) -> str | None:
    """Describes the arrays that differ from their digests; collective over all processes.

    Args:
        tree: arrays that were read, all or some of those saved.
        digests: the digest that each array should have.

    Returns:
        A message that counts and names them; None if all arrays are intact, or if there are no
        digests to compare with.

    Raises:
        TypeError: as :func:`ddae_jax.training.digests.array_digests` does.
    """
    actual = {} if digests is None else array_digests(tree)
    altered = [name for name, digest in actual.items() if digests.get(name) != digest]
    if not altered:
        return None
    return f"{len(altered)} arrays are not what was saved: {', '.join(altered[:3])}" + (
        ", ..." if len(altered) > 3 else ""
    )


def state_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns Orbax's handler of the train state, for saving and restoring."""
    return ocp.PyTreeCheckpointHandler(type_handler_registry=_type_handlers())


def differences(
    theirs: PyTree, ours: PyTree, where: str = "in the checkpoint", is_part: bool = False
) -> str:
    """Describes which arrays of two trees differ in shape.

    Args:
        theirs: arrays, or their shapes, that were loaded.
        ours: arrays, or their shapes, that the model has.
        where: words that say where ``theirs`` are.
        is_part: whether ``theirs`` may hold further arrays.

    Returns:
        The number of arrays that differ and the first five by name; an empty string if none does.
    """
    loaded, expected = _shapes_by_name(theirs), _shapes_by_name(ours)
    differing = [
        f"{name}: {loaded.get(name, 'missing')} {where}, "
        f"{expected.get(name, 'missing')} in the model"
        for name in sorted(
            expected if is_part else loaded | expected,
            key=lambda name: (name.startswith("opt_state"), name),
        )
        if loaded.get(name) != expected.get(name)
    ]
    if not differing:
        return ""
    return "\n  ".join([f"{len(differing)} arrays differ:", *differing[:5]])


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Turns errors of the body into :class:`DamagedCheckpoint`, which names the file or folder.

    Raises :class:`CheckpointError` instead if the machine is at fault, as the checkpoint may then
    be readable again later.
    """
    try:
        yield path
    except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = _explained(error, path)
        if any(fault in str(error) for fault in _MACHINE_FAULTS):
            raise CheckpointError(
                f"a checkpoint cannot be read: {reason}. Nothing was changed; mend that, then "
                "start the same command again."
            ) from error
        raise DamagedCheckpoint(reason) from error


def _explained(error: Exception, path: pathlib.Path) -> str:
    """Names the file below ``path`` that an error is about, and shortens the error's message."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    files = re.findall(rf"{re.escape(str(path))}/[^\s\\\"',;:\]]+", text)
    # TensorStore prefixes the message with each layer that it passed, and appends the request.
    first, *layers = re.sub(
        r" (\[(source locations|tensorstore_spec)|See full TensorStore details).*", "", text
    ).split(": ")
    reason = ": ".join([first, *layers[-2:]]) if layers and first.isupper() else text
    reason = re.sub(r' "/[^"]*"', "", reason)
    return f"{files[0] if files else path}: {textwrap.shorten(reason, 200)}"


@contextlib.contextmanager
def _without_late_replies() -> Iterator[None]:
    """Keeps TensorStore's late replies after a failed restore from printing tracebacks.

    Orbax gives up at the first array that cannot be read, and closes the event loop that waits for
    the others. Their replies come later, so after an error the hook stays installed.
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


def _shapes_from(digests: Mapping[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of each array, by its name, parsed from its digest."""
    shapes = {}
    for name, digest in digests.items():
        dtype, sides = re.match(r"(\w+)\[(.*)\]", digest).groups()
        shape = tuple(int(side) for side in sides.split(",") if side)
        shapes[name] = jax.ShapeDtypeStruct(shape, dtype)
    return shapes


def _shapes_in(handler: ocp.PyTreeCheckpointHandler, folder: pathlib.Path) -> PyTree:
    """Returns Orbax's metadata of the arrays of a checkpoint that was saved without digests."""
    metadata = handler.metadata(folder)
    return getattr(metadata, "tree", metadata)


def _type_handlers() -> ocp.type_handlers.TypeHandlerRegistry:
    """Returns Orbax's handlers of leaves, with another threshold for sharing writes of arrays.

    Orbax's extra metadata of arrays is left out: only random keys need it, and a state has none.
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


def _shapes_by_name(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in leaves_by_name(tree).items()}
