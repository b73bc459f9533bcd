"""The pictures of a run: arrays or logged records in, one PNG each out. NumPy and matplotlib only.

Nothing here touches pyplot or keeps state, so figures can be drawn while a run goes on.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import MappingProxyType

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

Record = Mapping[str, object]
"""One line of ``metrics.jsonl``. Figures skip the records that lack what they draw."""

Colour = str | tuple[float, ...]

HIDDEN_COLOUR = to_rgb("#8d99ae")
"""What covers a hidden patch: a grey with a tint of blue, so that no grey image contains it."""

CAPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "reconstruction": (
            "Each row is one image: as it is, as the model sees it (hidden patches in grey-blue), "
            "and as the readout of each supervised depth fills it in. Visible patches are copied "
            "from the image, since the loss asks nothing of them; each hidden patch has its true "
            "mean and contrast, which normalised targets leave open."
        ),
        "supervision": (
            "What the loss looks at. Distance is measured in patches from each hidden patch to "
            "the nearest visible one; hatched patches are visible and carry no loss. The maps to "
            "the right are the weights of the hidden patches at each depth: 1 is the plain masked "
            "mean. Where β is negative, patches next to visible ones count for more; where it is "
            "positive, distant ones do."
        ),
        "beta": (
            "β sets which hidden patches a depth attends to: below zero the near, easy ones; at "
            "zero all alike; above zero the distant ones. It starts negative and is learned, so a "
            "rising line is a depth that moves on from near to far, each at its own pace."
        ),
        "loss": (
            "The total loss, and the error of each objective at each supervised depth, as "
            "weighted in training. Thin lines are the values as logged, bold ones their running "
            "mean. Because β moves, a weighted loss also falls when attention shifts: compare "
            "runs by what their features are worth."
        ),
        "knn": (
            "A nearest-neighbour classifier on frozen features: each image gets the label that its "
            "neighbours have, and nothing is fitted. The dashed line is the same network before "
            "training, the dotted one the raw pixels: what lies above both was learned."
        ),
        "schedule": (
            "The learning rate (warm-up, then cosine), the momentum of the teacher, and the "
            "global norm of the gradient before clipping. A norm that keeps climbing is an early "
            "sign of divergence."
        ),
    }
)
"""How to read each figure, for whoever shows it: one text per function, by its first word."""

_INK, _MUTED, _LINE = "#1f2933", "#66727f", "#d5dae1"
_ACCENT, _BASELINE = "#1f5fa8", "#c2571a"
_VISIBLE, _HATCH = "#f3f5f8", "#cfd6df"
_DPI = 150
_WIDTH_INCHES = 9.6
_PANELS_A_ROW = 3
_STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": True,
    "grid.color": "#eceff3",
    "grid.linewidth": 0.8,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.6,
}


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
    filled = [paste_hidden(images, restored, mask, grid) for restored in reconstructions]
    columns = [to_rgb_images(images), hide_patches(images, mask, grid), *filled]
    titles = ["original", "hidden", *(f"depth {depth}" for depth in depths)]
    rows, height_to_width = len(mask), images.shape[1] / images.shape[2]
    with _figure(path, _image_rows_height(rows, len(columns), height_to_width)) as figure:
        axes = figure.subplots(rows, len(columns), squeeze=False)
        for column, (title, pictures) in enumerate(zip(titles, columns, strict=True)):
            axes[0, column].set_title(title, loc="center")
            for row, picture in enumerate(pictures):
                _show(axes[row, column], picture)


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
    with _figure(path, height + 0.7 * len(objectives) + 0.3) as figure:
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


def beta_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws every beta against the progress of the run: a panel per objective, a line per depth.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``progress`` in [0, 1] and ``beta/OBJECTIVE/depth_N``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    keys = keys_by_objective(records, "beta")
    if not any(has_series(records, key, "progress") for group in keys.values() for key in group):
        return False
    with _figure(path, 3.1 * _panel_rows(len(keys))) as figure:
        panels = _panels(figure, len(keys), sharey=True)
        colours = depth_colours(records)
        for axes, (objective, depth_keys) in zip(panels, keys.items(), strict=True):
            axes.axhline(0.0, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            for key, depth in depth_keys.items():
                progress, beta = series(records, key, "progress")
                _plot(axes, 100 * progress, beta, colours[depth])
            axes.set(title=objective, xlim=(0, 100), xlabel="progress of the run (%)")
        panels[0].set_ylabel("β")
        _label_sides_of_zero(panels[0])
        _depth_legend(figure, colours)
    return True


def loss_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws the total loss, and each objective's at every depth, over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch``, ``loss`` and ``loss/OBJECTIVE/depth_N``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    keys = {"total": {"loss": None}, **keys_by_objective(records, "loss")}
    drawn = {
        title: group
        for title, group in keys.items()
        if any(has_series(records, key) for key in group)
    }
    if not drawn:
        return False
    with _figure(path, 3.1 * _panel_rows(len(drawn))) as figure:
        colours = depth_colours(records)
        panels = _panels(figure, len(drawn))
        for axes, (title, group) in zip(panels, drawn.items(), strict=True):
            for key, depth in group.items():
                _plot_trend(axes, *series(records, key), colours.get(depth, _ACCENT))
            axes.set(title=title, xlabel="epoch")
        panels[0].set_ylabel("loss")
        _depth_legend(figure, colours)
    return True


def knn_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws k-NN accuracy over epochs, beside the untrained network's and that of raw pixels.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch`` and ``knn/trained``, an accuracy in [0, 1]; and, in any record,
            ``knn/untrained`` and ``knn/raw_pixels``.

    Returns:
        Whether the records hold ``knn/trained``; if not, nothing is written.
    """
    if not has_series(records, "knn/trained"):
        return False
    epochs, accuracy = series(records, "knn/trained")
    with _figure(path, 3.4) as figure:
        axes = figure.subplots()
        last = accuracy[np.isfinite(accuracy)][-1]
        _plot(axes, epochs, 100 * accuracy, _ACCENT, f"trained, {100 * last:.1f} %", marker="o")
        for key, label, colour, line in (
            ("knn/untrained", "untrained network", _BASELINE, (0, (5, 3))),
            ("knn/raw_pixels", "raw pixels", _MUTED, (0, (1, 2))),
        ):
            level = latest(records, key)
            if level is not None:
                name = f"{label}, {100 * level:.1f} %"
                axes.axhline(100 * level, color=colour, linestyle=line, linewidth=1.6, label=name)
        axes.set(xlabel="epoch", ylabel="k-NN accuracy (%)")
        axes.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=3)
    return True


def schedule_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws learning rate, teacher momentum and gradient norm over epochs, as far as logged.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch`` and any of ``learning_rate``, ``momentum``, ``gradient_norm``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    titles = {
        "learning_rate": "learning rate",
        "momentum": "teacher momentum",
        "gradient_norm": "gradient norm",
    }
    drawn = [key for key in titles if has_series(records, key)]
    if not drawn:
        return False
    with _figure(path, 2.6) as figure:
        for axes, key in zip(_panels(figure, len(drawn)), drawn, strict=True):
            epochs, values = series(records, key)
            power = _power_of_ten(values) if key == "learning_rate" else 0
            factor = rf" ($\times\,10^{{{power}}}$)" if power else ""
            plot = _plot_trend if key == "gradient_norm" else _plot
            plot(axes, epochs, values / 10.0**power, _ACCENT)
            axes.set(title=titles[key] + factor, xlabel="epoch")
    return True


def keys_by_objective(records: Sequence[Record], family: str) -> dict[str, dict[str, int]]:
    """The keys ``FAMILY/OBJECTIVE/depth_N`` of all records, per objective: key to depth.

    Objectives come in the order they were logged, depths in that of their number.
    """
    pattern = re.compile(rf"{re.escape(family)}/(?P<objective>.+)/depth_(?P<depth>\d+)")
    found: dict[str, dict[str, int]] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        if match := pattern.fullmatch(key):
            found.setdefault(match["objective"], {})[key] = int(match["depth"])
    return {
        name: dict(sorted(keys.items(), key=lambda pair: pair[1])) for name, keys in found.items()
    }


def depth_colours(records: Sequence[Record]) -> dict[int, Colour]:
    """One colour per supervised depth, from light (shallow) to dark (deep), for every figure."""
    groups = [*keys_by_objective(records, "loss").values()]
    groups += keys_by_objective(records, "beta").values()
    depths = sorted({depth for group in groups for depth in group.values()})
    shades = np.linspace(0.78, 0.08, len(depths)) if len(depths) != 1 else [0.35]
    colormap = matplotlib.colormaps["viridis"]
    return {depth: colormap(shade) for depth, shade in zip(depths, shades, strict=True)}


def series(
    records: Sequence[Record], key: str, against: str = "epoch"
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The logged values of one key, and what they are drawn against, in its order.

    What is no number becomes NaN. Where a resumed run logged the same point again, the later value
    counts.
    """
    points = {
        _number(record[against]): _number(record[key])
        for record in records
        if key in record and np.isfinite(_number(record.get(against)))
    }
    ordered = np.array(sorted(points.items()), dtype=np.float64).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def has_series(records: Sequence[Record], key: str, against: str = "epoch") -> bool:
    """Whether any finite value of the key was logged with what it is drawn against."""
    return bool(np.isfinite(series(records, key, against)[1]).any())


def latest(records: Sequence[Record], key: str) -> float | None:
    """The last finite value of one key, or None."""
    values = (_number(record[key]) for record in reversed(records) if key in record)
    return next((value for value in values if np.isfinite(value)), None)


def running_mean(values: Float[np.ndarray, " points"], window: int) -> Float[np.ndarray, " points"]:
    """The centred mean over an odd ``window``, of what is finite in it; NaN where nothing is."""
    is_finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(is_finite, values, 0.0), kernel, "same")
    count = np.convolve(is_finite, kernel, "same")
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _number(value: object) -> float:
    return float(value) if isinstance(value, Real) else np.nan


def _power_of_ten(values: Float[np.ndarray, " points"]) -> int:
    """The power of ten of the largest value, so that an axis needs no long numbers; 0 for none."""
    largest = np.nanmax(np.abs(values))
    return int(np.floor(np.log10(largest))) if 0 < largest < np.inf else 0


def _plot(
    axes: Axes, x: np.ndarray, y: np.ndarray, colour: Colour, label: str = "", marker: str = ""
) -> None:
    """A line; with a marker where a point alone would not be seen."""
    lone = marker or ("o" if np.isfinite(y).sum() < 3 else "")
    axes.plot(x, y, color=colour, linewidth=1.8, label=label, marker=lone, markersize=4)


def _plot_trend(axes: Axes, x: np.ndarray, y: np.ndarray, colour: Colour) -> None:
    """The values as logged, thin, below their running mean over a fortieth of the points."""
    window = len(y) // 40 | 1
    if window > 1:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.25)
    _plot(axes, x, running_mean(y, window), colour)


def _label_sides_of_zero(axes: Axes) -> None:
    """Says what either sign of beta favours; zero is always in view."""
    low, high = axes.get_ylim()
    margin = 0.15 * max(high - low, 0.5)
    axes.set_ylim(min(low, -margin), max(high, margin))
    for y, text, alignment in (
        (4, "↑ distant patches count more", "bottom"),
        (-4, "↓ near patches count more", "top"),
    ):
        axes.annotate(
            text,
            xy=(0, 0),
            xytext=(6, y),
            textcoords="offset points",
            va=alignment,
            color=_MUTED,
            fontsize=7.5,
        )


def _depth_legend(figure: Figure, colours: Mapping[int, Colour]) -> None:
    handles = [
        Line2D([], [], color=colour, linewidth=2.2, label=f"depth {depth}")
        for depth, colour in colours.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))


@contextmanager
def _figure(path: Path, height_inches: float) -> Iterator[Figure]:
    """An empty figure in the common style, written to ``path`` when the block ends."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.12)


def _image_rows_height(rows: int, columns: int, height_to_width: float) -> float:
    """The height, in inches, of rows of images below one line of titles."""
    return rows * (_WIDTH_INCHES / columns * height_to_width - 0.03) + 0.4


def _panel_rows(count: int) -> int:
    return -(-count // _PANELS_A_ROW)


def _panels(figure: Figure, count: int, sharey: bool = False) -> list[Axes]:
    """As many axes as asked for, side by side and then below."""
    rows = _panel_rows(count)
    columns = min(count, _PANELS_A_ROW)
    axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.remove()
    return list(axes[:count])
