"""Labelled images of a folder of files."""

import functools
import hashlib
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from ddae_jax.data.image_files import find_images
from ddae_jax.data.images import CorruptImage, Decoding, LazyImage
from ddae_jax.data.source_base import IndexedSource
from ddae_jax.data.splits import split_folder, warn_of_parts

# So many files, spread over a folder, have to share one size for all of them to count as doing so.
_SIZE_SAMPLE = 1000


class FolderSource(IndexedSource):
    """Labelled images of a tree of files, in the order of their sorted paths.

    The folder ``data_dir/split`` is read if it is there, else ``data_dir`` itself as "train".
    ``ddae_jax.data.folder_scan.scan`` says which files are images, and what their labels are. For
    arguments and errors see ``ddae_jax.data.sources.make_source``.
    """

    has_labels_at_hand = True

    def __init__(self, data_dir: str, split: str, decoding: Decoding):
        root = split_folder(data_dir, split)
        paths, self._labels, self.class_names, self._open_image = find_images(root, decoding)
        warn_of_parts(data_dir, root, paths)
        # One buffer, as a list of a million strings is slow to pickle and copied by every worker.
        self._paths = np.frombuffer(b"".join(paths), np.uint8)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self._root = os.fsencode(root)
        self.channels = decoding.channels
        self.num_classes = None if self.class_names is None else len(self.class_names)

    def __len__(self) -> int:
        return len(self._ends)

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._paths)
        digest.update(self._ends)
        return f"{digest.hexdigest()[:16]}, {len(self)} examples"

    def name(self, index: int) -> str:
        return os.fsdecode(self._path(index))

    @functools.cached_property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) if up to 1,000 images, spread over the folder, all have that size."""
        sample = np.linspace(0, len(self) - 1, min(len(self), _SIZE_SAMPLE)).astype(int)
        shared = None
        for index in sample:
            image, _ = self.open([index])[0]
            try:
                width, height = image.size
            except CorruptImage:
                continue
            shared = shared or (height, width)
            if shared != (height, width):
                return None
        return shared

    def open(self, indices: Sequence[int]) -> list[tuple[LazyImage, int]]:
        return [
            (self._open_image(self._path(index)), int(self._labels[index])) for index in indices
        ]

    def labels(self) -> Int32[np.ndarray, " example"]:
        return self._labels

    def _path(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return os.path.join(self._root, self._paths[start : self._ends[index]].tobytes())
