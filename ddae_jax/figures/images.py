"""Images as figures show them: RGB arrays with hidden, filled-in or coloured patches."""

import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib.colors import to_rgb

HIDDEN_COLOUR = to_rgb("#8d99ae")
"""Colour that covers hidden patches: a bluish grey, so that no grey image contains it."""


def to_rgb_images(
    images: Num[np.ndarray, "*batch height width channels"],
) -> Float[np.ndarray, "*batch height width 3"]:
    """Converts images to float RGB in [0, 1].

    uint8 is divided by 255, and floats are clipped. Of one or two channels the first is shown as
    grey; of three or more the first three are shown as colour. NaN becomes black.
    """
    images = np.asarray(images)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    values = np.clip(np.nan_to_num(images.astype(np.float32) / scale), 0.0, 1.0)
    if values.shape[-1] < 3:
        return np.repeat(values[..., :1], 3, axis=-1)
    return values[..., :3]


def patch_map_to_image(
    values: Num[np.ndarray, "*batch patches"], grid: tuple[int, int], size: tuple[int, int]
) -> Num[np.ndarray, "*batch height width"]:
    """Spreads one value per patch over the pixels of that patch.

    Args:
        values: one value per patch, row by row over the grid.
        grid: ``(h, w)`` patches.
        size: ``(height, width)`` in pixels, multiples of the grid's.

    Raises:
        ValueError: if the grid has another number of patches, or does not divide the size.
    """
    values = np.asarray(values)
    (h, w), (height, width) = grid, size
    if values.shape[-1] != h * w:
        raise ValueError(f"values of {values.shape[-1]} patches; a grid of {h}x{w} has {h * w}")
    if height % h or width % w:
        raise ValueError(f"an image of {height}x{width} pixels is not divided by a {h}x{w} grid")
    on_grid = values.reshape(*values.shape[:-1], h, w)
    return on_grid.repeat(height // h, axis=-2).repeat(width // w, axis=-1)


def hide_patches(
    images: Num[np.ndarray, "batch height width channels"],
    mask: Bool[np.ndarray, "batch patches"],
    grid: tuple[int, int],
    colour: tuple[float, float, float] = HIDDEN_COLOUR,
) -> Float[np.ndarray, "batch height width 3"]:
    """Returns the images in RGB with every hidden patch painted in one colour.

    Args:
        images: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.
        colour: RGB in [0, 1].

    Raises:
        ValueError: as :func:`patch_map_to_image` does.
    """
    is_hidden = patch_map_to_image(mask, grid, images.shape[1:3])[..., None]
    return np.where(is_hidden, np.asarray(colour, np.float32), to_rgb_images(images))


def paste_hidden(
    images: Num[np.ndarray, "batch height width channels"],
    reconstructions: Num[np.ndarray, "batch height width channels"],
    mask: Bool[np.ndarray, "batch patches"],
    grid: tuple[int, int],
) -> Float[np.ndarray, "batch height width 3"]:
    """Returns the images in RGB with every hidden patch taken from the reconstruction.

    Args:
        images, reconstructions: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.

    Raises:
        ValueError: as :func:`patch_map_to_image` does.
    """
    is_hidden = patch_map_to_image(mask, grid, images.shape[1:3])[..., None]
    return np.where(is_hidden, to_rgb_images(reconstructions), to_rgb_images(images))


def code_colours(codes: Float[np.ndarray, "codes width"]) -> Float[np.ndarray, "codes 3"]:
    """Returns an RGB colour in [0, 1] for each code, such that similar codes have similar colours.

    The channels are the ranks of a code along the first three principal directions of all codes.
    """
    centred = codes - codes.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    coordinates = centred @ directions[:3].T
    coordinates = np.pad(coordinates, ((0, 0), (0, 3 - coordinates.shape[1])))
    ranks = coordinates.argsort(axis=0).argsort(axis=0)
    return (0.1 + 0.8 * ranks / max(1, len(codes) - 1)).astype(np.float32)


def stars(
    histograms: Float[np.ndarray, "batch cell_rows cell_columns orientations"],
    directions: Float[np.ndarray, " orientations"],
    side: int = 16,
) -> Float[np.ndarray, "batch height width 3"]:
    """Draws each cell of gradient histograms as a star: a line along the edges of each orientation.

    An edge runs across the direction of the gradient. The brighter a line, the stronger the
    gradient; the strongest line of all is white.

    Args:
        histograms: histogram of each cell of each image; negative values count as 0.
        directions: gradient directions of the orientations, radians from the right, turning
            downwards.
        side: side of a cell in the result, pixels.
    """
    middle = (np.arange(side) - (side - 1) / 2) / (side / 2)
    down, right = np.meshgrid(middle, middle, indexing="ij")
    angle = np.asarray(directions)[:, None, None]
    along_gradient = right * np.cos(angle) + down * np.sin(angle)
    is_line = (np.abs(along_gradient) < 1.2 / side) & (down**2 + right**2 <= 0.9)
    values = np.clip(histograms, 0, None)
    drawn = np.einsum("bhwo,oij->bhiwj", values, is_line.astype(np.float32))
    batch, h, _, w, _ = drawn.shape
    drawn = drawn.reshape(batch, h * side, w * side) / max(float(drawn.max()), 1e-6)
    return np.repeat(np.sqrt(drawn)[..., None], 3, axis=-1)
