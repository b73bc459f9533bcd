"""What lies in a folder of image files: its classes and, in words, what is left out."""

import array
import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image

from ddae_jax.data.disks import ReadFailed, patiently
from ddae_jax.data.images import NO_LABEL
from ddae_jax.data.opening import PILLOW_FORMATS

_log = logging.getLogger(__name__)

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

# Hidden folders whose images are copies, thumbnails, or thrown away; lower case.
_HIDDEN_COPIES = frozenset(
    {".cache", ".git", ".svn", ".hg", ".dvc", ".datalad", ".thumbnails", ".ipynb_checkpoints"}
    | {".snapshot", ".snapshots", ".zfs", ".appledouble", ".trash", ".trashes", ".venv"}
)
_APPLE_DOUBLE = "._"  # begins the name of what macOS keeps beside a file

# Two of these show the folder of a run of this package.
_OF_A_RUN = frozenset({"config.json", "metrics.jsonl", "checkpoints", "report.html", "lock"})

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
    num_hidden: int = 0
    dangling: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    circles: list[str] = dataclasses.field(default_factory=list)
    runs: list[str] = dataclasses.field(default_factory=list)
    twice: list[str] = dataclasses.field(default_factory=list)

    def tell(self, root: Path, num_images: int) -> None:
        """Logs it; as a warning where something may be missed."""
        counts = [
            f"{count:,} {suffix or 'without a suffix'}"
            for suffix, count in self.suffixes.most_common(8)
        ]
        counts += [f"{self.num_hidden:,} hidden images"] if self.num_hidden else []
        total = self.suffixes.total() + self.num_hidden
        if total:
            is_harmless = self.suffixes.keys() <= _NO_IMAGES and total <= num_images
            _log.log(
                logging.INFO if is_harmless else logging.WARNING,
                "%s: %s files are left out beside %s images, as they are called otherwise than "
                "images: %s",
                root,
                f"{total:,}",
                f"{num_images:,}",
                ", ".join(counts),
            )
        for names, what in (
            (self.dangling, "links that lead nowhere"),
            (self.unreadable, "folders that may not be read, or lead to themselves"),
            (self.circles, "links to folders that they lie in"),
            (self.runs, "folders of runs, whose pictures are no examples"),
            (self.twice, "links to images that are there already"),
        ):
            if names:
                _log.warning("%s: left out %d %s: %s", root, len(names), what, some_of(names))


def scan(
    root: Path, suffixes: Collection[str] | None = None, keeps_links: bool = False
) -> tuple[list[bytes], Int32[np.ndarray, " example"], tuple[str, ...] | None]:
    """Image paths relative to `root`, labels, and the class names (None for a flat folder).

    The label is the index of the sub-folder of the first level, in sorted order; images beside
    these have -1. Linked folders are followed, but for those that a link lies in. Left out are
    hidden files, folders of the system (`SYSTEM_FOLDERS`) and of runs of this package, and what
    cannot be read; the log counts and names what may be missed.

    **Arguments:**

    - `root`: the folder.
    - `suffixes`: of files that count as images, in lower case; by default `image_suffixes`.
    - `keeps_links`: whether a file that has several names, by links, counts as often. Otherwise it
      counts once.

    Raises `ValueError` if the folder is that of a run.
    """
    entries = _entries(root)
    if _are_of_a_run(entries):
        raise ValueError(
            f"{root} is the folder of a run, whose pictures are no examples; give the folder of "
            "images, or put the images into a folder of their own"
        )
    search = _Search(_SUFFIXES if suffixes is None else frozenset(suffixes))
    search.add(entries, "", b"", _identity(root)[0], _identities_above(root), is_linked=False)
    found, left_out = search.found, search.left_out
    kept = range(len(found.paths)) if keeps_links else found.once(root)
    left_out.twice = [os.fsdecode(found.paths[i]) for i in found.all_but(kept)]
    tops = [found.tops[index] for index in kept]
    class_names = tuple(sorted(set(tops) - {""}))
    number = {name: index for index, name in enumerate(class_names)}
    labels = np.array([number.get(top, NO_LABEL) for top in tops], np.int32)
    if len(kept):
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

    def once(self, root: Path) -> Sequence[int]:
        """Indices of one name of each file: its own one, where it is met by links too."""
        if len(self.paths) < 2:
            return range(len(self.paths))
        files = np.frombuffer(self._files, np.uint64).reshape(-1, 2)
        is_linked = np.frombuffer(self._is_linked, bool)
        order = np.lexsort((is_linked, files[:, 1], files[:, 0]))
        is_same = (files[order[1:]] == files[order[:-1]]).all(axis=1)
        if not is_same.any():
            return range(len(self.paths))
        is_kept = np.ones(len(self.paths), bool)
        groups = np.split(order, np.flatnonzero(~is_same) + 1)
        for first, *others in (group for group in groups if len(group) > 1):
            has_hard_links = self._has_hard_links(root, first)
            for index in others:
                is_kept[index] = not (is_linked[index] or has_hard_links)
        return np.flatnonzero(is_kept)

    def all_but(self, kept: Sequence[int]) -> list[int]:
        """The other indices, in order."""
        return np.setdiff1d(np.arange(len(self.paths)), kept, assume_unique=True).tolist()

    def _has_hard_links(self, root: Path, index: int) -> bool:
        """Whether a file has other names. Some network disks list one number for all files."""
        try:
            status = os.stat(os.path.join(os.fsencode(root), self.paths[index]))
        except OSError:
            return False
        listed = tuple(self._files[2 * index : 2 * index + 2])
        return status.st_nlink > 1 and listed == (status.st_dev, status.st_ino)


class _Search:
    """Walks through folders for what is `found` and what is `left_out`."""

    def __init__(self, wanted: frozenset[str]):
        self.found = _Found()
        self.left_out = _LeftOut(wanted)

    def add(
        self,
        entries: Sequence[os.DirEntry],
        top: str,
        prefix: bytes,
        device: int,
        above: frozenset[tuple[int, int]],
        is_linked: bool,
    ) -> None:
        """Adds the images among the entries of a folder, and those below it, in sorted order.

        `prefix` is the way to the folder, `device` its own; `above` are it and what it lies in.
        """
        for entry in entries:
            is_link = is_linked or entry.is_symlink()
            if entry.name.startswith("."):
                self.left_out.num_hidden += self._count_hidden(entry)
            elif self._is_image(entry):
                self.found.add(prefix + os.fsencode(entry.name), top, entry, is_link, device)
            elif _is_folder(entry):
                self._add_folder(entry, top or entry.name, prefix, above, is_link)

    def _add_folder(
        self,
        folder: os.DirEntry,
        top: str,
        prefix: bytes,
        above: frozenset[tuple[int, int]],
        is_linked: bool,
    ) -> None:
        if folder.name.lower() in SYSTEM_FOLDERS:
            return
        try:
            identity = patiently(folder.path, lambda: _identity(folder))
            if identity in above:  # following it would never end, or bring in other splits
                self.left_out.circles.append(folder.path)
                return
            entries = _entries(folder)
        except ReadFailed:
            raise
        except OSError:
            self.left_out.unreadable.append(folder.path)
            return
        if _are_of_a_run(entries):
            self.left_out.runs.append(folder.path)
            return
        prefix += os.fsencode(folder.name) + b"/"
        self.add(entries, top, prefix, identity[0], above | {identity}, is_linked)

    def _is_image(self, entry: os.DirEntry) -> bool:
        """Whether an entry is an image by its name; tallies what else it is, if it is a file."""
        try:
            if not patiently(entry.path, entry.is_file):
                if entry.is_symlink() and not patiently(entry.path, entry.is_dir):
                    self.left_out.dangling.append(entry.path)
                return False
        except ReadFailed:
            raise
        except OSError:  # a link to itself
            self.left_out.dangling.append(entry.path)
            return False
        suffix = _suffix(entry.name)
        if suffix in self.left_out.wanted:
            return True
        self.left_out.suffixes[suffix] += 1
        return False

    def _count_hidden(self, entry: os.DirEntry) -> int:
        """How many images a hidden file or folder is, or holds, by their names."""
        if not _is_folder(entry):
            is_file = _suffix(entry.name) in self.left_out.wanted
            return int(is_file and not entry.name.startswith(_APPLE_DOUBLE))
        if entry.name.lower() in _HIDDEN_COPIES or entry.is_symlink():
            return 0
        names = (name for _, _, names in os.walk(entry.path) for name in names)
        return sum(_suffix(name) in self.left_out.wanted for name in names)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _entries(folder: Path | os.DirEntry) -> list[os.DirEntry]:
    """All that a folder holds, sorted by name."""

    def listed() -> list[os.DirEntry]:
        with os.scandir(folder) as entries:
            return list(entries)

    return sorted(patiently(os.fspath(folder), listed), key=lambda entry: entry.name)


def folder_names(folder: Path) -> list[str]:
    """Lists the folders in a folder, sorted, without hidden ones."""
    return [e.name for e in _entries(folder) if not e.name.startswith(".") and _is_folder(e)]


def is_run(folder: Path) -> bool:
    """Tells whether a folder is that of a run of this package."""
    return sum((folder / name).exists() for name in _OF_A_RUN) > 1


def _are_of_a_run(entries: Sequence[os.DirEntry]) -> bool:
    return len(_OF_A_RUN.intersection(entry.name for entry in entries)) > 1


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return patiently(entry.path, entry.is_dir)
    except ReadFailed:
        raise
    except OSError:  # a link to itself
        return False


def _identity(folder: Path | os.DirEntry) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _identities_above(root: Path) -> frozenset[tuple[int, int]]:
    """Those of a folder and all that it lies in, by its name and by where links lead."""
    folders = {root, *root.absolute().parents, *root.resolve().parents}
    return frozenset(map(_identity, folders))


def contents(folder: Path) -> str:
    """What a folder holds, in words: "2 folders (a, b) and 3 files (.txt, .csv)"."""
    listed = _entries(folder)
    hidden = [entry.name for entry in listed if entry.name.startswith(".")]
    entries = [entry for entry in listed if not entry.name.startswith(".")]
    folders = [entry.name for entry in entries if _is_folder(entry)]
    suffixes = Counter(Path(e.name).suffix or e.name for e in entries if not _is_folder(e))
    parts = []
    if folders:
        parts.append(f"{len(folders)} folders ({some_of(folders)})")
    if suffixes:
        parts.append(f"{suffixes.total()} other files ({some_of(list(suffixes))})")
    if hidden:
        parts.append(f"{len(hidden)} hidden files or folders ({some_of(hidden)})")
    return " and ".join(parts) or "nothing"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Lists the first few names, and says by dots that there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


_SUFFIXES = frozenset(image_suffixes())
