"""Fixtures of the tests of the input pipeline."""

from pathlib import Path

import pytest
from PIL import Image

from image_folders import save


@pytest.fixture
def rgb_folder(tmp_path: Path) -> Path:
    """A folder of two classes in nested folders, and of things that are no images."""
    for number, name in enumerate(["cat/b.png", "cat/deep/a.PNG", "ant/c.jpg", "ant/d.JPEG"]):
        save(Image.new("RGB", (6, 4), (number, 0, 0)), tmp_path / name)
    save(Image.new("RGB", (6, 4)), tmp_path / "cat" / ".hidden.png")
    save(Image.new("RGB", (6, 4)), tmp_path / ".cache" / "thumb.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    return tmp_path
