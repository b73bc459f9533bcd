"""Figures of what a model sees and predicts: images, masks, distances and weights as PNG files.

:mod:`ddae_jax.figures.images` makes the arrays that the figures show.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator

from ddae_jax.figures import style
from ddae_jax.figures.images import (
    code_colours,
    hide_patches,
    paste_hidden,
    patch_map_to_image,
    stars,
    to_rgb_images,
)

CAPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "reconstruction": (
            "For each image: the original, the image as the model sees it (hidden patches in "
            "grey-blue), and the reconstruction at each supervised depth. Visible patches are "
            "copied from the original, since the loss does not cover them. If targets are "
            "normalised, the model does not predict the mean and the contrast of a patch; hidden "
            "patches are then shown with their true ones. If the pixel loss loses its weight to a "
            "feature loss during the run, the figure shows what the model still knows of pixels."
        ),
        "tokens": (
            "For each image: the original, and its patches painted by their tokens; similar "
            "codes have similar colours. If tokens are predicted, the column of each depth shows "
            "the predicted tokens of hidden patches (grey-blue in the second column) among the "
            "true tokens of visible patches. Its title is the share of hidden patches whose token "
            "is right."
        ),
        "histograms": (
            "For each image: the original, the image as the model sees it (hidden patches in "
            "grey-blue), its histograms of oriented gradients, drawn as stars of edges, and the "
            "histograms that each supervised depth predicts for hidden patches."
        ),
        "supervision": (
            "The weights in the loss. The distance is from each hidden patch to the nearest "
            "visible one, in patches; hatched patches are visible and do not count in the loss. "
            "The maps on the right show the weights of hidden patches at each depth; where all "
            "weights are 1, the loss is the plain mean over hidden patches. If β is negative, "
            "patches near visible ones weigh more; if it is positive, distant ones do."
        ),
    }
)
"""Caption of each figure, by the name of the function that draws it, without ``_figure``."""

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
    """Draws images, their visible patches, and the reconstruction at each depth.

    Visible patches of a reconstruction are copied from the image.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.
        reconstructions: images in [0, 1], one for each depth.
        depths: supervised depths (blocks).

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
    """Draws images, their tokens as colours, and the tokens predicted at each depth.

    Similar codes have similar colours (:func:`code_colours`). Visible patches of a prediction show
    their true tokens; its title is the share of hidden patches whose token is right.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        grid: ``(h, w)`` patches.
        tokens: index of each patch's code.
        codes: codebook of unit vectors.
        mask: True where a patch is hidden; None if nothing is predicted.
        predicted: predicted tokens, for each depth.
        depths: supervised depths (blocks).

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
    for depth, guesses in zip(depths, predicted, strict=True):
        accuracy = (guesses == tokens)[mask].mean()
        columns[f"depth {depth}\n{accuracy:.0%} right"] = picture(np.where(mask, guesses, tokens))
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
    """Draws images, their gradient histograms, and the histograms predicted at each depth.

    Each cell is drawn as a star of edges (:func:`stars`). Visible patches of a prediction show
    their true histograms.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.
        histograms: histogram of each cell of each image.
        predicted: predicted histograms, for each depth.
        directions: gradient directions of the orientations, radians from the right, turning
            downwards.
        depths: supervised depths (blocks).

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
    for depth, guesses in zip(depths, predicted, strict=True):
        columns[f"depth {depth}"] = stars(np.where(is_hidden, guesses, histograms), directions)
    _draw_rows(path, columns)


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
    """Draws, for each objective and image, the mask, the distance map and the weights per depth.

    All distances share a colour scale, and all weights a logarithmic one: ``log w`` is ``beta``
    times ``log dn``, so equal steps of beta are equal steps of colour. Visible patches are hatched.
    Two or three images are enough, and fit a screen.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1].
        mask: True where a patch is hidden.
        grid: ``(h, w)`` patches.
        distance: distance to the nearest visible patch, in patches.
        weights: weight of each patch in the loss of each objective and depth.
        beta: exponent of each objective and depth, shown in the titles.
        objectives: names of the objectives.
        depths: supervised depths (blocks).

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
                distance_image = _show_map(line[1], distance_map[row], distance_norm, "cividis")
                for cell, weight_map in zip(line[2:], weight_maps[index, :, row], strict=True):
                    weight_image = _show_map(cell, weight_map, weight_norm, "magma")
        _colour_bar(
            figure, distance_image, axes[:, :2], "distance to the nearest visible patch (patches)"
        )
        _colour_bar(
            figure, weight_image, axes[:, 2:], "weight in the loss (1 = plain mean; log scale)"
        )


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
    """Returns ``[*maps, batch, h, w]``, with visible patches and non-finite values masked out."""
    is_masked_out = ~np.asarray(mask) | ~np.isfinite(values)
    return np.ma.masked_array(values, is_masked_out).reshape(*values.shape[:-1], *grid)


def _distance_norm(distance: np.ma.MaskedArray) -> Normalize:
    return Normalize(0.0, distance.compressed().max(initial=1.0))


def _weight_norm(weights: np.ma.MaskedArray) -> LogNorm:
    """Returns a logarithmic scale of the weights, which spans three decades at most.

    It includes 0.5 to 2, so that almost equal weights have almost equal colours.
    """
    values = weights.compressed()
    highest = values.max(initial=2.0)
    return LogNorm(max(values.min(initial=0.5), highest / 1000), highest, clip=True)


def _draw_rows(
    path: Path, columns: Mapping[str, Float[np.ndarray, "batch height width 3"]]
) -> None:
    """Draws the pictures of each image side by side, in at most eight columns.

    Args:
        path: the PNG to write.
        columns: pictures of all images, by title.
    """
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
    """Draws one value per patch; where it is masked, the hatched background shows through."""
    image = axes.imshow(values, norm=norm, cmap=colormap, interpolation="nearest")
    axes.set_facecolor(_VISIBLE)
    axes.patch.set(hatch="/////", edgecolor=_HATCH, linewidth=0)
    _strip(axes)
    return image


def _strip(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _colour_bar(figure: Figure, image: AxesImage, axes: np.ndarray, label: str) -> None:
    """Draws the colour scale of an image below some axes."""
    is_log = isinstance(image.norm, LogNorm)
    bar = figure.colorbar(
        image,
        ax=axes,
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
    """Returns the height, in inches, of rows of images below one line of titles."""
    return rows * (style.WIDTH_INCHES / columns * height_to_width - 0.03) + 0.4
