"""Figure and table of the accuracy on the features after each block of an encoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ddae_jax.figures import style

_TITLES = {"knn": "k-NN", "linear": "linear probe"}


def depths_figure(
    path: Path,
    depths: Sequence[int],
    rows: Mapping[str, Sequence[float]],
    levels: Mapping[str, float],
) -> None:
    """Draws accuracies after each block, compared with the untrained network and raw pixels.

    Args:
        path: the PNG to write; its folder is made.
        depths: numbers of the blocks, ascending.
        rows: accuracies in [0, 1] after each block, by ``CLASSIFIER`` and ``CLASSIFIER_untrained``.
        levels: accuracies by ``CLASSIFIER_raw_pixels``.
    """
    classifiers = [name for name in rows if f"{name}_untrained" in rows]
    with style.figure(path, 3.6) as figure:
        panels = style.panels(figure, len(classifiers))
        for axes, name in zip(panels, classifiers, strict=True):
            trained, untrained = rows[name], rows[f"{name}_untrained"]
            for values, colour, line, label in (
                (trained, style.ACCENT, "-", "trained"),
                (untrained, style.BASELINE, (0, (5, 3)), "untrained network"),
            ):
                percent = [100 * value for value in values]
                axes.plot(depths, percent, color=colour, linestyle=line, marker="o", label=label)
            pixels = 100 * levels[f"{name}_raw_pixels"]
            axes.axhline(pixels, color=style.MUTED, linestyle=(0, (1, 2)), label="raw pixels")
            axes.set(title=_TITLES.get(name, name), xlabel="depth (block)", xticks=list(depths))
        panels[0].set_ylabel("accuracy (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def depths_table(depths: Sequence[int], rows: Mapping[str, Sequence[float]]) -> str:
    """Returns the accuracies as a text table, one line per depth.

    Args:
        depths: numbers of the blocks.
        rows: accuracies in [0, 1] after each block, by name.
    """
    lines = ["depth" + "".join(f"{name.replace('_', ' '):>18s}" for name in rows)]
    for index, depth in enumerate(depths):
        lines.append(f"{depth:5d}" + "".join(f"{values[index]:18.2%}" for values in rows.values()))
    return "\n".join(lines)
