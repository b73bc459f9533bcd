"""Pairs for evaluation: every pair once, whole, whichever process reads it."""

import numpy as np
import pytest

from annotated import pair_source, write_pair, write_pairs
from ddae_jax.data.eval_pairs import eval_pairs


def test_every_pair_once_over_all_processes_whole(tmp_path):
    write_pairs(tmp_path, 5)
    write_pair(tmp_path, "large", np.zeros((31, 40, 3)), np.ones((31, 40)))
    source = pair_source(tmp_path)
    parts = [list(eval_pairs(source, process_index=i, process_count=4)) for i in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    by_index = {int(pair["index"]): pair for part in parts for pair in part}
    assert sorted(by_index) == list(range(6))
    for index, pair in by_index.items():
        np.testing.assert_array_equal(pair["image"], source[index]["image"])
        np.testing.assert_array_equal(pair["annotation"], source[index]["annotation"])


def test_limit_spreads_evenly_and_corrupt_pairs_are_left_out_and_named(tmp_path, caplog):
    write_pairs(tmp_path, 6)
    (tmp_path / "annotations" / "training" / "003.png").write_bytes(b"broken")
    source = pair_source(tmp_path)
    assert [int(pair["index"]) for pair in eval_pairs(source, limit=2)] == [0]
    assert "003.png" in caplog.text
    assert [int(pair["index"]) for pair in eval_pairs(source)] == [0, 1, 2, 4, 5]


def test_more_processes_than_pairs(tmp_path):
    write_pairs(tmp_path, 1)
    assert list(eval_pairs(pair_source(tmp_path), process_index=1, process_count=2)) == []


@pytest.mark.parametrize("options", [{"limit": 0}, {"process_index": 2, "process_count": 2}])
def test_bad_options_are_refused(tmp_path, options):
    write_pairs(tmp_path, 1)
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        eval_pairs(pair_source(tmp_path), **options)
