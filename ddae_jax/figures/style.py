"""Style that all figures share: fonts and colours, layout of panels, and writing as PNG.

Nothing here uses pyplot or keeps state, so that figures can be drawn while a run goes on.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddae_jax.suggestions import printable
from ddae_jax.training.workdir import written_atomically

Colour = str | tuple[float, ...]

INK, MUTED, LINE = "#1f2933", "#66727f", "#d5dae1"
ACCENT, BASELINE = "#1f5fa8", "#c2571a"
_CATEGORIES = (ACCENT, BASELINE, "#2c8a62", "#8a4a9e", "#b08a1e", "#4f9bb8")
_DPI = 150
WIDTH_INCHES = 9.6
_PANELS_A_ROW = 3
_STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": True,
    "grid.color": "#eceff3",
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.6,
}


@contextmanager
def figure(path: Path, height_inches: float) -> Iterator[Figure]:
    """Yields an drawing figure in the common style, and writes it as PNG if the body succeeds.

    Args:
        path: the PNG to write; its folder is made.
        height_inches: height of the figure; its width is :data:`WIDTH_INCHES`.
    """
    for left_over in path.parent.glob(f".{path.stem}.*{path.suffix}"):  # by a kill during writing
        left_over.unlink(missing_ok=True)
    with matplotlib.rc_context(_STYLE):
        drawing = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        yield drawing
        with written_atomically(path) as half_written:
            drawing.savefig(
                half_written, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.12
            )


def label(name: str) -> str:
    """Escapes a name from a user or a file system, so that no ``$`` in it begins a formula."""
    return printable(name).replace("$", r"\$")


def panel_rows(count: int) -> int:
    """Returns the number of rows in which :func:`panels` lays out ``count`` axes."""
    return -(-count // _columns(count))


def panels(figure: Figure, count: int, sharey: bool = False) -> list[Axes]:
    """Adds ``count`` axes to a figure, row by row.

    Args:
        figure: an drawing figure.
        count: number of axes.
        sharey: whether all axes have the same limits of y.
    """
    rows = panel_rows(count)
    columns = _columns(count)
    axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.remove()
    return list(axes[:count])


def _columns(count: int) -> int:
    """Returns the number of columns: at most three, and two for four axes, to fill both rows."""
    return 2 if count == 4 else min(count, _PANELS_A_ROW)


def depth_colours(depths: Sequence[int]) -> dict[int, Colour]:
    """Returns a colour for each supervised depth, from light (shallow) to dark (deep)."""
    shades = np.linspace(0.78, 0.08, len(depths)) if len(depths) != 1 else [0.35]
    colormap = matplotlib.colormaps["viridis"]
    return {depth: colormap(shade) for depth, shade in zip(depths, shades, strict=True)}


def categorical_colours(names: Iterable[str]) -> dict[str, Colour]:
    """Returns a colour for each name of things without an order; six colours are repeated."""
    return dict(zip(names, cycle(_CATEGORIES), strict=False))
