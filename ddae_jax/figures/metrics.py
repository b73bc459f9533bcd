"""How a run went: logged records in, one PNG each out. NumPy and matplotlib only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ddae_jax.figures import style
from ddae_jax.training.metrics import (
    Record,
    has_series,
    keys_by_depth,
    keys_by_objective,
    latest,
    logged_depths,
    series,
)

CAPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "beta": (
            "β sets which hidden patches a depth attends to: below zero the near, easy ones; at "
            "zero all alike; above zero the distant ones. It starts negative and is learned, so a "
            "rising line is a depth that moves on from near to far, each at its own pace."
        ),
        "loss": (
            "The total loss, and the error of each objective at each supervised depth; bold lines "
            "are running means over the values as logged, where these are many. Where β is "
            "learned, the weighted loss, which is minimised, also falls when attention shifts, "
            "even if nothing is learned, and it moves where the weights of objectives change over "
            "the run. The plain one, with all patches alike and all objectives at their whole "
            "weight, does neither: it is the one to watch, and the one drawn for each depth."
        ),
        "knn": (
            "A nearest-neighbour classifier on frozen features: each image gets the label that its "
            "neighbours have, and nothing is fitted. The dashed line is the same network before "
            "training, the dotted one the raw pixels: what lies above both was learned."
        ),
        "accuracy": (
            "Accuracy on the images that are never trained on, each seen once, whole, without "
            "augmentation. Top-5 counts an image whose class is among the five most likely ones."
        ),
        "iou": (
            "Scores on the images that are never trained on. IoU is intersection over union, of "
            "the pixels of a class and of those taken for it; its mean counts every class alike, "
            "pixel accuracy every pixel."
        ),
        "codebook": (
            "Perplexity is how many equally used codes would be as varied as those of one batch: "
            "near 1, the codebook has collapsed; the share counts codes that some patch has. "
            "Then, how far the teacher's features, as told from the codes, are off, and how far "
            "the vectors are from their codes."
        ),
        "collapse": (
            "Of the same images at every record: in how many directions features differ from image "
            "to image, and how much they do, on average over their dimensions. Both fall where an "
            "encoder collapses, that is, makes the same of all images. Then, the share of the "
            "feature targets that is the same in all images, place by place: near 1, they can be "
            "told without a look at the image, and teach nothing of it."
        ),
        "schedule": (
            "The learning rate (warm-up, then cosine; the config's times batch_size / 256), the "
            "momentum of the teacher where that follows the student, and the global norm of the "
            "gradient before clipping. A norm that keeps climbing is an early sign of divergence. "
            "Where they change over the run, the weights of the objectives in the loss too: an "
            "objective of weight 0 is not learned."
        ),
    }
)
"""How to read each figure, for whoever shows it: one text per function, by its first word."""


def beta_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws every beta against the progress of the run: a panel per objective, a line per depth.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``progress`` in [0, 1] and ``beta/OBJECTIVE/depth_N``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    keys = keys_by_objective(records, "beta")
    found = [series(records, key, "progress")[1] for group in keys.values() for key in group]
    if not any(np.nan_to_num(values).any() for values in found):  # 0 throughout is not learned
        return False
    with style.figure(path, 3.1 * style.panel_rows(len(keys))) as figure:
        panels = style.panels(figure, len(keys), sharey=True)
        colours = style.depth_colours(logged_depths(records))
        for axes, (objective, depth_keys) in zip(panels, keys.items(), strict=True):
            axes.axhline(0.0, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
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

    Where the weights of patches are learned, the total is drawn with them and without, and depths
    without them alone.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch``, ``loss`` and ``loss/OBJECTIVE/depth_N``; and, where weights are
            learned, ``plain_loss`` and ``plain_loss/OBJECTIVE/depth_N``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    total = {"loss": "weighted", "plain_loss": "plain"}
    total = {key: label for key, label in total.items() if has_series(records, key)}
    per_depth = keys_by_objective(records, "plain_loss") or keys_by_objective(records, "loss")
    per_depth = {
        title: group
        for title, group in per_depth.items()
        if any(has_series(records, key) for key in group)
    }
    count = bool(total) + len(per_depth)
    if not count:
        return False
    with style.figure(path, 3.1 * style.panel_rows(count)) as figure:
        panels = iter(style.panels(figure, count))
        if total:
            _draw_total(next(panels), records, total)
        colours = style.depth_colours(logged_depths(records))
        for axes, (title, group) in zip(panels, per_depth.items(), strict=True):
            for key, depth in group.items():
                _plot_trend(axes, *series(records, key), colours[depth])
            axes.set(title=title, xlabel="epoch")
        figure.axes[0].set_ylabel("loss")
        _depth_legend(figure, colours)
    return True


def _draw_total(axes: Axes, records: Sequence[Record], labels: Mapping[str, str]) -> None:
    """The weighted loss and the plain one; a single line where they are the same."""
    drawn = {key: series(records, key) for key in labels}
    values = [value for _, value in drawn.values()]
    if len(values) == 2 and np.array_equal(*values, equal_nan=True):
        drawn.pop("plain_loss")
    for key, colour in (("loss", style.MUTED), ("plain_loss", style.ACCENT)):
        if key in drawn:
            _plot_trend(axes, *drawn[key], colour if len(drawn) > 1 else style.ACCENT)
            axes.lines[-1].set_label(labels[key])
    axes.set(title="total", xlabel="epoch")
    if len(drawn) > 1:
        axes.legend(loc="upper right")


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
    with style.figure(path, 3.4) as figure:
        axes = figure.subplots()
        last = accuracy[np.isfinite(accuracy)][-1]
        _plot(
            axes, epochs, 100 * accuracy, style.ACCENT, f"trained, {100 * last:.1f} %", marker="o"
        )
        for key, label, colour, line in (
            ("knn/untrained", "untrained network", style.BASELINE, (0, (5, 3))),
            ("knn/raw_pixels", "raw pixels", style.MUTED, (0, (1, 2))),
        ):
            level = latest(records, key)
            if level is not None:
                name = f"{label}, {100 * level:.1f} %"
                axes.axhline(100 * level, color=colour, linestyle=line, linewidth=1.6, label=name)
        axes.set(xlabel="epoch", ylabel="k-NN accuracy (%)")
        axes.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=3)
    return True


def accuracy_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws a classifier's accuracy on the test split over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch`` and ``test/top1``, ``test/top5``, accuracies in [0, 1].

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    lines = {"test/top1": ("top-1", style.ACCENT), "test/top5": ("top-5", style.MUTED)}
    return _draw_scores(path, records, lines, "test accuracy (%)")


def iou_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws the scores of a segmentation of the test split over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch`` and ``test/miou``, ``test/pixel_accuracy``, in [0, 1].

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    lines = {
        "test/miou": ("mean IoU", style.ACCENT),
        "test/pixel_accuracy": ("pixel accuracy", style.MUTED),
    }
    return _draw_scores(path, records, lines, "on the test split (%)")


def schedule_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws learning rate, momentum, gradient norm and objectives' weights, as far as logged.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch`` and any of ``learning_rate``, ``momentum``, ``gradient_norm`` and
            ``weight/OBJECTIVE``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    titles = {
        "learning_rate": "learning rate",
        "momentum": "teacher momentum",
        "gradient_norm": "gradient norm",
    }
    weights = dict.fromkeys(key for r in records for key in r if key.startswith("weight/"))
    for key in weights:
        titles[key] = "weight of " + key.removeprefix("weight/").replace("_", " ")
    return _draw_side_by_side(path, records, titles)


def codebook_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws how much of a codebook is used, and a tokenizer's losses, over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch`` and any of ``codebook/perplexity``, ``codebook/used``,
            ``loss/features`` and ``loss/commitment``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    titles = {
        "codebook/perplexity": "perplexity of a batch (codes)",
        "codebook/used": "share of codes in a batch",
        "loss/features": "1 − cosine to the teacher",
        "loss/commitment": "commitment loss",
    }
    return _draw_side_by_side(path, records, titles)


def collapse_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws how well features tell images apart, and how alike feature targets are, over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: with ``epoch`` and any of ``rank/student``, ``rank/teacher``,
            ``deviation/student``, ``deviation/teacher`` and ``position_share/depth_N``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    networks = {"student": style.ACCENT, "teacher": style.BASELINE}
    lines = {
        title: {f"{family}/{name}": (name, colour) for name, colour in networks.items()}
        for title, family in (("effective rank", "rank"), ("deviation over images", "deviation"))
    }
    shares = keys_by_depth(records, "position_share")
    colours = style.depth_colours(sorted({*logged_depths(records), *shares.values()}))
    lines["share of targets told by place"] = {
        key: (f"depth {depth}", colours[depth]) for key, depth in shares.items()
    }
    drawn = {
        title: {key: line for key, line in group.items() if has_series(records, key)}
        for title, group in lines.items()
    }
    drawn = {title: group for title, group in drawn.items() if group}
    if not drawn:
        return False
    with style.figure(path, 3.1 * style.panel_rows(len(drawn))) as figure:
        named = {}
        for axes, title in zip(style.panels(figure, len(drawn)), drawn, strict=True):
            for key, (label, colour) in drawn[title].items():
                _plot(axes, *series(records, key), colour, label)
                if label == "teacher":  # which the student may hide
                    axes.lines[-1].set(linestyle=(0, (3, 2)), zorder=3)
            axes.set(title=title, xlabel="epoch")
            axes.set_ylim(bottom=0, top=1.02 if title.startswith("share") else None)
            named |= {line.get_label(): line for line in axes.lines}
        figure.legend(handles=named.values(), loc="outside lower center", ncols=min(len(named), 8))
    return True


def running_mean(values: Float[np.ndarray, " points"], window: int) -> Float[np.ndarray, " points"]:
    """The centred mean over an odd ``window``, of what is finite in it; NaN where nothing is."""
    is_finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(is_finite, values, 0.0), kernel, "same")
    count = np.convolve(is_finite, kernel, "same")
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _power_of_ten(values: Float[np.ndarray, " points"]) -> int:
    """The power of ten of the largest value, so that an axis needs no long numbers; 0 for none."""
    largest = np.nanmax(np.abs(values))
    return int(np.floor(np.log10(largest))) if 0 < largest < np.inf else 0


def _draw_scores(
    path: Path,
    records: Sequence[Record],
    lines: Mapping[str, tuple[str, str]],
    ylabel: str,
) -> bool:
    """One line over epochs for each key that was logged, by label and colour."""
    drawn = {key: line for key, line in lines.items() if has_series(records, key)}
    if not drawn:
        return False
    with style.figure(path, 3.4) as figure:
        axes = figure.subplots()
        for key, (label, colour) in drawn.items():
            epochs, score = series(records, key)
            last = 100 * score[np.isfinite(score)][-1]
            _plot(axes, epochs, 100 * score, colour, f"{label}, {last:.1f} %", marker="o")
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=2)
    return True


def _draw_side_by_side(path: Path, records: Sequence[Record], titles: Mapping[str, str]) -> bool:
    """One panel over epochs for each key that was logged; whether there was any."""
    drawn = [key for key in titles if has_series(records, key)]
    if not drawn:
        return False
    with style.figure(path, 2.6 * style.panel_rows(len(drawn))) as figure:
        for axes, key in zip(style.panels(figure, len(drawn)), drawn, strict=True):
            epochs, values = series(records, key)
            power = _power_of_ten(values) if key == "learning_rate" else 0
            factor = rf" ($\times\,10^{{{power}}}$)" if power else ""
            plot = _plot_trend if key == "gradient_norm" else _plot
            plot(axes, epochs, values / 10.0**power, style.ACCENT)
            axes.set(title=titles[key] + factor, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            if key.startswith("weight/"):
                axes.set_ylim(bottom=0)
    return True


def _plot(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    colour: style.Colour,
    label: str = "",
    marker: str = "",
) -> None:
    """A line; with a marker where a point alone would not be seen."""
    lone = marker or ("o" if np.isfinite(y).sum() < 3 else "")
    axes.plot(x, y, color=colour, linewidth=1.8, label=label, marker=lone, markersize=4)


def _plot_trend(axes: Axes, x: np.ndarray, y: np.ndarray, colour: style.Colour) -> None:
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
            color=style.MUTED,
            fontsize=7.5,
        )


def _depth_legend(figure: Figure, colours: Mapping[int, style.Colour]) -> None:
    handles = [
        Line2D([], [], color=colour, linewidth=2.2, label=f"depth {depth}")
        for depth, colour in colours.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))
