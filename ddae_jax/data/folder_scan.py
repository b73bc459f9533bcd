"""Scanning a folder for image files and their classes, and describing what lies in a folder."""

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

from ddae_jax.data.disks import ReadFailed, with_retries
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
"""Folders that file servers and archivers leave, in lower case. Images in them are no examples."""

# Hidden folders whose images are copies, thumbnails, or thrown away; lower case.
_HIDDEN_COPIES = frozenset(
    {".cache", ".git", ".svn", ".hg", ".dvc", ".datalad", ".thumbnails", ".ipynb_checkpoints"}
    | {".snapshot", ".snapshots", ".zfs", ".appledouble", ".trash", ".trashes", ".venv"}
)
_APPLE_DOUBLE = "._"  # begins the names of files in which macOS keeps metadata of others

# A folder that has two of these is that of a run of this package.
_OF_A_RUN = frozenset({"config.json", "metrics.jsonl", "checkpoints", "report.html", "lock"})

# Suffixes of files that commonly lie beside images, and that nobody takes for images.
_NO_IMAGES = frozenset(
    {"", ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".xml", ".html"}
    | {".ini", ".db", ".log", ".lst", ".py", ".sh", ".mat", ".pkl", ".npy", ".npz", ".pdf"}
    | {".zip", ".tar", ".gz", ".tgz", ".sha256", ".md5", ".license"}
)


def image_suffixes() -> tuple[str, ...]:
    """Lists the suffixes of files that are read as images, in lower case."""
    formats = {*PILLOW_FORMATS, "MPO"}  # MPO: a JPEG with a preview, as some cameras write it
    extensions = Image.registered_extensions().items()
    return tuple(sorted(suffix for suffix, format in extensions if format in formats))


@dataclasses.dataclass
class _Skipped:
    """The files and folders that a scan leaves out, by the reason.

    Attributes:
        suffixes: the number of files of each suffix that is not one of images.
        num_hidden: hidden images.
        dangling: links that lead nowhere.
        unreadable: folders that may not be read.
        circles: links to folders that they lie in.
        runs: folders of runs.
        twice: other names of images that are taken already.
    """

    suffixes: Counter = dataclasses.field(default_factory=Counter)
    num_hidden: int = 0
    dangling: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    circles: list[str] = dataclasses.field(default_factory=list)
    runs: list[str] = dataclasses.field(default_factory=list)
    twice: list[str] = dataclasses.field(default_factory=list)

    def log(self, root: Path, num_images: int) -> None:
        """Logs what is left out; as a warning where it may be images that somebody misses."""
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
                "%s: %s files are left out beside %s images, as their names are not those of "
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
    """Finds the image files in a folder and in all folders below it.

    An image's label is the index of the sub-folder of the first level that it lies in, in sorted
    order; images beside these folders have -1. Linked folders are followed, except those that the
    link itself lies in. Left out are hidden files, folders of the system (``SYSTEM_FOLDERS``) and
    of runs of this package, and what cannot be read. The log counts and names what may be missed.

    Args:
        root: the folder.
        suffixes: of files that count as images, in lower case; by default ``image_suffixes()``.
        keeps_links: whether a file that has several names, because of links, counts once for each
            name. Otherwise it counts once.

    Returns:
        Image paths relative to ``root``, sorted; their labels; and the names of the classes, None
        for a folder without sub-folders of images.

    Raises:
        ValueError: if the folder is that of a run.
        ReadFailed: if the disk or the network fails.
    """
    entries = _entries(root)
    if _are_of_a_run(entries):
        raise ValueError(
            f"{root} is the folder of a run, whose pictures are no examples; give the folder of "
            "images, or put the images into a folder of their own"
        )
    search = _Search(_SUFFIXES if suffixes is None else frozenset(suffixes))
    search.add(entries, "", b"", _identity(root)[0], _identities_above(root), is_linked=False)
    images, skipped = search.images, search.skipped
    chosen = range(len(images.paths)) if keeps_links else images.without_copies(root)
    skipped.twice = [os.fsdecode(images.paths[i]) for i in images.all_but(chosen)]
    tops = [images.tops[index] for index in chosen]
    class_names = tuple(sorted(set(tops) - {""}))
    number = {name: index for index, name in enumerate(class_names)}
    labels = np.array([number.get(top, NO_LABEL) for top in tops], np.int32)
    if len(chosen):
        skipped.log(root, len(chosen))
    return [images.paths[index] for index in chosen], labels, class_names or None


class _FoundImages:
    """The images of a scan, as lists of the same length.

    Attributes:
        paths: relative to the root of the scan.
        tops: the folder of the first level that the image lies in, "" beside these folders.
    """

    def __init__(self):
        self.paths: list[bytes] = []
        self.tops: list[str] = []
        self._files = array.array("Q")  # device and inode of each, in turn
        self._is_linked = bytearray()

    def add(self, path: bytes, top: str, entry: os.DirEntry, is_linked: bool, device: int) -> None:
        """Adds an image.

        Args:
            path: relative to the root of the scan.
            top: its folder of the first level, or "".
            entry: the directory entry.
            is_linked: whether it, or a folder that it lies in, is a link.
            device: the device of its folder.
        """
        inode = entry.inode()
        if entry.is_symlink():
            device, inode = _identity(entry)
        self.paths.append(path)
        self.tops.append(top)
        self._files.extend((device, inode))
        self._is_linked.append(is_linked)

    def without_copies(self, root: Path) -> Sequence[int]:
        """Returns the indices of one name for each file: its own one if others are links."""
        if len(self.paths) < 2:
            return range(len(self.paths))
        files = np.frombuffer(self._files, np.uint64).reshape(-1, 2)
        is_linked = np.frombuffer(self._is_linked, bool)
        order = np.lexsort((is_linked, files[:, 1], files[:, 0]))
        is_same = (files[order[1:]] == files[order[:-1]]).all(axis=1)
        if not is_same.any():
            return range(len(self.paths))
        is_chosen = np.ones(len(self.paths), bool)
        groups = np.split(order, np.flatnonzero(~is_same) + 1)
        for first, *others in (group for group in groups if len(group) > 1):
            has_hard_links = self._has_hard_links(root, first)
            for index in others:
                is_chosen[index] = not (is_linked[index] or has_hard_links)
        return np.flatnonzero(is_chosen)

    def all_but(self, chosen: Sequence[int]) -> list[int]:
        """Returns the indices that are not among the given ones, in order."""
        return np.setdiff1d(np.arange(len(self.paths)), chosen, assume_unique=True).tolist()

    def _has_hard_links(self, root: Path, index: int) -> bool:
        """Tells whether a file has other names.

        The inode alone does not tell: some network disks list the same number for all files.
        """
        try:
            status = os.stat(os.path.join(os.fsencode(root), self.paths[index]))
        except OSError:
            return False
        listed = tuple(self._files[2 * index : 2 * index + 2])
        return status.st_nlink > 1 and listed == (status.st_dev, status.st_ino)


class _Search:
    """A walk through folders, which collects images and what is left out.

    Args:
        suffixes: of files that count as images, in lower case.
    """

    def __init__(self, suffixes: frozenset[str]):
        self._suffixes = suffixes
        self.images = _FoundImages()
        self.skipped = _Skipped()

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

        Args:
            entries: of the folder.
            top: the folder of the first level that it lies in or is; "" for the root.
            prefix: the path of the folder relative to the root, with a slash at its end.
            device: the device of the folder.
            above: the identities of the folder and of all that it lies in.
            is_linked: whether the folder, or one that it lies in, is a link.
        """
        for entry in entries:
            is_link = is_linked or entry.is_symlink()
            if entry.name.startswith("."):
                self.skipped.num_hidden += self._count_hidden(entry)
            elif self._is_image(entry):
                self.images.add(prefix + os.fsencode(entry.name), top, entry, is_link, device)
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
        """Adds the images of a folder and of those below it, unless it is to be left out.

        For the arguments see ``add``; ``prefix`` and ``above`` are those of the folder above.
        """
        if folder.name.lower() in SYSTEM_FOLDERS:
            return
        try:
            identity = with_retries(folder.path, lambda: _identity(folder))
            if identity in above:  # following it would never end, or bring in other splits
                self.skipped.circles.append(folder.path)
                return
            entries = _entries(folder)
        except ReadFailed:
            raise
        except OSError:
            self.skipped.unreadable.append(folder.path)
            return
        if _are_of_a_run(entries):
            self.skipped.runs.append(folder.path)
            return
        prefix += os.fsencode(folder.name) + b"/"
        self.add(entries, top, prefix, identity[0], above | {identity}, is_linked)

    def _is_image(self, entry: os.DirEntry) -> bool:
        """Tells whether an entry is an image by its name, and counts other files by suffix."""
        try:
            if not with_retries(entry.path, entry.is_file):
                if entry.is_symlink() and not with_retries(entry.path, entry.is_dir):
                    self.skipped.dangling.append(entry.path)
                return False
        except ReadFailed:
            raise
        except OSError:  # a link to itself
            self.skipped.dangling.append(entry.path)
            return False
        suffix = _suffix(entry.name)
        if suffix in self._suffixes:
            return True
        self.skipped.suffixes[suffix] += 1
        return False

    def _count_hidden(self, entry: os.DirEntry) -> int:
        """Returns how many images a hidden file or folder is, or holds, by their names."""
        if not _is_folder(entry):
            is_image = _suffix(entry.name) in self._suffixes
            return int(is_image and not entry.name.startswith(_APPLE_DOUBLE))
        if entry.name.lower() in _HIDDEN_COPIES or entry.is_symlink():
            return 0
        names = (name for _, _, names in os.walk(entry.path) for name in names)
        return sum(_suffix(name) in self._suffixes for name in names)


def _suffix(name: str) -> str:
    """Returns the suffix of a file's name in lower case, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def _entries(folder: Path | os.DirEntry) -> list[os.DirEntry]:
    """Lists all that a folder holds, sorted by name."""

    def listed() -> list[os.DirEntry]:
        with os.scandir(folder) as entries:
            return list(entries)

    return sorted(with_retries(os.fspath(folder), listed), key=lambda entry: entry.name)


def folder_names(folder: Path) -> list[str]:
    """Lists the folders in a folder, sorted, without hidden ones."""
    return [e.name for e in _entries(folder) if not e.name.startswith(".") and _is_folder(e)]


def is_run(folder: Path) -> bool:
    """Tells whether a folder is that of a run of this package."""
    return sum((folder / name).exists() for name in _OF_A_RUN) > 1


def _are_of_a_run(entries: Sequence[os.DirEntry]) -> bool:
    """Tells whether a folder with these entries is that of a run."""
    return len(_OF_A_RUN.intersection(entry.name for entry in entries)) > 1


def _is_folder(entry: os.DirEntry) -> bool:
    """Tells whether an entry is a folder, or a link to one."""
    try:
        return with_retries(entry.path, entry.is_dir)
    except ReadFailed:
        raise
    except OSError:  # a link to itself
        return False


def _identity(folder: Path | os.DirEntry) -> tuple[int, int]:
    """Returns device and inode of a file or folder, which are the same for all its names."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _identities_above(root: Path) -> frozenset[tuple[int, int]]:
    """Returns those of a folder and of all that it lies in, by its name and by where links lead."""
    folders = {root, *root.absolute().parents, *root.resolve().parents}
    return frozenset(map(_identity, folders))


def contents(folder: Path) -> str:
    """Says what a folder holds: "2 folders (a, b) and 3 other files (.txt, .csv)"."""
    all_entries = _entries(folder)
    hidden = [entry.name for entry in all_entries if entry.name.startswith(".")]
    entries = [entry for entry in all_entries if not entry.name.startswith(".")]
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
    """Joins the first few names by commas, with dots if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


_SUFFIXES = frozenset(image_suffixes())
