"""Figure and table of the locality of attention, for one or more encoders."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ddae_jax.evaluation.attention_distance import Locality, uniform_distance, uniform_mass
from ddae_jax.figures import style

_UNIFORM_LINE = (0, (4, 3))
_DOT = {"linestyle": "", "marker": "o", "markeredgewidth": 0}
_LINE_LENGTH = 130  # number of characters that fit the width of a figure
_DODGE = 0.5  # share of the distance between two depths over which dots of encoders are spread


def locality_figure(path: Path, localities: Mapping[str, Locality]) -> None:
    """Draws the attention distance, and the share of attention within each radius, over depth.

    Each head is a dot; lines are means over the heads; dashed lines are uniform attention. If all
    encoders have the same patch size, a second axis shows distances in pixels.

    Args:
        path: the PNG to write; its folder is made.
        localities: measurements by name of encoder, in the order of the legend; all must have the
            same grid and the same radii.

    Raises:
        ValueError: if there are none, or their grids or radii differ.
    """
    grid, radii = _in_common(localities)
    colours = style.categorical_colours(localities)
    with style.figure(path, 6.2) as figure:
        cells = figure.add_gridspec(2, len(radii), height_ratios=(1.25, 1))
        axes = figure.add_subplot(cells[0, :])
        distances = {name: locality.distance for name, locality in localities.items()}
        _draw(axes, distances, colours, uniform_distance(grid), dot_size=4.2)
        axes.set(title="attention distance", ylabel="mean distance (patches)")
        axes.set_ylim(bottom=0)
        _add_pixels(axes, localities)
        for column, radius in enumerate(radii):
            axes = figure.add_subplot(cells[1, column])
            shares = {name: 100 * locality.mass[radius] for name, locality in localities.items()}
            _draw(axes, shares, colours, 100 * uniform_mass(grid, radius), dot_size=2.8)
            axes.set(title=f"attention within {_patches(radius)}", xlabel="depth (block)")
            axes.set(ylim=(0, 102), ylabel="" if column else "share (%)")
            axes.tick_params(labelleft=column == 0)
        _legends(figure, colours)


def locality_table(localities: Mapping[str, Locality]) -> str:
    """Returns a text table with a block for each encoder, and a line for each depth.

    A line shows the distance, mean and standard deviation over heads, and the share of attention
    within each radius. The last line of the table shows uniform attention.

    Args:
        localities: measurements by name of encoder; all must have the same grid and radii.

    Raises:
        ValueError: if there are none, or their grids or radii differ.
    """
    grid, radii = _in_common(localities)
    titles = "".join(f"{f'<= {radius:g}':>9s}" for radius in radii)
    lines = []
    for name, locality in localities.items():
        lines += [f"{name}: {locality.num_images:,} images, {grid[0]} x {grid[1]} patches"]
        lines += [f"{'':9s}  distance (patches){titles}"]
        for index, distance in enumerate(locality.distance):
            shares = [locality.mass[radius][index].mean() for radius in radii]
            spread = f"{distance.mean():8.2f} ± {distance.std():<9.2f}"
            lines += [_line(f"depth {index + 1}", spread, shares)]
    shares = [uniform_mass(grid, radius) for radius in radii]
    lines += [_line("uniform", f"{uniform_distance(grid):8.2f}{'':12s}", shares)]
    return "\n".join(lines)


def _line(name: str, distance: str, shares: list[float]) -> str:
    return f"  {name:9s}{distance}" + "".join(f"{share:9.1%}" for share in shares)


def _in_common(localities: Mapping[str, Locality]) -> tuple[tuple[int, int], list[float]]:
    """Returns the grid and the radii that all measurements share."""
    if not localities:
        raise ValueError("there is no locality to show")
    (first, locality), *others = localities.items()
    grid, radii = locality.grid, list(locality.mass)
    for name, other in others:
        if other.grid != grid or list(other.mass) != radii:
            raise ValueError(
                f"{name!r} was measured on a grid of {other.grid} within {list(other.mass)}, "
                f"{first!r} on {grid} within {radii}; only the same can be compared"
            )
    return grid, radii


def _draw(
    axes: Axes,
    values: Mapping[str, Float[np.ndarray, "depth heads"]],
    colours: Mapping[str, style.Colour],
    uniform: float,
    dot_size: float,
) -> None:
    """Draws heads as dots, encoders side by side; means as lines; uniform attention as a level."""
    axes.axhline(uniform, color=style.MUTED, linewidth=1.1, linestyle=_UNIFORM_LINE, zorder=1.5)
    offsets = (np.arange(len(values)) - (len(values) - 1) / 2) * _DODGE / len(values)
    for (name, by_head), offset in zip(values.items(), offsets, strict=True):
        depth = np.arange(1, len(by_head) + 1)
        x = np.broadcast_to((depth + offset)[:, None], by_head.shape)
        colour, mean = colours[name], by_head.mean(axis=1)
        dots = {"markersize": dot_size, "alpha": 0.4, "clip_on": False, "zorder": 2}
        axes.plot(x.ravel(), by_head.ravel(), color=colour, **_DOT, **dots)
        axes.plot(depth, mean, color=colour, linewidth=1.8, zorder=3)
    deepest = max(map(len, values.values()))
    axes.set_xlim(0.5, deepest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))


def _add_pixels(axes: Axes, localities: Mapping[str, Locality]) -> None:
    """Adds an axis in pixels on the right, if all encoders have the same patch size."""
    sizes = {locality.patch_size for locality in localities.values()}
    if len(sizes) == 1:
        (size,) = sizes
        to_pixels, to_patches = (lambda patches: patches * size), (lambda pixels: pixels / size)
        pixels = axes.secondary_yaxis("right", functions=(to_pixels, to_patches))
        pixels.set_ylabel("pixels")
        pixels.spines[:].set_visible(False)


def _patches(radius: float) -> str:
    return "1 patch" if radius == 1 else f"{radius:g} patches"


def _legends(figure: Figure, colours: Mapping[str, style.Colour]) -> None:
    """Adds a legend of encoders above, and one of dots and lines below."""
    names = [
        Line2D([], [], color=colour, linewidth=2.2, label=name) for name, colour in colours.items()
    ]
    columns = max(1, _LINE_LENGTH // (8 + max(map(len, colours))))
    figure.legend(handles=names, loc="outside upper center", ncols=min(len(names), columns))
    marks = [
        Line2D([], [], color=style.MUTED, markersize=4.2, alpha=0.6, label="one head", **_DOT),
        Line2D([], [], color=style.MUTED, linewidth=1.8, label="mean over heads"),
        Line2D([], [], color=style.MUTED, linestyle=_UNIFORM_LINE, label="uniform attention"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
