"""Records of a run: written to metrics.jsonl, TensorBoard and the terminal, and read again."""

import contextlib
import json
import logging
import math
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real

import numpy as np
from jaxtyping import Float
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ddae_jax.training.display import ProgressDisplay
from ddae_jax.training.hooks import Hook
from ddae_jax.training.workdir import Workdir, write_atomically

_log = logging.getLogger(__name__)

Record = Mapping[str, object]
"""One line of ``metrics.jsonl``. Figures skip the records that lack what they draw."""


class MetricsWriter:
    """Appends records to metrics.jsonl and to TensorBoard's event file.

    Records of steps after ``start_step`` are dropped first: they are of steps that a killed run
    took after its last checkpoint, and that are now taken again. So is a torn last line.

    Args:
        path: of metrics.jsonl.
        tensorboard: folder of the events; None for none.
        start_step: step from which the run continues.
    """

    def __init__(self, path: pathlib.Path, tensorboard: pathlib.Path | None, start_step: int):
        kept = [r for r in read_metrics(path) if r["step"] <= start_step] if start_step else []
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(path, "a")  # noqa: SIM115 - closed in close()
        self._events = tensorboard and _Events(tensorboard, start_step + 1 if start_step else 0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One record; a value that is not finite is written as null."""
        values = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events:
            self._events.write(step, metrics)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        if self._events:
            self._events.close()


class _Events:
    """TensorBoard's event file, written as the records come.

    tensorboardX's own ``SummaryWriter`` writes in a thread, which ends at the first error (a full
    disk), whereupon the program waits for it for ever. Here an error is logged once, and there are
    no further events: metrics.jsonl has everything.

    Args:
        folder: of the events.
        first_step: earlier events of this step and later ones are to be dropped.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        self._writer = None
        with self._harmless():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            begins = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=first_step, session_log=begins))
            self._writer.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One record."""
        with self._harmless():
            if self._writer:
                for name, value in metrics.items():
                    scalar = summary.scalar(name, value)
                    self._writer.write_event(
                        Event(step=step, wall_time=time.time(), summary=scalar)
                    )
                self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        with self._harmless():
            if self._writer:
                self._writer.close()

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            _log.warning("there are no further TensorBoard events: %s", error)


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The records of a metrics.jsonl, in file order; none if there is no such file.

    A line that is no record is skipped: it is what a killed run was about to write.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: str) -> dict | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and type(value.get("step")) is int else None


class MetricsHook(Hook):
    """The records of a run, to its files and to the terminal, in the first process only.

    Args:
        workdir: of the run.
        start_step: where the run starts or continues.
        total_steps: where it ends.
        use_tensorboard: whether there are TensorBoard events too.
        is_primary: whether this is the first process.
    """

    def __init__(
        self,
        workdir: Workdir,
        *,
        start_step: int,
        total_steps: int,
        use_tensorboard: bool,
        is_primary: bool,
    ):
        self._writer = self._display = None
        if is_primary:
            tensorboard = workdir.tensorboard if use_tensorboard else None
            self._writer = MetricsWriter(workdir.metrics, tensorboard, start_step)
            self._display = ProgressDisplay(total_steps, start_step)

    def __enter__(self) -> "MetricsHook":
        return self

    def __exit__(self, *_) -> None:
        if self._writer:
            self._display.close()
            self._writer.close()

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a record, and shows it if it is one of a step that was taken."""
        self.write(step, metrics)
        if self._display and "loss" in metrics:
            self._display.update(step, metrics)

    def after_step(self, step: int) -> None:
        """Moves the progress bar."""
        if self._display:
            self._display.advance(step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a record to the files only."""
        if self._writer:
            self._writer.write(step, metrics)


def keys_by_objective(records: Sequence[Record], family: str) -> dict[str, dict[str, int]]:
    """The keys ``FAMILY/OBJECTIVE/depth_N`` of all records, per objective: key to depth.

    Objectives come in the order they were logged, depths in that of their number.
    """
    pattern = re.compile(rf"{re.escape(family)}/(?P<objective>.+)/depth_(?P<depth>\d+)")
    found: dict[str, dict[str, int]] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        if match := pattern.fullmatch(key):
            found.setdefault(match["objective"], {})[key] = int(match["depth"])
    return {
        name: dict(sorted(keys.items(), key=lambda pair: pair[1])) for name, keys in found.items()
    }


def keys_by_depth(records: Sequence[Record], family: str) -> dict[str, int]:
    """The keys ``FAMILY/depth_N`` of all records, shallow to deep: key to depth."""
    pattern = re.compile(rf"{re.escape(family)}/depth_(\d+)")
    keys = {key for record in records for key in record}
    found = {key: int(match[1]) for key in keys if (match := pattern.fullmatch(key))}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def logged_depths(records: Sequence[Record]) -> list[int]:
    """Every depth of which a loss or a beta was logged, shallow to deep."""
    groups = [*keys_by_objective(records, "loss").values()]
    groups += keys_by_objective(records, "beta").values()
    return sorted({depth for group in groups for depth in group.values()})


def series(
    records: Sequence[Record], key: str, against: str = "epoch"
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The logged values of one key, and what they are drawn against, in its order.

    What is no number becomes NaN. Where a resumed run logged the same point again, the later value
    counts.
    """
    points = {
        _number(record[against]): _number(record[key])
        for record in records
        if key in record and np.isfinite(_number(record.get(against)))
    }
    ordered = np.array(sorted(points.items()), dtype=np.float64).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def has_series(records: Sequence[Record], key: str, against: str = "epoch") -> bool:
    """Whether any finite value of the key was logged with what it is drawn against."""
    return bool(np.isfinite(series(records, key, against)[1]).any())


def latest(records: Sequence[Record], key: str) -> float | None:
    """The last finite value of one key, or None."""
    values = (_number(record[key]) for record in reversed(records) if key in record)
    return next((value for value in values if np.isfinite(value)), None)


def _number(value: object) -> float:
    return float(value) if isinstance(value, Real) else np.nan
