"""What lies in a folder of image files: its splits, its classes and, in words, anything else."""

import array
import dataclasses
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image

from ddae_jax.data.files import ReadFailed, patiently
from ddae_jax.data.images import NO_LABEL, PILLOW_FORMATS

_log = logging.getLogger(__name__)

SPLIT_NAMES = frozenset({"train", "training", "val", "validation", "valid", "dev", "test", "eval"})

# A name that begins as a split's does, and goes on with a year or the like: train2017, val-set.
_LOOKS_LIKE_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing|eval)(?![a-z]).*", re.IGNORECASE
)

SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "@tmp",
        "@recycle",
        "#recycle",
        "#snapshot",
        "__macosx",
        "__pycache__",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
"""Folders that file servers and archivers leave, lower case; what is in them are no examples."""

# What the folder of a run of this package has, besides its config or checkpoints.
_OF_A_RUN = "lock"
_OF_A_RUN_TOO = frozenset({"config.json", "checkpoints"})

# Files that lie beside images and that nobody takes for some, by their suffix.
_NO_IMAGES = frozenset(
    {"", ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".xml", ".html"}
    | {".ini", ".db", ".log", ".lst", ".py", ".sh", ".mat", ".pkl", ".npy", ".npz", ".pdf"}
    | {".zip", ".tar", ".gz", ".tgz", ".sha256", ".md5", ".license"}
)


def image_suffixes() -> tuple[str, ...]:
    """Lists the suffixes of files that are read as images, in lower case."""
    formats = {*PILLOW_FORMATS, "MPO"}  # as some cameras call a JPEG with a preview
    found = Image.registered_extensions().items()
    return tuple(sorted(suffix for suffix, format in found if format in formats))


@dataclasses.dataclass
class _LeftOut:
    """What a scan does not take, by the reason for that; `wanted` are suffixes that it takes."""

    wanted: frozenset[str]
    suffixes: Counter = dataclasses.field(default_factory=Counter)
    dangling: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    runs: list[str] = dataclasses.field(default_factory=list)
    num_twice: int = 0

    def tell(self, root: Path, num_images: int) -> None:
        """Logs it; as a warning where something may be missed."""
        if self.suffixes:
            counts = ", ".join(
                f"{count:,} {suffix or 'without a suffix'}"
                for suffix, count in self.suffixes.most_common(8)
            )
            is_harmless = self.suffixes.keys() <= _NO_IMAGES
            _log.log(
                logging.INFO if is_harmless else logging.WARNING,
                "%s: %s files are left out beside %s images, as they are called otherwise than "
                "images: %s",
                root,
                f"{self.suffixes.total():,}",
                f"{num_images:,}",
                counts,
            )
        for names, what in (
            (self.dangling, "links that lead nowhere"),
            (self.unreadable, "folders that may not be read, or lead to themselves"),
            (self.runs, "folders of runs, whose pictures are no examples"),
        ):
            if names:
                _log.warning("%s: left out %d %s: %s", root, len(names), what, some_of(names))
        if self.num_twice:
            _log.warning(
                "%s: left out %d links to images that are there already", root, self.num_twice
            )


def split_folder(data_dir: str, split: str) -> Path:
    """The folder that holds a split: `data_dir/split` if it is there, else `data_dir` for "train".

    For "" it is `data_dir`, whatever lies in it.

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
    if not split:
        return root
    if (root / split).is_dir():
        _warn_of_ignored_folders(root, split)
        return root / split
    if split == "train":
        _warn_of_split_names(root)
        return root
    others = [name for name in _folder_names(root) if _LOOKS_LIKE_SPLIT.fullmatch(name)]
    others = [name for name in others if not name.lower().startswith("train")] or others
    hint = f"; did you mean data.test_split={others[0]!r}?" if others else ""
    raise FileNotFoundError(
        f"no split {split!r} in {root}: expected the folder {root / split}; "
        f"{root} contains {contents(root)}{hint}"
    )


def _folder_names(root: Path) -> list[str]:
    return [entry.name for entry in _sorted_entries(root) if _is_folder(entry)]


def _warn_of_ignored_folders(root: Path, split: str) -> None:
    """Where `split` may be one class of several, beside others that nobody would call a split."""
    beside = [
        name
        for name in _folder_names(root)
        if name.lower() not in SPLIT_NAMES | SYSTEM_FOLDERS | {split.lower()}
        and not _is_run(root / name)
    ]
    if beside:
        _log.warning(
            "only the images in %s are read, not those in the folders beside it (%s); if %r is one "
            "of your classes, put all of them into a folder called 'train'",
            root / split,
            some_of(beside),
            split,
        )


def _warn_of_split_names(root: Path) -> None:
    """Where all of a folder is trained on although its parts are called as splits are."""
    splits = [name for name in _folder_names(root) if _LOOKS_LIKE_SPLIT.fullmatch(name)]
    if not splits:
        return
    train = next((name for name in splits if name.lower().startswith("train")), None)
    test = next((name for name in splits if name != train), None)
    proposed = [("train_split", train), ("test_split", test)]
    _log.warning(
        "the folders %s in %s are called as parts of a data set are, and all of them are trained "
        "on, each as a class. If they are parts, set %s",
        some_of(splits),
        root,
        " and ".join(f"data.{key}={name!r}" for key, name in proposed if name),
    )


def scan(
    root: Path, suffixes: Collection[str] | None = None
) -> tuple[list[bytes], Int32[np.ndarray, " example"], tuple[str, ...] | None]:
    """Image paths relative to `root`, labels, and the class names (None for a flat folder).

    Files count as images by their `suffixes`, in lower case; by default by `image_suffixes`.

    The label is the index of the sub-folder of the first level, in sorted order; images beside
    these have -1. Linked folders are followed, but not in circles, and an image that is reached by
    a link too counts once. Left out are hidden files, folders of the system (`SYSTEM_FOLDERS`) and
    of runs of this package, and what cannot be read; the log counts and names what may be missed.
    """
    wanted = _SUFFIXES if suffixes is None else frozenset(suffixes)
    found, left_out = _Found(), _LeftOut(wanted)
    ancestors = frozenset({_identity(root)})
    device = _identity(root)[0]
    for entry in _sorted_entries(root):
        if _is_image(entry, left_out):
            found.add(os.fsencode(entry.name), "", entry, entry.is_symlink(), device)
        elif _is_folder(entry):
            _add_images_below(entry, entry.name, ancestors, entry.is_symlink(), found, left_out)
    kept = found.without_links_to_others()
    left_out.num_twice = len(found.paths) - len(kept)
    tops = [found.tops[index] for index in kept]
    class_names = tuple(sorted(set(tops) - {""}))
    number = {name: index for index, name in enumerate(class_names)}
    labels = np.array([number.get(top, NO_LABEL) for top in tops], np.int32)
    if kept:
        left_out.tell(root, len(kept))
    return [found.paths[index] for index in kept], labels, class_names or None


class _Found:
    """The images of a scan: path, folder of the first level, and which file it is."""

    def __init__(self):
        self.paths: list[bytes] = []
        self.tops: list[str] = []
        self._files = array.array("Q")  # device and inode of each, in turn
        self._is_linked = bytearray()

    def add(self, path: bytes, top: str, entry: os.DirEntry, is_linked: bool, device: int) -> None:
        """Adds an image. `device` is that of its folder; `top` is "" beside the first level."""
        inode = entry.inode()
        if entry.is_symlink():
            device, inode = _identity(entry)
        self.paths.append(path)
        self.tops.append(top)
        self._files.extend((device, inode))
        self._is_linked.append(is_linked)

    def without_links_to_others(self) -> Sequence[int]:
        """Indices without links to an image that is there by its own name, or by a link before."""
        if not any(self._is_linked):
            return range(len(self.paths))
        files = list(zip(self._files[::2], self._files[1::2], strict=True))
        known = {f for f, is_linked in zip(files, self._is_linked, strict=True) if not is_linked}
        kept = []
        for index, (file, is_linked) in enumerate(zip(files, self._is_linked, strict=True)):
            if not is_linked or file not in known:
                kept.append(index)
                known.add(file)
        return kept


def _add_images_below(
    folder: os.DirEntry,
    top: str,
    ancestors: frozenset[tuple[int, int]],
    is_linked: bool,
    found: _Found,
    left_out: _LeftOut,
    above: bytes = b"",
) -> None:
    """Adds the images under a folder, as paths that begin with its name, sorted."""
    if folder.name.lower() in SYSTEM_FOLDERS:
        return
    try:
        identity = patiently(folder.path, lambda: _identity(folder))
        if identity in ancestors:
            return  # a link to a folder above: following it would never end
        entries = _sorted_entries(folder)
    except ReadFailed:
        raise
    except OSError:
        left_out.unreadable.append(folder.path)
        return
    if _is_run(folder.path):
        left_out.runs.append(folder.path)
        return
    prefix = above + os.fsencode(folder.name) + b"/"
    for entry in entries:
        is_link = is_linked or entry.is_symlink()
        if _is_image(entry, left_out):
            found.add(prefix + os.fsencode(entry.name), top, entry, is_link, identity[0])
        elif _is_folder(entry):
            circle = ancestors | {identity}
            _add_images_below(entry, top, circle, is_link, found, left_out, prefix)


def _sorted_entries(folder: Path | os.DirEntry) -> list[os.DirEntry]:
    def visible() -> list[os.DirEntry]:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]

    return sorted(patiently(os.fspath(folder), visible), key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry, left_out: _LeftOut) -> bool:
    """Whether an entry is an image file by its name; tallies what else it is, if it is a file."""
    try:
        if not patiently(entry.path, entry.is_file):
            if entry.is_symlink() and not patiently(entry.path, entry.is_dir):
                left_out.dangling.append(entry.path)
            return False
    except ReadFailed:
        raise
    except OSError:  # a link to itself
        left_out.dangling.append(entry.path)
        return False
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in left_out.wanted:
        return True
    left_out.suffixes[suffix] += 1
    return False


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return patiently(entry.path, entry.is_dir)
    except ReadFailed:
        raise
    except OSError:  # a link to itself
        return False


def _is_run(folder: Path | str) -> bool:
    folder = Path(folder)
    return (folder / _OF_A_RUN).exists() and any((folder / n).exists() for n in _OF_A_RUN_TOO)


def _identity(folder: Path | os.DirEntry) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def contents(folder: Path) -> str:
    """What a folder holds, in words: "2 folders (a, b) and 3 files (.txt, .csv)"."""
    entries = _sorted_entries(folder)
    folders = [entry.name for entry in entries if _is_folder(entry)]
    suffixes = Counter(Path(e.name).suffix or e.name for e in entries if not _is_folder(e))
    parts = []
    if folders:
        parts.append(f"{len(folders)} folders ({some_of(folders)})")
    if suffixes:
        parts.append(f"{suffixes.total()} other files ({some_of(list(suffixes))})")
    return " and ".join(parts) or "nothing"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Lists the first few names, and says by dots that there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


_SUFFIXES = frozenset(image_suffixes())
