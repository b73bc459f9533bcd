"""Folders with checkpoints, for tests of saving and restoring."""

import shutil

import pytest

from checkpoint_states import save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a folder with checkpoints of steps 10 and 20, which must not be changed."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    assert save(folder, 10, 20) == [10, 20]
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """Returns a copy of :func:`saved` that may be changed."""
    return shutil.copytree(saved, tmp_path / "checkpoints")
