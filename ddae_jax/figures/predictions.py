"""What a model sees: images, masks, distances and weights in, one PNG each out.

NumPy and matplotlib only. The arrays that a figure shows are made by functions of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator

from ddae_jax.figures import style

HIDDEN_COLOUR = to_rgb("#8d99ae")
"""What covers a hidden patch: a grey with a tint of blue, so that no grey image contains it."""

CAPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "reconstruction": (
            "Image by image: as it is, as the model sees it (hidden patches in grey-blue), "
            "and as the readout of each supervised depth fills it in. Visible patches are copied "
            "from the image, since the loss asks nothing of them. Where targets are normalised, "
            "which leaves mean and contrast of a patch open, hidden ones are shown with their own. "
            "Where pixels lose their weight to features during a run, this is what is left of them."
        ),
        "tokens": (
            "Image by image: as it is, and with its patches painted by their tokens; like "
            "codes have like colours. Where something is predicted, each depth's column shows the "
            "tokens that it predicts for the hidden patches (grey-blue), amid the true ones of the "
            "visible patches, and how many are right."
        ),
        "histograms": (
            "Image by image: as it is, as the model sees it (hidden patches in grey-blue), "
            "its histograms of oriented gradients, drawn as stars of edges, and what each "
            "supervised depth predicts of the hidden ones."
        ),
        "supervision": (
            "What the loss looks at. Distance is measured in patches from each hidden patch to "
            "the nearest visible one; hatched patches are visible and carry no loss. The maps to "
            "the right are the weights of the hidden patches at each depth: 1 is the plain masked "
            "mean. Where β is negative, patches next to visible ones count for more; where it is "
            "positive, distant ones do."
        ),
    }
)
"""How to read each figure, for whoever shows it: one text per function, by its first word."""

_MOST_COLUMNS = 8
_VISIBLE, _HATCH = "#f3f5f8", "#cfd6df"


def reconstruction_figure(
    path: Path,
    images: Num[np.ndarray, "batch height width channels"],
    mask: Bool[np.ndarray, "batch patches"],
    grid: tuple[int, int],
    reconstructions: Float[np.ndarray, "depths batch height width channels"],
    depths: Sequence[int],
) -> None:
    """Draws original, hidden and the reconstruction at each depth, one row per image.

    Visible patches of a reconstruction are taken from the image.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.
        reconstructions: images in [0, 1], as read out at each depth.
        depths: the block after which each was read out.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check_count("reconstructions", len(reconstructions), "depths", depths)
    _draw_rows(
        path,
        {
            "original": to_rgb_images(images),
            "hidden": hide_patches(images, mask, grid),
            **{
                f"depth {depth}": paste_hidden(images, restored, mask, grid)
                for depth, restored in zip(depths, reconstructions, strict=True)
            },
        },
    )


def tokens_figure(
    path: Path,
    images: Num[np.ndarray, "batch height width channels"],
    grid: tuple[int, int],
    tokens: Int[np.ndarray, "batch patches"],
    codes: Float[np.ndarray, "codes features"],
    mask: Bool[np.ndarray, "batch patches"] | None = None,
    predicted: Int[np.ndarray, "depths batch patches"] = (),
    depths: Sequence[int] = (),
) -> None:
    """Draws images and their tokens, as colours; and the predicted ones at each depth.

    Like codes have like colours (:func:`code_colours`). Visible patches of a prediction have their
    own tokens; its title tells how many of the hidden ones are right.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        grid: ``(h, w)`` patches.
        tokens: index of each patch's code.
        codes: unit vectors.
        mask: True where a patch is hidden, if anything is predicted.
        predicted: tokens, as read out at each depth.
        depths: the block after which each was read out.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check_count("predicted", len(predicted), "depths", depths)
    colours, size = code_colours(codes), images.shape[1:3]

    def picture(tokens):
        return np.moveaxis(
            patch_map_to_image(np.moveaxis(colours[tokens], -1, 0), grid, size), 0, -1
        )

    columns = {"original": to_rgb_images(images)}
    if mask is not None:
        columns["hidden"] = hide_patches(images, mask, grid)
    columns["tokens"] = picture(tokens)
    for depth, found in zip(depths, predicted, strict=True):
        right = (found == tokens)[mask].mean()
        columns[f"depth {depth}\n{right:.0%} right"] = picture(np.where(mask, found, tokens))
    _draw_rows(path, columns)


def histograms_figure(
    path: Path,
    images: Num[np.ndarray, "batch height width channels"],
    mask: Bool[np.ndarray, "batch patches"],
    grid: tuple[int, int],
    histograms: Float[np.ndarray, "batch cell_rows cell_columns orientations"],
    predicted: Float[np.ndarray, "depths batch cell_rows cell_columns orientations"],
    directions: Float[np.ndarray, " orientations"],
    depths: Sequence[int],
) -> None:
    """Draws images, their gradient histograms, and the predicted ones at each depth.

    Each cell is a star of edges, the brighter the stronger. Visible patches of a prediction are
    drawn as they are.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.
        histograms: of each cell of each image.
        predicted: histograms, as read out at each depth.
        directions: of the orientations, radians from the right, turning downwards.
        depths: the block after which each was read out.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check_count("predicted", len(predicted), "depths", depths)
    is_hidden = patch_map_to_image(mask, grid, histograms.shape[1:3])[..., None]
    columns = {
        "original": to_rgb_images(images),
        "hidden": hide_patches(images, mask, grid),
        "histograms": stars(histograms, directions),
    }
    for depth, found in zip(depths, predicted, strict=True):
        columns[f"depth {depth}"] = stars(np.where(is_hidden, found, histograms), directions)
    _draw_rows(path, columns)


def code_colours(codes: Float[np.ndarray, "codes features"]) -> Float[np.ndarray, "codes 3"]:
    """A colour in [0, 1] for each code: its place along the three widest directions of them all."""
    centred = codes - codes.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:3].T
    places = np.pad(places, ((0, 0), (0, 3 - places.shape[1])))
    ranks = places.argsort(axis=0).argsort(axis=0)
    return (0.1 + 0.8 * ranks / max(1, len(codes) - 1)).astype(np.float32)


def stars(
    histograms: Float[np.ndarray, "batch cell_rows cell_columns orientations"],
    directions: Float[np.ndarray, " orientations"],
    side: int = 16,
) -> Float[np.ndarray, "batch height width 3"]:
    """Each cell as a picture of ``side`` pixels: a line along the edges of each orientation.

    An edge runs across the direction in which the image rises. The strongest line is white.
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


def supervision_figure(
    path: Path,
    images: Num[np.ndarray, "batch height width channels"],
    mask: Bool[np.ndarray, "batch patches"],
    grid: tuple[int, int],
    distance: Float[np.ndarray, "batch patches"],
    weights: Float[np.ndarray, "objectives depths batch patches"],
    beta: Float[np.ndarray, "objectives depths"],
    objectives: Sequence[str],
    depths: Sequence[int],
) -> None:
    """Draws, per objective and image, the mask, the distance map and the weights of each depth.

    One colour scale serves all distances, and one, logarithmic, all weights: ``log w`` is ``beta``
    times ``log dn``, so equal steps of beta are equal steps of colour. Visible patches are hatched.
    Two or three images are enough to read and fit a screen.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.
        distance: to the nearest visible patch, in patches.
        weights: of each patch in the loss of each objective and depth.
        beta: the exponent of each objective and depth, for the titles.
        objectives: a name each.
        depths: the block after which each was read out.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    weights, beta = np.asarray(weights, np.float32), np.asarray(beta, np.float32)
    _check_count("weights", len(weights), "objectives", objectives)
    _check_count("weights[0]", weights.shape[1], "depths", depths)
    rows, columns = len(objectives) * len(mask), 2 + len(depths)
    height = _image_rows_height(rows, columns, images.shape[1] / images.shape[2])
    hidden = hide_patches(images, mask, grid)
    maps = np.concatenate([np.asarray(distance, np.float32)[None], *weights])
    maps = _hidden_only(maps, mask, grid)
    distance_map, weight_maps = maps[0], maps[1:].reshape(-1, len(depths), *maps.shape[1:])
    distance_norm, weight_norm = _distance_norm(distance_map), _weight_norm(weight_maps)
    with style.figure(path, height + 0.7 * len(objectives) + 0.3) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for index, objective in enumerate(objectives):
            block = axes[index * len(mask) :][: len(mask)]
            space_above = "\n" if index else ""
            _title_block(block[0], space_above + objective, depths, beta[index])
            for row, line in enumerate(block):
                _show(line[0], hidden[row])
                far = _show_map(line[1], distance_map[row], distance_norm, "cividis")
                for cell, weight_map in zip(line[2:], weight_maps[index, :, row], strict=True):
                    weight = _show_map(cell, weight_map, weight_norm, "magma")
        _colour_bar(figure, far, axes[:, :2], "distance to the nearest visible patch (patches)")
        _colour_bar(figure, weight, axes[:, 2:], "weight in the loss (1 = plain mean; log scale)")


def to_rgb_images(
    images: Num[np.ndarray, "*batch height width channels"],
) -> Float[np.ndarray, "*batch height width 3"]:
    """Images as a screen shows them: float RGB in [0, 1].

    uint8 is divided by 255 and floats are clipped; the first channel of one or two is shown as
    grey, the first three of more as colour; NaN is black.
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
        values: row by row over the grid.
        grid: ``(h, w)`` patches.
        size: ``(height, width)`` in pixels, multiples of the grid's.

    Raises:
        ValueError: if the grid does not hold as many patches, or does not divide the size.
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
    """The images in RGB with every hidden patch painted in one colour.

    Raises ``ValueError`` as :func:`patch_map_to_image` does.
    """
    is_hidden = patch_map_to_image(mask, grid, images.shape[1:3])[..., None]
    return np.where(is_hidden, np.asarray(colour, np.float32), to_rgb_images(images))


def paste_hidden(
    images: Num[np.ndarray, "batch height width channels"],
    reconstructions: Num[np.ndarray, "batch height width channels"],
    mask: Bool[np.ndarray, "batch patches"],
    grid: tuple[int, int],
) -> Float[np.ndarray, "batch height width 3"]:
    """The images in RGB with every hidden patch taken from the reconstruction.

    Raises ``ValueError`` as :func:`patch_map_to_image` does.
    """
    is_hidden = patch_map_to_image(mask, grid, images.shape[1:3])[..., None]
    return np.where(is_hidden, to_rgb_images(reconstructions), to_rgb_images(images))


def _check_count(name: str, count: int, expected_name: str, expected: Sequence) -> None:
    if count != len(expected):
        raise ValueError(
            f"{name} holds {count} entries; {expected_name}={tuple(expected)} names {len(expected)}"
        )


def _title_block(
    axes: Sequence[Axes],
    objective: str,
    depths: Sequence[int],
    beta: Float[np.ndarray, " depths"],
) -> None:
    titles = ["hidden", "distance"]
    titles += [
        f"depth {depth}\nβ = {value:+.2f}".replace("-", "\N{MINUS SIGN}")
        for depth, value in zip(depths, beta, strict=True)
    ]
    for cell, title in zip(axes, titles, strict=True):
        cell.set_title(title, loc="center")
    axes[0].annotate(
        objective,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 32),
        textcoords="offset points",
        fontsize=10.5,
        fontweight="bold",
    )


def _hidden_only(
    values: Float[np.ndarray, "*maps batch patches"],
    mask: Bool[np.ndarray, "batch patches"],
    grid: tuple[int, int],
) -> np.ma.MaskedArray:
    """The finite values on the grid, without those of visible patches: ``[*maps, batch, h, w]``."""
    blank = ~np.asarray(mask) | ~np.isfinite(values)
    return np.ma.masked_array(values, blank).reshape(*values.shape[:-1], *grid)


def _distance_norm(distance: np.ma.MaskedArray) -> Normalize:
    return Normalize(0.0, distance.compressed().max(initial=1.0))


def _weight_norm(weights: np.ma.MaskedArray) -> LogNorm:
    """Half to double at least, so that equal weights show as equal; three decades at most."""
    drawn = weights.compressed()
    highest = drawn.max(initial=2.0)
    return LogNorm(max(drawn.min(initial=0.5), highest / 1000), highest, clip=True)


def _draw_rows(
    path: Path, columns: Mapping[str, Float[np.ndarray, "batch height width 3"]]
) -> None:
    """One titled column per picture of an image; as many images a row as eight columns hold."""
    first = next(iter(columns.values()))
    per_row = min(len(first), max(1, _MOST_COLUMNS // len(columns)))
    rows, width = -(-len(first) // per_row), per_row * len(columns)
    height = _image_rows_height(rows, width, first.shape[1] / first.shape[2])
    with style.figure(path, height) as figure:
        axes = figure.subplots(rows, width, squeeze=False)
        for cell in axes.ravel():
            _strip(cell)
        for index in range(len(first)):
            row, begin = index // per_row, index % per_row * len(columns)
            for cell, (title, pictures) in zip(axes[row, begin:], columns.items(), strict=False):
                _show(cell, pictures[index])
                if row == 0:
                    cell.set_title(title, loc="center")


def _show(axes: Axes, picture: Float[np.ndarray, "height width 3"]) -> None:
    axes.imshow(picture)
    _strip(axes)


def _show_map(axes: Axes, values: np.ma.MaskedArray, norm: Normalize, colormap: str) -> AxesImage:
    """One value per patch; where there is none, the hatching of the background shows through."""
    drawn = axes.imshow(values, norm=norm, cmap=colormap, interpolation="nearest")
    axes.set_facecolor(_VISIBLE)
    axes.patch.set(hatch="/////", edgecolor=_HATCH, linewidth=0)
    _strip(axes)
    return drawn


def _strip(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _colour_bar(figure: Figure, drawn: AxesImage, below: np.ndarray, label: str) -> None:
    is_log = isinstance(drawn.norm, LogNorm)
    bar = figure.colorbar(
        drawn,
        ax=below,
        location="bottom",
        aspect=40,
        shrink=0.9,
        fraction=0.05,
        pad=0.02,
        ticks=LogLocator(subs=(1.0, 2.0, 5.0)) if is_log else None,
        format=FuncFormatter(lambda value, _: f"{value:g}"),
    )
    bar.minorticks_off()
    bar.set_label(label)
    bar.outline.set_visible(False)


def _image_rows_height(rows: int, columns: int, height_to_width: float) -> float:
    """The height, in inches, of rows of images below one line of titles."""
    return rows * (style.WIDTH_INCHES / columns * height_to_width - 0.03) + 0.4
