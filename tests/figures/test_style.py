"""Tests of what all figures share: how their files are written."""

import numpy as np

from ddae_jax.figures.confusion import confusion_figure


def test_what_a_kill_left_of_a_figure_is_removed_with_the_next_one(tmp_path):
    left_over = tmp_path / ".confusion.12345.png"
    left_over.write_bytes(b"half a picture")
    confusion_figure(tmp_path / "confusion.png", np.eye(2, dtype=int), ("a", "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
