import errno
import io
import json
import logging
import math
import struct

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ddae_jax.training import display, metrics
from ddae_jax.training.display import format_duration, set_up_logging
from ddae_jax.training.metrics import MetricsWriter, read_metrics


def strict_records(path):
    """Reads records with a strict JSON reader, which refuses NaN."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def events(folder):
    """Reads events of TensorBoard's files by their framing: length, CRC, bytes, CRC."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


# ---- metrics.jsonl


def test_records_are_read_in_order_and_torn_lines_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "note": "a\u2028b"}, {"step": 2, "loss": float("nan")}, {"step": 3}]
    first, second, third = (json.dumps(line, ensure_ascii=False) for line in lines)
    torn_inside_a_letter = '{"step": 4, "note": "é'.encode()[:-1]
    text = f'{first}\n{{"step": 2, "lo\n{second}\n\n12\n{third}\n'
    path.write_bytes(text.encode() + torn_inside_a_letter)
    records = read_metrics(path)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert np.isnan(records[1]["loss"])


def test_a_run_that_logged_nothing_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_each_record_is_a_line_that_is_there_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, None, start_step=0)
    records = [{"step": 1, "loss": 0.1, "beta/pixels/depth_6": -0.5}, {"step": 2, "loss": 1e-30}]
    for count, record in enumerate(records, start=1):
        metrics = dict(record)
        writer.write(metrics.pop("step"), metrics)
        assert strict_records(path) == records[:count]  # the file is still open
    writer.close()
    assert path.read_text().endswith("\n")


def test_steps_taken_after_the_last_checkpoint_are_dropped_on_continuing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, None, start_step=0)
    for step in (0, 10, 20, 30):
        writer.write(step, {"loss": step / 10})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 40, "lo')
    writer = MetricsWriter(path, None, start_step=20)
    assert [record["step"] for record in strict_records(path)] == [0, 10, 20]
    writer.write(30, {"loss": 7.0})
    writer.close()
    assert strict_records(path) == [
        {"step": 0, "loss": 0.0},
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": 7.0},
    ]


def test_a_run_that_starts_anew_drops_all_that_is_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "knn/untrained": 0.5}\n{"step": 5, "loss": 1.0}\n')
    MetricsWriter(path, None, start_step=0).close()
    assert strict_records(path) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_strict_json(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, None, start_step=0)
    writer.write(1, {"loss": bad, "rate": 2.0})
    writer.close()
    assert strict_records(path) == [{"step": 1, "loss": None, "rate": 2.0}]
    assert read_metrics(path) == strict_records(path)


# ---- TensorBoard


def test_tensorboard_holds_every_scalar(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events", start_step=0)
    writer.write(1, {"loss": 0.5, "beta/pixels/depth_6": -0.25})
    writer.write(2, {"loss": math.nan})
    writer.close()
    found = scalars(tmp_path / "events")
    assert math.isnan(found.pop(("loss", 2)))
    assert found == {("loss", 1): 0.5, ("beta/pixels/depth_6", 1): -0.25}


def test_tensorboard_is_told_where_a_run_continues(tmp_path):
    for start_step in (0, 20):
        writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events", start_step)
        writer.write(start_step + 10, {"loss": 1.0})
        writer.close()
    found = events(tmp_path / "events")
    starts = [event.step for event in found if event.session_log.status == SessionLog.START]
    assert starts == [0, 21]  # TensorBoard drops earlier events from step 21 on


def test_a_run_that_starts_over_drops_the_events_of_the_one_that_was_killed(tmp_path):
    for loss in (3.0, 2.0):
        writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0)
        writer.write(0, {"loss": loss})
        writer.close()
    found = events(tmp_path / "tensorboard")
    starts = [event.step for event in found if event.session_log.status == SessionLog.START]
    assert starts == [0, 0]


def test_a_full_disk_ends_the_events_with_one_warning_and_nothing_else(
    tmp_path, monkeypatch, caplog
):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0)

    def disk_is_full(self, event):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics.EventsWriter, "write_event", disk_is_full)
    for step in range(100):  # more steps than any queue holds
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 100
    assert caplog.text.count("No space left on device") == 1


def test_without_tensorboard_no_events_are_written(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", None, start_step=0)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# ---- the log


@pytest.fixture
def restored_logging():
    """Restores handlers and levels that a test changes."""
    loggers = [logging.getLogger(name) for name in (None, "absl", "ddae_jax", "__main__")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


def messages(is_primary, logger):
    set_up_logging(is_primary)
    log = logging.getLogger(logger)
    log.info("progress made")
    log.warning("something odd")
    logging.getLogger("absl").warning("Orbax talks")
    logging.getLogger("other").info("other talks")


# A command that python -m runs is the module __main__.
@pytest.mark.parametrize("logger", ["ddae_jax.anything", "__main__"])
@pytest.mark.parametrize(
    ("is_primary", "expected"),
    [(True, ["progress made", "something odd"]), (False, ["something odd"])],
)
def test_the_log_goes_to_stderr_in_plain_lines_and_only_the_first_process_tells_all(
    is_primary, expected, logger, restored_logging, monkeypatch, capsys
):
    monkeypatch.setattr(display, "_console", Console(file=io.StringIO()))
    messages(is_primary, logger)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == expected
    assert "\x1b" not in shown.err


def test_the_log_is_rich_on_a_terminal(restored_logging, monkeypatch):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    monkeypatch.setattr(display, "_console", console)
    messages(is_primary=True, logger="ddae_jax.anything")
    assert "progress made" in text.getvalue()
    assert "\x1b[" in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (9.4, "0:09"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.5, "1:00:00"),
        (3661, "1:01:01"),
        (90_000, "25:00:00"),
    ],
)
def test_durations_read_as_clocks_do(seconds, shown):
    assert format_duration(seconds) == shown
