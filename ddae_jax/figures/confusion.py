"""Figure of a classifier's confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import PowerNorm

from ddae_jax.figures import style

CAPTION = (
    "Each row shows how the test images of one class were classified; the diagonal is the accuracy "
    "of each class."
)
"""Caption of the figure."""

_MOST_NAMED = 30  # number of classes up to which the figure has room for names and numbers
_MOST_PAIRS = 12


def confusion_figure(
    path: Path, confusion: Int[np.ndarray, "classes classes"], names: Sequence[str]
) -> None:
    """Draws the shares of each class's images by predicted class, and the most confused pairs.

    With more than 30 classes, names and numbers of the matrix are left out.

    Args:
        path: the PNG to write; its folder is made.
        confusion: number of images of each class (row) that were assigned to each class (column).
        names: names of the classes.

    Raises:
        ValueError: unless there is one name for each class.
    """
    count = len(confusion)
    if len(names) != count:
        raise ValueError(f"{len(names)} names; the confusion is of {count} classes")
    names = [style.label(name) for name in names]
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    is_named = count <= _MOST_NAMED
    height = 2.6 + 0.26 * count if is_named else 5.2
    with style.figure(path, height) as figure:
        axes, beside = figure.subplots(1, 2, width_ratios=[2, 1])
        drawn = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        axes.grid(False)
        axes.set(
            xlabel="predicted class", ylabel="true class", title="share of each class's images (%)"
        )
        if is_named:
            axes.set_xticks(range(count), names, rotation=60, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(count), names)
            _write_shares(axes, share)
        else:
            figure.colorbar(drawn, ax=axes, shrink=0.8, label="share")
        beside.set(title="most confused", xticks=[], yticks=[])
        beside.spines[:].set_visible(False)
        beside.grid(False)
        lines = [
            f"{share[true, other]:6.1%}  {names[true]} taken for {names[other]}"
            for true, other in most_confused(confusion)[:_MOST_PAIRS]
        ]
        beside.text(0, 1, "\n".join(lines) or "no errors", va="top", transform=beside.transAxes)


def most_confused(confusion: Int[np.ndarray, "classes classes"]) -> list[tuple[int, int]]:
    """Returns pairs ``(true class, predicted class)`` of errors, the most frequent first.

    The frequency of an error is its share of the images of the true class.
    """
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    order = np.argsort(-share, axis=None, kind="stable")
    pairs = [divmod(int(index), len(share)) for index in order[: len(share) * 4]]
    return [pair for pair in pairs if share[pair] > 0]


def worst_classes(
    per_class: Float[np.ndarray, "classes"], names: Sequence[str]
) -> list[tuple[str, float]]:
    """Returns names and accuracies of the classes that have images, the lowest accuracy first."""
    known = [
        (name, float(value)) for name, value in zip(names, per_class, strict=True) if value == value
    ]
    return sorted(known, key=lambda pair: pair[1])


def _write_shares(axes, share: Float[np.ndarray, "classes classes"]) -> None:
    size = 7.5 if len(share) <= 12 else 5.5
    for row, column in np.argwhere(share >= 0.005):
        value = share[row, column]
        axes.text(
            column,
            row,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if value > 0.35 else style.INK,
        )
