"""Folder of a run: the paths in it, the lock that admits one run at a time, and atomic writes."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exceeded quota, and a file that is too large."""

_HALF_WRITTEN_CONFIG = ".config.*.json"


class WorkdirInUse(RuntimeError):
    """Another run is writing to the workdir."""


# Folder names that come from a script's unset variable.
_NAMES_OF_UNSET_VARIABLES = ("none", "null", "undefined", "nan")


class Workdir:
    """Paths of a run's files, below one folder. Nothing is created before :meth:`claim`.

    ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``figures/``, ``report.html``,
    ``tensorboard/``, ``features/`` (cached by evaluation), ``compilation_cache/``,
    ``baselines.json`` (k-NN accuracy without training), ``scores.json`` (scores of a fine-tuned
    network), ``classes.json`` (names of its classes), ``failure.json`` (the step at which the loss
    was last not finite), ``imported.json`` (the image size that imported weights were trained on),
    and ``lock``.

    Args:
        path: the folder.

    Raises:
        ValueError: for an address such as ``gs://bucket/run``, an empty name, the name of an unset
            variable, such as ``None``, and a name that is not valid UTF-8.
    """

    def __init__(self, path: str | os.PathLike):
        text = os.fsdecode(path)
        name = pathlib.PurePath(text).name.strip().lower()
        if not text.strip() or name in _NAMES_OF_UNSET_VARIABLES:
            raise ValueError(
                f"--workdir={text} is no folder; a script may have a variable that is not set"
            )
        printable = os.fsencode(text).decode("utf-8", "backslashreplace")
        if printable != text:
            raise ValueError(
                f"--workdir={printable} is not in UTF-8, which what writes checkpoints and keeps "
                "compiled programs needs; give a folder of another name"
            )
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)):
            raise ValueError(
                f"--workdir={path} is an address, not a folder; mount the bucket (gcsfuse, "
                "mountpoint-s3, ...) and give the folder where it is mounted"
            )
        self.path = pathlib.Path(path).expanduser().resolve()
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.tensorboard = self.path / "tensorboard"
        self.features = self.path / "features"
        self.compilation_cache = self.path / "compilation_cache"
        self.baselines = self.path / "baselines.json"
        self.scores = self.path / "scores.json"
        self.classes = self.path / "classes.json"
        self.failure = self.path / "failure.json"
        self.imported = self.path / "imported.json"
        self._lock_path = self.path / "lock"
        self._lock = None

    def claim(self, token: int = 0) -> None:
        """Makes the folder and locks it for this process, until :meth:`release`.

        The kernel holds the lock, and releases it at the latest when the process ends, in any way.

        Args:
            token: number by which other processes of the same run recognise the folder; see
                :meth:`check_is_shared`.

        Raises:
            WorkdirInUse: if another process holds the lock.
            NotADirectoryError: if the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                f"--workdir={self.path} is a file; give a folder or a new path"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open(self._lock_path, "a+")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.readline().strip() or "unknown"
            lock.close()
            raise WorkdirInUse(
                f"another run (process {holder}) is writing to {self.path}; "
                "wait for it, stop it, or choose another --workdir"
            ) from None
        # The file is closed at once: other machines see a file of a mounted bucket only after that.
        self._lock_path.write_text(f"{os.getpid()}\n{token}\n")
        self._lock = lock
        for left_over in self.path.glob(_HALF_WRITTEN_CONFIG):  # by a kill during write_config
            left_over.unlink(missing_ok=True)

    def check_is_shared(self, token: int, patience_s: float = 10.0) -> None:
        """Raises ``ValueError`` unless the folder was claimed with this token.

        Args:
            token: as given to :meth:`claim` in the first process.
            patience_s: seconds to wait, as a network file system may show the token late.
        """
        deadline = time.monotonic() + patience_s
        while self._token() != str(token):
            if time.monotonic() > deadline:
                raise ValueError(
                    f"--workdir={self.path} is not the folder that the first process of this run "
                    "writes to; give one that all processes see"
                )
            time.sleep(0.1)

    def _token(self) -> str | None:
        try:
            lines = self._lock_path.read_text().splitlines()
        except OSError:
            return None
        return lines[1] if len(lines) > 1 else None

    def release(self) -> None:
        """Unlocks the folder for other runs."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_is_a_run_or_empty(self) -> None:
        """Raises ``ValueError`` if the folder holds files but no run."""
        own = {path.name for path in vars(self).values() if isinstance(path, pathlib.Path)}
        if not self.path.is_dir() or self.config.exists():
            return
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own and not entry.match(_HALF_WRITTEN_CONFIG)
        )
        if foreign:
            raise ValueError(
                f"--workdir={self.path} holds files that are no run's ({', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}); give an empty or new folder"
            )

    def has_checkpoint(self) -> bool:
        """Returns whether the run has reached its first checkpoint, even if it is damaged now."""
        return any(path.name.isdecimal() for path in self.checkpoints.glob("[0-9]*"))

    def read_config(self) -> dict[str, Any] | None:
        """Reads the stored config; None if there is none yet.

        Raises:
            ValueError: if the file does not hold a JSON object.
        """
        return read_json(self.config) if self.config.exists() else None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Stores the config of the run, atomically."""
        write_json(self.config, config)

    def read_failure(self) -> dict[str, Any] | None:
        """Reads what :meth:`write_failure` stored last; None for no file or a damaged one."""
        try:
            return read_json(self.failure) if self.failure.exists() else None
        except ValueError:
            return None

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        """Stores at which step, and with which values, the loss of a run was not finite."""
        write_json(self.failure, failure)

    def read_trained_size(self) -> tuple[int, int] | None:
        """Reads the size of the images that imported weights were trained on.

        Returns:
            Height and width, pixels; None if no weights were imported, or if an earlier version of
            this package imported them.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.imported.exists():
            return None
        size = read_json(self.imported).get("image_size")
        if not (isinstance(size, list) and len(size) == 2 and all(type(s) is int for s in size)):
            raise ValueError(f"{self.imported} holds no image_size; import the weights again")
        return size[0], size[1]

    def write_trained_size(self, image_size: tuple[int, int]) -> None:
        """Stores the size, in pixels, of the images that imported weights were trained on."""
        write_json(self.imported, {"image_size": list(image_size)})

    def read_classes(self) -> tuple[str, ...] | None:
        """Reads the names of the classes that a network distinguishes, in the order of indices.

        Returns:
            The names; None if the classes have none, or if an earlier version of this package made
            the run.

        Raises:
            ValueError: if the file is damaged.
        """
        if not self.classes.exists():
            return None
        names = read_json(self.classes).get("names")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"{self.classes} holds no names of classes; repair it, or delete it")
        return tuple(names)

    def write_classes(self, names: Sequence[str]) -> None:
        """Stores the names of the classes, in the order of their indices."""
        write_json(self.classes, {"names": list(names)})


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        ValueError: if it holds something else; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; repair it, or use a new folder") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {value!r}, not an object; repair it, or use a new folder")
    return value


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file, atomically; see :func:`written_atomically`."""
    with written_atomically(path) as half_written:
        half_written.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def written_atomically(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside ``path``, which is renamed to ``path`` if the body succeeds.

    Whoever reads ``path``, at any time or after a crash, finds the old file or the new one, whole.
    The folder of ``path`` is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield half_written
        with open(half_written, "rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name without its content
        os.replace(half_written, path)
    finally:
        half_written.unlink(missing_ok=True)
