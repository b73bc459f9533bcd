"""Where a run's numbers go: metrics.jsonl, TensorBoard, and the terminal."""

import contextlib
import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ddae_jax.training.workdir import Workdir, write_atomically

_log = logging.getLogger(__name__)

_console = Console(stderr=True)


def set_up_logging(is_primary: bool = True) -> None:
    """Sends the log to the terminal, in plain lines where it is none; only warnings elsewhere."""
    handler: logging.Handler
    if _console.is_terminal:
        handler = RichHandler(console=_console, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells each thing that it does
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tasks of a restore that has failed
    for name in ("ddae_jax", "__main__"):  # as which python -m ddae_jax.COMMAND runs it
        logging.getLogger(name).setLevel(logging.INFO if is_primary else logging.WARNING)


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


class ProgressDisplay:
    """A progress bar with rate, time left and loss on a terminal; plain lines, now and then, else.

    Args:
        total_steps: of the run.
        start_step: where it continues.
        plain_every_s: seconds between plain lines.
    """

    def __init__(self, total_steps: int, start_step: int = 0, plain_every_s: float = 10.0):
        self._total = total_steps
        self._start = start_step
        self._plain_every_s = plain_every_s
        self._began = time.monotonic()
        self._last_plain = -math.inf
        self._bar = None
        if _console.is_terminal:
            self._bar = Progress(
                TextColumn("pretraining"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TextColumn("gone,"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=_console,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, text="")
            self._bar.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the step and the metrics that people watch."""
        text = watched(metrics)
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._last_plain >= self._plain_every_s or step >= self._total:
            self._last_plain = now
            rate = (step - self._start) / max(now - self._began, 1e-9)
            left = (self._total - step) / rate if rate > 0 else 0.0
            _log.info("step %d/%d  %s  %s left", step, self._total, text, duration(left))

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar:
            self._bar.stop()


class Recorder:
    """Takes a run's records to its files and to the terminal, in the first process only.

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

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        if self._writer:
            self._display.close()
            self._writer.close()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a record, and shows it if it is one of a step that was taken."""
        self.write(step, metrics)
        if self._display and "loss" in metrics:
            self._display.update(step, metrics)

    def advance(self, step: int) -> None:
        """Shows that a step was taken."""
        if self._display:
            self._display.advance(step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a record to the files only."""
        if self._writer:
            self._writer.write(step, metrics)


def watched(metrics: Mapping[str, float]) -> str:
    """The metrics that people watch, in a few words: loss, each objective's betas, and the rate.

    ``plain`` is the loss with all patches weighed alike, which does not move with beta. Betas are
    shown from the first depth's to the last one's, ``beta pixels -0.41..-0.32``, where learned.
    """
    betas: dict[str, dict[int, float]] = {}
    for name, value in metrics.items():
        family, _, place = name.partition("/")
        if family == "beta":
            objective, _, depth = place.partition("/depth_")
            betas.setdefault(objective, {})[int(depth)] = value
    if not any(value for by_depth in betas.values() for value in by_depth.values()):
        betas = {}  # they are not learned
    parts = [f"loss {metrics['loss']:.3f}"]
    if betas:
        parts.append(f"plain {metrics['plain_loss']:.3f}")
    for objective, by_depth in betas.items():
        first, last = by_depth[min(by_depth)], by_depth[max(by_depth)]
        parts.append(f"beta {objective} {first:+.2f}..{last:+.2f}")
    return "  ".join([*parts, f"{metrics['images_per_s']:,.0f} img/s"])


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``, or ``m:ss`` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
