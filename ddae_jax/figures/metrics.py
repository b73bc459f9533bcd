"""Figures of the course of a run, drawn from its logged records as PNG files."""

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
            "β decides which hidden patches weigh most in the loss of a depth: below zero the "
            "patches near visible ones, which are easier to predict; above zero the distant ones; "
            "at zero all patches weigh the same. β starts below zero and is learned; a rising line "
            "shows a depth that moves from near to distant patches, at its own pace."
        ),
        "loss": (
            "The total loss, and the error of each objective at each supervised depth. If there "
            "are many logged values, bold lines are their running means. If β is learned, the "
            "weighted loss, which is minimised, also falls when weight shifts between patches, "
            "even if nothing is learned; it also changes with the weights of the objectives. The "
            "plain loss, in which all patches have the same weight and all objectives their full "
            "one, does neither: it is the one to watch, and the one drawn for each depth."
        ),
        "knn": (
            "Accuracy of a nearest-neighbour classifier on frozen features: each image gets the "
            "label that most of its neighbours have, and nothing is fitted. The dashed line is "
            "the same network before training, the dotted line raw pixels; whatever lies above "
            "both was learned."
        ),
        "accuracy": (
            "Accuracy on images that are never trained on. Each is classified once, whole and "
            "without augmentation. Top-5 counts an image as correct if its class is among the "
            "five most likely ones."
        ),
        "iou": (
            "Scores on images that are never trained on. The IoU of a class is the intersection "
            "of its true and its predicted pixels over their union. In the mean IoU, every class "
            "counts the same; in pixel accuracy, every pixel does."
        ),
        "codebook": (
            "Perplexity is the number of equally frequent codes that would be as diverse as the "
            "codes of one batch; near 1, the codebook has collapsed. The share of codes counts "
            "those that at least one patch of a batch has. The other two panels show the error of "
            "the teacher's features as reconstructed from codes, and the distance between vectors "
            "and their codes."
        ),
        "collapse": (
            "Measured on the same images at every record. The effective rank is the number of "
            "directions in which features differ between images; the deviation is how much they "
            "differ, averaged over their dimensions. Both fall if an encoder collapses, that is, "
            "if its features become the same for all images. The share of targets given by "
            "position is the part of the feature targets that is the same in all images; near 1, "
            "the targets can be predicted without looking at the image, and teach nothing about "
            "it."
        ),
        "schedule": (
            "The learning rate (warm-up, then cosine; the config's value times batch_size / 256), "
            "the momentum of the teacher if it is a moving average of the student, and the global "
            "norm of the gradient before clipping. A norm that keeps rising is an early sign of "
            "divergence. If the weights of the objectives in the loss change over the run, they "
            "are shown too; an objective of weight 0 is not learned."
        ),
    }
)
"""Caption of each figure, by the name of the function that draws it, without ``_figure``."""


def beta_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws beta over the progress of the run: a panel per objective, a line per depth.

    Args:
        path: the PNG to write; its folder is made.
        records: records with ``progress`` in [0, 1] and ``beta/OBJECTIVE/depth_N``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    keys = keys_by_objective(records, "beta")
    betas = [series(records, key, "progress")[1] for group in keys.values() for key in group]
    if not any(np.nan_to_num(values).any() for values in betas):  # betas of 0 are not learned
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
    """Draws the total loss, and the loss of each objective at every depth, over epochs.

    If the weights of patches are learned, the total is drawn both weighted and plain, and the loss
    of each depth plain only.

    Args:
        path: the PNG to write; its folder is made.
        records: records with ``epoch``, ``loss`` and ``loss/OBJECTIVE/depth_N``; and, if weights
            are learned, ``plain_loss`` and ``plain_loss/OBJECTIVE/depth_N``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    labels = {"loss": "weighted", "plain_loss": "plain"}
    labels = {key: label for key, label in labels.items() if has_series(records, key)}
    per_depth = keys_by_objective(records, "plain_loss") or keys_by_objective(records, "loss")
    per_depth = {
        title: group
        for title, group in per_depth.items()
        if any(has_series(records, key) for key in group)
    }
    count = bool(labels) + len(per_depth)
    if not count:
        return False
    with style.figure(path, 3.1 * style.panel_rows(count)) as figure:
        panels = iter(style.panels(figure, count))
        if labels:
            _draw_total(next(panels), records, labels)
        colours = style.depth_colours(logged_depths(records))
        for axes, (title, group) in zip(panels, per_depth.items(), strict=True):
            for key, depth in group.items():
                _plot_trend(axes, *series(records, key), colours[depth])
            axes.set(title=title, xlabel="epoch")
        figure.axes[0].set_ylabel("loss")
        _depth_legend(figure, colours)
    return True


def _draw_total(axes: Axes, records: Sequence[Record], labels: Mapping[str, str]) -> None:
    """Draws the weighted and the plain loss; a single line if they are the same."""
    losses = {key: series(records, key) for key in labels}
    values = [value for _, value in losses.values()]
    if len(values) == 2 and np.array_equal(*values, equal_nan=True):
        losses.pop("plain_loss")
    for key, colour in (("loss", style.MUTED), ("plain_loss", style.ACCENT)):
        if key in losses:
            _plot_trend(axes, *losses[key], colour if len(losses) > 1 else style.ACCENT)
            axes.lines[-1].set_label(labels[key])
    axes.set(title="total", xlabel="epoch")
    if len(losses) > 1:
        axes.legend(loc="upper right")


def knn_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws k-NN accuracy over epochs, compared with the untrained network and raw pixels.

    Args:
        path: the PNG to write; its folder is made.
        records: records with ``epoch`` and ``knn/trained``, an accuracy in [0, 1]; and, in any
            record, ``knn/untrained`` and ``knn/raw_pixels``.

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
        records: records with ``epoch`` and ``test/top1``, ``test/top5``, accuracies in [0, 1].

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    lines = {"test/top1": ("top-1", style.ACCENT), "test/top5": ("top-5", style.MUTED)}
    return _draw_scores(path, records, lines, "test accuracy (%)")


def iou_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws a segmenter's scores on the test split over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: records with ``epoch`` and ``test/miou``, ``test/pixel_accuracy``, in [0, 1].

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    lines = {
        "test/miou": ("mean IoU", style.ACCENT),
        "test/pixel_accuracy": ("pixel accuracy", style.MUTED),
    }
    return _draw_scores(path, records, lines, "score on the test split (%)")


def schedule_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws learning rate, momentum, gradient norm and weights of objectives, as far as logged.

    Args:
        path: the PNG to write; its folder is made.
        records: records with ``epoch`` and any of ``learning_rate``, ``momentum``,
            ``gradient_norm`` and ``weight/OBJECTIVE``.

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
    """Draws the use of a codebook and the losses of a tokenizer over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: records with ``epoch`` and any of ``codebook/perplexity``, ``codebook/used``,
            ``loss/features`` and ``loss/commitment``.

    Returns:
        Whether the records hold anything to draw; if not, nothing is written.
    """
    titles = {
        "codebook/perplexity": "perplexity of a batch (codes)",
        "codebook/used": "share of codes used in a batch",
        "loss/features": "1 − cosine similarity to the teacher",
        "loss/commitment": "commitment loss",
    }
    return _draw_side_by_side(path, records, titles)


def collapse_figure(path: Path, records: Sequence[Record]) -> bool:
    """Draws metrics of collapse (:mod:`ddae_jax.evaluation.collapse`) over epochs.

    Args:
        path: the PNG to write; its folder is made.
        records: records with ``epoch`` and any of ``rank/student``, ``rank/teacher``,
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
    lines["share of targets given by position"] = {
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
        legend = {}
        for axes, title in zip(style.panels(figure, len(drawn)), drawn, strict=True):
            for key, (label, colour) in drawn[title].items():
                _plot(axes, *series(records, key), colour, label)
                if label == "teacher":  # dashed and on top, as both lines may coincide
                    axes.lines[-1].set(linestyle=(0, (3, 2)), zorder=3)
            axes.set(title=title, xlabel="epoch")
            axes.set_ylim(bottom=0, top=1.02 if title.startswith("share") else None)
            legend |= {line.get_label(): line for line in axes.lines}
        columns = min(len(legend), 8)
        figure.legend(handles=legend.values(), loc="outside lower center", ncols=columns)
    return True


def running_mean(values: Float[np.ndarray, " points"], window: int) -> Float[np.ndarray, " points"]:
    """Returns the mean of finite values in a centred window; NaN if no value in it is finite.

    Args:
        values: evenly spaced values.
        window: odd number of points.
    """
    is_finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(is_finite, values, 0.0), kernel, "same")
    count = np.convolve(is_finite, kernel, "same")
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _power_of_ten(values: Float[np.ndarray, " points"]) -> int:
    """Returns the power of ten of the largest absolute value; 0 if it is 0 or not finite.

    Values are divided by it, so that an axis has short numbers.
    """
    largest = np.nanmax(np.abs(values))
    return int(np.floor(np.log10(largest))) if 0 < largest < np.inf else 0


def _draw_scores(
    path: Path,
    records: Sequence[Record],
    lines: Mapping[str, tuple[str, str]],
    ylabel: str,
) -> bool:
    """Draws one line over epochs for each key that was logged; returns whether there was any.

    ``lines`` gives the label and the colour of each key.
    """
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
    """Draws one panel over epochs for each key that was logged; returns whether there was any."""
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
    """Draws a line; with markers if there are too few points for the line to be seen."""
    marker = marker or ("o" if np.isfinite(y).sum() < 3 else "")
    axes.plot(x, y, color=colour, linewidth=1.8, label=label, marker=marker, markersize=4)


def _plot_trend(axes: Axes, x: np.ndarray, y: np.ndarray, colour: style.Colour) -> None:
    """Draws the logged values thinly, and their running mean over a fortieth of the points."""
    window = len(y) // 40 | 1
    if window > 1:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.25)
    _plot(axes, x, running_mean(y, window), colour)


def _label_sides_of_zero(axes: Axes) -> None:
    """Writes which patches each sign of beta favours; zero is always in view."""
    low, high = axes.get_ylim()
    margin = 0.15 * max(high - low, 0.5)
    axes.set_ylim(min(low, -margin), max(high, margin))
    for y, text, alignment in (
        (4, "↑ distant patches weigh more", "bottom"),
        (-4, "↓ near patches weigh more", "top"),
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
