"""Writing images into the folders that tests read."""

from pathlib import Path

from PIL import Image


def save(image: Image.Image, path: Path, **options) -> None:
    """Saves an image, and makes the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
