"""What lies in a folder of image files: its splits, its classes and, in words, anything else."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from ddae_jax.data.images import NO_LABEL

_log = logging.getLogger(__name__)

SPLIT_NAMES = frozenset({"train", "training", "val", "validation", "valid", "dev", "test", "eval"})

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def split_folder(data_dir: str, split: str) -> Path:
    """The folder that holds a split: `data_dir/split` if it is there, else `data_dir` for "train".

    Raises `ValueError` without `data_dir`, `FileNotFoundError` where no folder holds the split, and
    `NotADirectoryError` for a file.
    """
    if not data_dir:
        raise ValueError("source='folder' needs data_dir, the folder of images")
    root = Path(data_dir).expanduser()
    if not root.exists():
        near = next(parent for parent in root.absolute().parents if parent.exists())
        raise FileNotFoundError(
            f"no folder {root}: looked for images in it; {near} contains {contents(near)}"
        )
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; expected a folder of images")
    if (root / split).is_dir():
        _warn_of_ignored_folders(root, split)
        return root / split
    if split == "train":
        return root
    raise FileNotFoundError(
        f"no split {split!r} in {root}: expected the folder {root / split}; "
        f"{root} contains {contents(root)}"
    )


def _warn_of_ignored_folders(root: Path, split: str) -> None:
    """Where `split` may be one class of several, beside others that nobody would call a split."""
    beside = [
        entry.name
        for entry in _sorted_entries(root)
        if entry.is_dir() and entry.name.lower() not in SPLIT_NAMES | {split.lower()}
    ]
    if beside:
        _log.warning(
            "only the images in %s are read, not those in the folders beside it (%s); if %r is one "
            "of your classes, put all of them into a folder called 'train'",
            root / split,
            _some(beside),
            split,
        )


def scan(
    root: Path,
) -> tuple[list[bytes], Int32[np.ndarray, " example"], tuple[str, ...] | None]:
    """Image paths relative to `root`, labels, and the class names (None for a flat folder).

    The label is the index of the sub-folder of the first level, in sorted order; images beside
    these have -1. Hidden files are left out; linked folders are followed, but not in circles.
    """
    paths: list[bytes] = []
    labels: list[int] = []
    class_names: list[str] = []
    ancestors = frozenset({_identity(root)})
    for entry in _sorted_entries(root):
        if _is_image(entry):
            paths.append(os.fsencode(entry.name))
            labels.append(NO_LABEL)
        elif entry.is_dir():
            found = list(_image_paths(entry, ancestors))
            if found:
                paths += found
                labels += [len(class_names)] * len(found)
                class_names.append(entry.name)
    return paths, np.array(labels, np.int32), tuple(class_names) or None


def _image_paths(folder: os.DirEntry, ancestors: frozenset[tuple[int, int]]) -> Iterator[bytes]:
    """The images under a folder, as paths that begin with its name, sorted."""
    identity = _identity(folder)
    if identity in ancestors:
        return  # a link to a folder above: following it would never end
    prefix = os.fsencode(folder.name) + b"/"
    for entry in _sorted_entries(folder):
        if _is_image(entry):
            yield prefix + os.fsencode(entry.name)
        elif entry.is_dir():
            for path in _image_paths(entry, ancestors | {identity}):
                yield prefix + path


def _sorted_entries(folder: Path | os.DirEntry) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


def _identity(folder: Path | os.DirEntry) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def contents(folder: Path) -> str:
    """What a folder holds, in words: "2 folders (a, b) and 3 files (.txt, .csv)"."""
    entries = _sorted_entries(folder)
    folders = [entry.name for entry in entries if entry.is_dir()]
    suffixes = Counter(Path(e.name).suffix or e.name for e in entries if not e.is_dir())
    parts = []
    if folders:
        parts.append(f"{len(folders)} folders ({_some(folders)})")
    if suffixes:
        parts.append(f"{suffixes.total()} other files ({_some(list(suffixes))})")
    return " and ".join(parts) or "nothing"


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
