"""Figure of semantic segmentation: true and predicted classes as colours over the images."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ddae_jax.data.annotations import IGNORED
from ddae_jax.figures import style
from ddae_jax.figures.images import to_rgb_images

CAPTION = (
    "For each image: the original, its true classes and its predicted classes, one colour per "
    "class. Hatched pixels are not annotated and do not count. The title of a prediction gives the "
    "share of annotated pixels that are right."
)
"""Caption of the figure."""

NUM_COLOURS = 256

_OPACITY = 0.62
_IGNORED, _HATCH = to_rgb("#c9ced6"), to_rgb("#8d99ae")
_STRIPE_WIDTH, _STRIPE_WIDTH_AT = 3, 360  # pixels of a stripe in an image of this height
_LEAST_SIDE_FOR_LINES = 128
_MOST_IN_LEGEND, _LEGEND_COLUMNS = 40, 6
_LEGEND_ROW_INCHES = 0.19
# In CIE L*a*b*: neither too dark nor too light to be distinguished; neither grey, which stands for
# ignored pixels, nor glaring.
_LIGHTNESS, _CHROMA = (35.0, 90.0), (22.0, 80.0)
_LEVELS_A_CHANNEL = 18


def overlay_figure(
    path: Path,
    images: Sequence[Num[np.ndarray, "height width channels"]],
    annotations: Sequence[Int[np.ndarray, "height width"]],
    predictions: Sequence[Int[np.ndarray, "height width"]],
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws images, their true and their predicted classes, one row per image, and a legend.

    Args:
        path: the PNG to write; its folder is made.
        images: uint8, or float in [0, 1]; they may differ in size.
        annotations: true class of each pixel; :data:`IGNORED` where there is none.
        predictions: predicted class of each pixel.
        class_names: names of the classes; without them, the legend shows their numbers.

    Raises:
        ValueError: if there are no images, or the shapes or names do not fit each other.
    """
    _check(images, annotations, predictions, class_names)
    images = [np.asarray(image) for image in images]
    legend = _legend(annotations, predictions, class_names)
    ratios = [image.shape[0] / image.shape[1] for image in images]
    height = sum(style.WIDTH_INCHES / 3 * ratio + 0.1 for ratio in ratios) + 0.4
    height += _LEGEND_ROW_INCHES * -(-len(legend) // _LEGEND_COLUMNS) + 0.2
    with style.figure(path, height) as figure:
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        axes = figure.subplots(len(images), 3, squeeze=False, height_ratios=ratios)
        for row, *arrays in zip(axes, images, annotations, predictions, strict=True):
            _draw_row(row, *arrays)
        axes[0, 0].set_title("image")
        axes[0, 1].set_title("truth")
        _draw_legend(figure, legend)


@functools.cache
def class_colours() -> Float[np.ndarray, "256 3"]:
    """Returns a colour in [0, 1] for each of 256 classes, always the same; none is grey.

    Each colour is the one that is farthest, in CIE L*a*b*, from all before it, so that the first
    classes have the most different colours.
    """
    level = np.linspace(0, 1, _LEVELS_A_CHANNEL)
    candidates = np.stack(np.meshgrid(level, level, level, indexing="ij"), -1).reshape(-1, 3)
    lab = _to_lab(candidates)
    is_usable = np.ones(len(lab), bool)
    for values, (least, most) in (
        (lab[:, 0], _LIGHTNESS),
        (np.hypot(lab[:, 1], lab[:, 2]), _CHROMA),
    ):
        is_usable &= (values > least) & (values < most)
    candidates, lab = candidates[is_usable], lab[is_usable]
    chosen = [int(lab[:, 2].argmin())]  # the bluest
    nearest = np.full(len(lab), np.inf)
    while len(chosen) < NUM_COLOURS:
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return candidates[chosen]


def overlay(
    image: Num[np.ndarray, "height width channels"], labels: Int[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width 3"]:
    """Returns the image in grey, with the colours of classes over it, hatched where there are none.

    In images with sides of at least 128 pixels, light lines separate the classes.

    Args:
        image: uint8, or float in [0, 1].
        labels: class of each pixel; :data:`IGNORED` where there is none.
    """
    grey = to_rgb_images(image).mean(axis=-1, keepdims=True)
    colours = class_colours()[np.minimum(labels, NUM_COLOURS - 1)]
    colours = np.where((labels == IGNORED)[..., None], _hatching(labels.shape), colours)
    blended = _OPACITY * colours + (1 - _OPACITY) * grey
    if min(labels.shape) < _LEAST_SIDE_FOR_LINES:
        return blended
    return np.where(_is_edge(labels)[..., None], 0.25 * blended + 0.75, blended)


def _hatching(size: tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    width = max(1, round(_STRIPE_WIDTH * size[0] / _STRIPE_WIDTH_AT))
    rows, columns = np.indices(size)
    is_stripe = (rows + columns) // width % 3 == 0
    return np.where(is_stripe[..., None], _HATCH, _IGNORED)


def _is_edge(labels: Int[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Returns whether the pixel above or to the left of each pixel is of another class."""
    is_edge = np.zeros(labels.shape, bool)
    is_edge[1:] |= labels[1:] != labels[:-1]
    is_edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return is_edge


def _draw_row(
    axes: Sequence[Axes],
    image: Num[np.ndarray, "height width channels"],
    annotation: Int[np.ndarray, "height width"],
    prediction: Int[np.ndarray, "height width"],
) -> None:
    pictures = to_rgb_images(image), overlay(image, annotation), overlay(image, prediction)
    for cell, picture in zip(axes, pictures, strict=True):
        cell.imshow(picture)
        cell.set(xticks=[], yticks=[])
        cell.grid(False)
        cell.spines[:].set_visible(False)
    is_annotated = annotation != IGNORED
    is_correct = (annotation == prediction)[is_annotated]
    share = f", {is_correct.mean():.1%} right" if len(is_correct) else ""
    axes[2].set_title(f"prediction{share}")


def _legend(
    annotations: Sequence[Int[np.ndarray, "height width"]],
    predictions: Sequence[Int[np.ndarray, "height width"]],
    class_names: Sequence[str] | None,
) -> list[Patch]:
    """Returns the entries of the legend: the classes that occur, or the most frequent of many."""
    counts = sum(
        np.bincount(labels.ravel(), minlength=NUM_COLOURS)
        for labels in (*map(np.asarray, annotations), *map(np.asarray, predictions))
    )
    present = np.flatnonzero(counts[:IGNORED])
    by_frequency = present[np.argsort(-counts[present], kind="stable")]
    listed = np.sort(by_frequency[:_MOST_IN_LEGEND])
    patches = [
        Patch(facecolor=class_colours()[label], label=_name(label, class_names)) for label in listed
    ]
    if counts[IGNORED]:
        patches.append(
            Patch(facecolor=_IGNORED, edgecolor=_HATCH, linewidth=0, hatch="////", label="ignored")
        )
    if len(present) > len(listed):
        more = f"and {len(present) - len(listed)} rarer ones"
        patches.append(Patch(facecolor="none", label=more))
    return patches


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return f"class {label}" if class_names is None else style.label(class_names[label])


def _draw_legend(figure: Figure, patches: Sequence[Patch]) -> None:
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=min(len(patches), _LEGEND_COLUMNS),
        handlelength=1.3,
        handleheight=1.0,
        columnspacing=1.4,
    )


def _check(
    images: Sequence[np.ndarray],
    annotations: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str] | None,
) -> None:
    if not len(images) == len(annotations) == len(predictions) > 0:
        raise ValueError(
            f"{len(images)} images, {len(annotations)} annotations, {len(predictions)} "
            "predictions; as many of each, at least one"
        )
    for index, (image, *labels) in enumerate(zip(images, annotations, predictions, strict=True)):
        if not all(np.shape(classes) == np.shape(image)[:2] for classes in labels):
            raise ValueError(
                f"image {index} is of shape {np.shape(image)}, its annotation and prediction of "
                f"{' and '.join(str(np.shape(classes)) for classes in labels)}"
            )
        known = IGNORED if class_names is None else len(class_names)
        present = [label for classes in labels for label in np.unique(classes)]
        unknown = [label for label in present if label != IGNORED and not 0 <= label < known]
        if unknown:
            raise ValueError(f"image {index} has the class {unknown[0]}; there are {known} classes")


def _to_lab(rgb: Float[np.ndarray, "colours 3"]) -> Float[np.ndarray, "colours 3"]:
    """Converts sRGB in [0, 1] to CIE L*a*b* under D65 (IEC 61966-2-1; CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    relative = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    root = np.where(
        relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29
    )
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
