"""Semantic segmentation: scores from a confusion matrix, and inference on images of any size.

Confusion matrices count pixels, so that they add up over images and processes. An image is
predicted in windows of the size that the network was trained on, so that one compiled program
serves images of all sizes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from ddae_jax.data.joint_augment import scaled_size

Predict = Callable[
    [Float[Array, "batch height width channels"]], Float[Array, "batch height width classes"]
]
"""Returns the logits of each pixel of normalised crops."""
Taps = tuple[Int[np.ndarray, "out"], Int[np.ndarray, "out"], Float[np.ndarray, "out"]]
"""For linear interpolation: lower index, upper index, and weight of the upper one."""

Confusion = Int[np.ndarray, "classes classes"]
"""Pixels of each class (row) that were predicted as each class (column)."""

_MOST_NAMED = 5  # values in an error message
# Pixels. Logits are summed on a canvas whose sides are multiples of this, so that few compiled
# programs serve images of many sizes.
_CANVAS_STEP = 256

# ---- scores


def confusion_matrix(
    labels: Int[np.ndarray, "*pixels"],
    predictions: Int[np.ndarray, "*pixels"],
    num_classes: int,
    ignore_label: int | None = None,
) -> Int[np.ndarray, "classes classes"]:
    """Counts the pixels of each true class (rows) by predicted class (columns).

    Matrices of several images add up.

    Args:
        labels: true class of each pixel.
        predictions: predicted class of each pixel.
        num_classes: number of classes.
        ignore_label: label of pixels that do not count, whatever is predicted; None for none.

    Raises:
        ValueError: if the shapes differ, or the classes of pixels that count lie outside
            [0, num_classes).
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"labels of shape {labels.shape}, but predictions of {predictions.shape}")
    counts = np.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label
    true, predicted = labels[counts].astype(np.int64), predictions[counts].astype(np.int64)
    for name, values in (("labels", true), ("predictions", predicted)):
        outside = np.unique(values[(values < 0) | (values >= num_classes)])
        if len(outside):
            raise ValueError(
                f"{name} hold {', '.join(map(str, outside[:_MOST_NAMED]))}; {num_classes} classes "
                f"ask for [0, {num_classes - 1}], besides ignore_label={ignore_label} in labels"
            )
    pairs = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def class_iou(confusion: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, "classes"]:
    """Returns the intersection over union of each class, ``TP / (TP + FP + FN)``.

    It is NaN for a class that occurs neither in truth nor in prediction, and 0 for a class that is
    only predicted.

    Source: Everingham et al. 2010, "The PASCAL Visual Object Classes Challenge", section 4.1.3.
    """
    correct = np.diag(confusion)
    return _share(correct, confusion.sum(axis=0) + confusion.sum(axis=1) - correct)


def mean_iou(confusion: Int[np.ndarray, "classes classes"]) -> float:
    """Returns "mIoU": the mean :func:`class_iou` of classes that occur in truth or prediction.

    This is mmsegmentation's definition. All 150 classes of ADE20K occur in its validation set, so
    that the mean is over all of them there.

    Raises:
        ValueError: if the confusion matrix counts no pixel.
    """
    return _mean_of_known(class_iou(confusion))


def pixel_accuracy(confusion: Int[np.ndarray, "classes classes"]) -> float:
    """Returns "aAcc": the share of pixels that are classified correctly.

    Raises:
        ValueError: if the confusion matrix counts no pixel.
    """
    return _mean_of_known(_share(np.trace(confusion), confusion.sum())[None])


def mean_accuracy(confusion: Int[np.ndarray, "classes classes"]) -> float:
    """Returns "mAcc": the share of correct pixels of each class, averaged over classes in truth.

    Raises:
        ValueError: if the confusion matrix counts no pixel.
    """
    return _mean_of_known(_share(np.diag(confusion), confusion.sum(axis=1)))


def _share(part: Int[np.ndarray, "*some"], whole: Int[np.ndarray, "*some"]) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean_of_known(scores: Float[np.ndarray, "classes"]) -> float:
    if np.isnan(scores).all():
        raise ValueError("the confusion matrix counts no pixel; are all of them ignored?")
    return float(np.nanmean(scores))


def scores_to_json(confusion: Confusion, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the scores as JSON stores them, the IoU of each class by its name."""
    return {
        "num_pixels": int(confusion.sum()),
        "miou": mean_iou(confusion),
        "pixel_accuracy": pixel_accuracy(confusion),
        "mean_accuracy": mean_accuracy(confusion),
        "iou": dict(zip(names, map(_rounded, class_iou(confusion)), strict=True)),
        "confusion": confusion.tolist(),
    }


def format_scores(confusion: Confusion) -> str:
    """Formats mean IoU and pixel accuracy for the log."""
    return f"mIoU {mean_iou(confusion):.2%}, pixel accuracy {pixel_accuracy(confusion):.2%}"


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


# ---- inference on images of any size


def sliding_logits(
    predict: Predict,
    image: Float[np.ndarray, "height width channels"],
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    num_classes: int,
    batch_size: int = 2,
) -> Float[np.ndarray, "height width classes"]:
    """Returns the logits of every pixel of an image, averaged over the windows that contain it.

    Args:
        predict: the network; it is called with ``batch_size`` windows at a time.
        image: image, normalised as the network expects. If it is smaller than a window, it is
            padded with zeros, the mean colour, on the right and below.
        crop_size: ``(height, width)`` of a window, pixels.
        stride: ``(down, right)`` from one window to the next, pixels; the last window of each row
            and column is moved inside the image.
        num_classes: number of classes.
        batch_size: number of windows that are predicted at once; the last batch is filled up with
            zeros.

    Raises:
        ValueError: if the stride leaves gaps, or ``predict`` returns logits of another shape.

    Source: the test mode "slide" of mmsegmentation.
    """
    canvas = _slide(predict, image, crop_size, stride, num_classes, batch_size)
    return np.asarray(canvas)[: image.shape[0], : image.shape[1]]


@dataclasses.dataclass(frozen=True)
class WholeImageSegmenter:
    """Segmenter of whole images, which averages over windows, scales and mirror images.

    Probabilities, after the softmax, are averaged over scales and mirror images.

    Attributes:
        predict, num_classes, crop_size, stride, batch_size: see :func:`sliding_logits`.
        base_size: ``(shorter, longer)`` side in pixels; the image is scaled up or down, in
            proportion, until one side reaches its length and the other does not exceed it. None
            leaves the image as it is.
        scales: factors of ``base_size``; each scaled image is predicted, and the result is brought
            back to the size of the image.
        flip: whether to predict the mirror image at each scale too.

    Source: mmsegmentation, whose multi-scale test has scales from 0.5 to 1.75 in steps of a
    quarter, and mirror images.
    """

    predict: Predict
    num_classes: int
    crop_size: tuple[int, int]
    stride: tuple[int, int]
    base_size: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 2

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={self.scales}; at least one, all above 0")

    def probabilities(
        self, image: Float[np.ndarray, "height width channels"]
    ) -> Float[np.ndarray, "height width classes"]:
        """Returns the probability of each class at every pixel of a normalised image."""
        height, width, _ = image.shape
        return np.asarray(self._summed(image))[:height, :width] / self._views

    def labels(
        self, image: Float[np.ndarray, "height width channels"]
    ) -> Int[np.ndarray, "height width"]:
        """Returns the most probable class at every pixel of a normalised image."""
        height, width, _ = image.shape
        # On the device, so that only one number per pixel is copied to the host.
        return np.asarray(self._summed(image).argmax(axis=-1))[:height, :width]

    @property
    def _views(self) -> int:
        return len(self.scales) * (1 + self.flip)

    def _summed(
        self, image: Float[np.ndarray, "height width channels"]
    ) -> Float[Array, "canvas_height canvas_width classes"]:
        size = image.shape[:2]
        canvas = _canvas_size(size)
        total = jnp.zeros((*canvas, self.num_classes), jnp.float32)
        for scale in self.scales:
            scaled = resize(image, self._size_at(scale, size))
            for is_flipped in (False, True)[: 1 + self.flip]:
                logits = _slide(
                    self.predict,
                    scaled[:, ::-1] if is_flipped else scaled,
                    self.crop_size,
                    self.stride,
                    self.num_classes,
                    self.batch_size,
                )
                rows = _taps(scaled.shape[0], size[0], canvas[0])
                columns = _taps(scaled.shape[1], size[1], canvas[1], is_flipped)
                total = _add_probabilities(total, logits, rows, columns)
        return total

    def _size_at(self, scale: float, size: tuple[int, int]) -> tuple[int, int]:
        shorter, longer = self.base_size or (min(size), max(size))
        return scaled_size(*size, int(shorter * scale), int(longer * scale))


def resize(
    image: Float[np.ndarray, "height width channels"], size: tuple[int, int]
) -> Float[np.ndarray, "new_height new_width channels"]:
    """Resizes by linear interpolation, with smoothing where it shrinks, as for training images.

    Args:
        image: image of any number of channels.
        size: new ``(height, width)``, pixels.
    """
    if image.shape[:2] == tuple(size):
        return image
    channels = [
        Image.fromarray(np.ascontiguousarray(channel, np.float32)).resize(
            (size[1], size[0]), Image.Resampling.BILINEAR
        )
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def window_corners(
    size: tuple[int, int], crop_size: tuple[int, int], stride: tuple[int, int]
) -> list[tuple[int, int]]:
    """Returns ``(top, left)`` of the windows that cover an image.

    Args:
        size: ``(height, width)`` of the image, at least ``crop_size``.
        crop_size: ``(height, width)`` of a window.
        stride: ``(down, right)`` from one window to the next.
    """
    tops, lefts = (
        sorted({min(start, side - crop) for start in range(0, side - crop + step, step)})
        for side, crop, step in zip(size, crop_size, stride, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def _slide(
    predict: Predict,
    image: Float[np.ndarray, "height width channels"],
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    num_classes: int,
    batch_size: int,
) -> Float[Array, "canvas_height canvas_width classes"]:
    """Computes :func:`sliding_logits` on the device, on a canvas with a margin below and right."""
    if not all(0 < step <= crop for step, crop in zip(stride, crop_size, strict=True)):
        raise ValueError(
            f"stride={stride}; from 1 to crop_size={crop_size}, so that no pixel is missed"
        )
    height, width = (max(side, crop) for side, crop in zip(image.shape, crop_size, strict=False))
    below, right = height - image.shape[0], width - image.shape[1]
    padded = np.pad(image, ((0, below), (0, right), (0, 0)))
    corners = window_corners((height, width), crop_size, stride)
    canvas = _canvas_size((height, width))
    total = jnp.zeros((*canvas, num_classes), jnp.float32)
    num_windows = np.zeros(canvas, np.float32)
    for start in range(0, len(corners), batch_size):
        chunk = corners[start : start + batch_size]
        crops = np.zeros((batch_size, *crop_size, image.shape[-1]), np.float32)
        for row, (top, left) in enumerate(chunk):
            window = np.s_[top : top + crop_size[0], left : left + crop_size[1]]
            crops[row] = padded[window]
            num_windows[window] += 1
        logits = predict(crops)
        _check_logits(logits, (batch_size, *crop_size, num_classes))
        missing = batch_size - len(chunk)
        total = _add_windows(
            total,
            logits,
            np.array(chunk + [(0, 0)] * missing, np.int32),
            np.arange(batch_size) < len(chunk),
        )
    return _divided(total, np.maximum(num_windows, 1))


def _check_logits(logits: Array, expected: tuple[int, ...]) -> None:
    if logits.shape != expected:
        raise ValueError(
            f"predict gives logits of shape {logits.shape}; expected [batch, height, width, "
            f"classes] = {expected}, at the full resolution of the crops"
        )


def _canvas_size(size: Sequence[int]) -> tuple[int, int]:
    height, width = (-(-side // _CANVAS_STEP) * _CANVAS_STEP for side in size)
    return height, width


@functools.partial(jax.jit, donate_argnums=0)
def _add_windows(
    total: Float[Array, "canvas_height canvas_width classes"],
    logits: Float[Array, "batch height width classes"],
    corners: Int[Array, "batch 2"],
    is_real: Bool[Array, "batch"],
) -> Float[Array, "canvas_height canvas_width classes"]:
    for window, (top, left), counts in zip(logits, corners, is_real, strict=True):
        before = jax.lax.dynamic_slice(total, (top, left, 0), window.shape)
        after = before + jnp.where(counts, window.astype(jnp.float32), 0)
        total = jax.lax.dynamic_update_slice(total, after, (top, left, 0))
    return total


@functools.partial(jax.jit, donate_argnums=0)
def _divided(
    total: Float[Array, "height width classes"], count: Float[Array, "height width"]
) -> Float[Array, "height width classes"]:
    return total / count[..., None]


def _taps(length: int, new_length: int, canvas: int, is_flipped: bool = False) -> Taps:
    """Returns the taps that interpolate ``length`` samples linearly at ``new_length`` positions.

    Samples are at half-pixel centres; positions outside them take the nearest sample. Positions
    from ``new_length`` to ``canvas`` fill up the canvas, and have no meaning.
    """
    index = np.minimum(np.arange(canvas), new_length - 1)
    index = new_length - 1 - index if is_flipped else index
    position = ((index + 0.5) * (length / new_length) - 0.5).clip(0, length - 1)
    low = position.astype(np.int32)
    return low, np.minimum(low + 1, length - 1), (position - low).astype(np.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _add_probabilities(
    total: Float[Array, "height width classes"],
    logits: Float[Array, "scaled_height scaled_width classes"],
    rows: Taps,
    columns: Taps,
) -> Float[Array, "height width classes"]:
    low, high, share = rows
    logits = logits[low] + share[:, None, None] * (logits[high] - logits[low])
    low, high, share = columns
    logits = logits[:, low] + share[:, None] * (logits[:, high] - logits[:, low])
    return total + jax.nn.softmax(logits)
