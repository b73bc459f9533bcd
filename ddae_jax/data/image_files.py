"""Choosing the files of a folder that are a source's images, and opening them."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from ddae_jax.data.array_images import ARRAY_SUFFIXES, STACK_SUFFIXES, TIFF_SUFFIXES, ArrayImage
from ddae_jax.data.files import read_bytes
from ddae_jax.data.folder_scan import contents, image_suffixes, scan
from ddae_jax.data.images import Decoding, EncodedImage, LazyImage
from ddae_jax.data.tiff import MANY_CHANNELS, import_tifffile


@dataclass(frozen=True)
class OpenImage:
    """A picklable function that opens an image file by its path, and decodes nothing yet.

    Args:
        decoding: how files become pixels.
        holds_array: whether they hold arrays of any number of channels (``ArrayImage``).
    """

    decoding: Decoding
    holds_array: bool

    def __call__(self, path: bytes) -> LazyImage:
        read = functools.partial(read_bytes, path, self.decoding.max_bytes)
        kind = ArrayImage if self.holds_array else EncodedImage
        return kind(read, os.fsdecode(path), self.decoding)


class ImageFiles(NamedTuple):
    """The image files of a folder, and what opens them.

    For paths, labels and class names see ``ddae_jax.data.folder_scan.scan``.
    """

    paths: list[bytes]
    labels: Int32[np.ndarray, " example"]
    class_names: tuple[str, ...] | None
    open_image: OpenImage


def find_images(root: Path, decoding: Decoding, keeps_links: bool = False) -> ImageFiles:
    """Finds the image files in a folder: those of one of two kinds, images or arrays.

    With 1 or 3 channels images are looked for first, with other numbers arrays, and the other kind
    only if there are none. So arrays beside images are not read, nor are images beside arrays,
    which are previews.

    Args:
        root: the folder.
        decoding: how files become pixels.
        keeps_links: see ``ddae_jax.data.folder_scan.scan``.

    Raises:
        ValueError: if there are files of neither kind, if the folder is that of a run, or if the
            package that reads TIFF files of many channels is needed and not installed.
    """
    kinds = [image_suffixes(), ARRAY_SUFFIXES]
    if decoding.holds_arrays:
        kinds = [STACK_SUFFIXES, image_suffixes()]
    for suffixes in kinds:
        paths, labels, class_names = scan(root, suffixes, keeps_links)
        if paths:
            break
    else:
        looked_for = ", ".join(dict.fromkeys((*kinds[0], *kinds[1])))
        raise ValueError(
            f"no image in {root}: looked for {looked_for} in it and in its sub-folders; it "
            f"contains {contents(root)}"
        )
    holds_array = decoding.holds_arrays or suffixes == ARRAY_SUFFIXES
    if decoding.holds_arrays and any(os.fsdecode(p).lower().endswith(TIFF_SUFFIXES) for p in paths):
        import_tifffile(MANY_CHANNELS)
    return ImageFiles(paths, labels, class_names, OpenImage(decoding, holds_array))
