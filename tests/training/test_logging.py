import json

import numpy as np

from ddae_jax.training.logging import read_metrics


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
