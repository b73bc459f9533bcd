"""What a test may ask of a figure that was written."""

import numpy as np
from matplotlib.image import imread


def picture(path):
    """The RGB pixels of a written PNG, checked to be a picture: large, and not of one colour."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 150
    assert 1000 < max(pixels.shape[:2]) < 6000
    assert (pixels < 0.9).any(axis=-1).mean() > 0.001
    return pixels


def has_colour(pixels, colour):
    """Whether any pixel has the colour, up to the rounding to 8 bits."""
    return (np.abs(pixels - np.asarray(colour)[:3]) < 1.5 / 255).all(axis=-1).any()
