"""Finding the folder of a split, and warnings where folders' names suggest another use of them."""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ddae_jax.data.folder_names import (
    TEST,
    TRAIN,
    VALIDATION,
    FolderName,
    label_maps,
    parse_names,
    parts_of_a_set,
    split_called,
)
from ddae_jax.data.folder_scan import SYSTEM_FOLDERS, contents, folder_names, is_run, some_of

_log = logging.getLogger(__name__)

# Kinds of splits to propose in place of a missing one. For a test, never what is trained on.
_INSTEAD = {TRAIN: (TRAIN,), VALIDATION: (VALIDATION, TEST), TEST: (TEST, VALIDATION)}

# The slice of a TFDS split by percents, such as 80%:
_PERCENTS = re.compile(r"(?:(-?\d+)%)?:(?:(-?\d+)%)?")

_MOST_SEARCHED = 20  # folders that are searched for a missing split

Tree = Mapping[str, Sequence[str]]
"""Names of folders, each with the names of the folders in it."""


def split_folder(data_dir: str, split: str) -> Path:
    """Returns the folder of a split: ``data_dir/split``, or ``data_dir`` itself.

    It is ``data_dir`` for "", and for "train" if there is no folder of that name.

    Raises:
        ValueError: if ``data_dir`` is empty.
        FileNotFoundError: if there is no such folder.
        NotADirectoryError: if ``data_dir`` is a file.
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
        return root
    raise FileNotFoundError(
        f"no split {split!r} in {root}: expected the folder {root / split}; "
        f"{root} contains {contents(root)}{split_hint(split, [root])}"
    )


def split_hint(split: str, folders: Sequence[Path]) -> str:
    """Returns a hint for an error message, which proposes a split that is there, or "".

    What is trained on is never proposed for a test.

    Args:
        split: the name of the missing split.
        folders: in all of which the split has to lie, such as those of images and of annotations.
    """
    kind = FolderName.parse(split).kind
    proposed = _instead_of(split, folders)
    if proposed is None and len(folders) == 1:
        below = folder_names(folders[0])[:_MOST_SEARCHED]
        candidates = (_instead_of(split, [folders[0] / name]) for name in below if kind)
        proposed = next((folder for folder in candidates if folder), None)
    if proposed is None:
        return ""
    key = "train_split" if (kind or FolderName.parse(proposed.name).kind) == TRAIN else "test_split"
    proposed = _inner(proposed) if len(folders) == 1 else proposed
    return f"; did you mean data.{key}={_relative(proposed, folders[0])!r}?"


def _instead_of(split: str, folders: Sequence[Path]) -> Path | None:
    """Returns the folder in the first one that may be meant by a split; all have to have it."""
    names_in = [folder_names(folder) for folder in folders]
    shared = (name for name in names_in[0] if all(name in others for others in names_in[1:]))
    names = parse_names(shared)
    kind = FolderName.parse(split).kind
    if kind is None:
        near = difflib.get_close_matches(split, [name.text for name in names], n=1)
        return folders[0] / near[0] if near else None
    train = split_called([TRAIN], names)
    instead = split_called(_INSTEAD[kind], names, like=train)
    return folders[0] / instead.text if instead else None


def warn_of_parts(data_dir: str, root: Path, paths: Iterable[bytes]) -> None:
    """Warns if folders that are read as classes have the names of splits, or of label maps.

    Looked at are the names of two levels of folders, below the one that all images lie in.

    Args:
        data_dir: as the config gives it.
        root: the folder that is read: ``data_dir``, or a split in it.
        paths: of the images, relative to ``root``.
    """
    base, tree, has_images_beside = _tree_of(root, paths)
    tops = parse_names(tree)
    parts = [(base, name) for name in parts_of_a_set(tops, may_be_one=True)]
    if all(name.kind != TRAIN for _, name in parts):
        parts += [(base / top, n) for top in tree for n in parts_of_a_set(parse_names(tree[top]))]
    if not parts and tree and base != root and FolderName.parse(base.name).is_plain:
        parts = [(base.parent, FolderName.parse(base.name))]
    maps = [(base, name) for name in label_maps(tops, has_images_beside)]
    maps += [(base / top, name) for top in tree for name in label_maps(parse_names(tree[top]))]
    findings = [
        f"{what} ({some_of([_relative(place / name.text, root) for place, name in folders])})"
        for folders, what in ((parts, "are parts of a data set"), (maps, "hold label maps"))
        if folders
    ]
    if not findings:
        return
    whole = Path(data_dir).expanduser()
    is_test = FolderName.parse(_relative(root, whole)).kind in (VALIDATION, TEST)
    key = "test_split" if is_test else "train_split"
    keys = _keys_of(parts, root) or [(key, f) for f in _beside(maps, tops, base)]
    values = {key: _relative(_inner(folder), whole) for key, folder in keys}
    _log.warning(
        "all images below %s are read, each folder of the first level as a class. By their names, "
        "folders there %s. If so, %s",
        root,
        ", and others ".join(findings),
        "set " + " and ".join(f"data.{key}={value!r}" for key, value in values.items())
        if values
        else "move the images out from among them",
    )


def warn_of_shared_examples(
    source: str, data_dir: str, train_split: str, test_split: str, within: str = ""
) -> None:
    """Warns if test images are trained on too, by the names of the splits.

    Args:
        source, data_dir, train_split, test_split: those of the config.
        within: the folder in ``data_dir`` in which the folders of splits lie.
    """
    if source == "folder":
        root = Path(data_dir).expanduser() / within
        train, test = (
            (root / split if (root / split).is_dir() else root).resolve()
            for split in (train_split, test_split)
        )
        is_shared = train == test or train in test.parents or test in train.parents
    else:
        is_shared = any(
            _slices_meet(one, other)
            for one in train_split.split("+")
            for other in test_split.split("+")
        )
    if is_shared:
        _log.warning(
            "images of data.test_split=%r are among those of data.train_split=%r, which are "
            "trained on: scores on them show what is remembered, not how other images fare. Set "
            "data.test_split to a split of its own",
            test_split,
            train_split,
        )


def _slices_meet(one: str, other: str) -> bool:
    """Tells whether two slices of TFDS splits, such as train[:80%], have examples in common.

    Slices by numbers of examples count as disjoint unless they are equal.
    """
    (name, cut), (other_name, other_cut) = (
        spec.strip().rstrip("]").partition("[")[::2] for spec in (one, other)
    )
    if name != other_name or cut == other_cut or not (cut and other_cut):
        return name == other_name
    spans = [_PERCENTS.fullmatch(cut), _PERCENTS.fullmatch(other_cut)]
    if None in spans:
        return False
    ends = [
        [int(text) if text else usual for text, usual in zip(m.groups(), (0, 100), strict=True)]
        for m in spans
    ]
    first, last = zip(*[[end + 100 * (end < 0) for end in span] for span in ends], strict=True)
    return max(first) < min(last)


def _tree_of(root: Path, paths: Iterable[bytes]) -> tuple[Path, Tree, bool]:
    """Returns the folders of images.

    Returns:
        The folder that all images lie in, two levels of folders below it, and whether images lie
        beside these folders too.
    """
    folders = set(map(os.fsdecode, set(map(os.path.dirname, paths))))
    shared = os.path.commonpath(folders)
    tree: dict[str, set[str]] = {}
    for folder in folders:
        top, *below = Path(folder).relative_to(shared).parts[:2] or ("",)
        tree.setdefault(top, set()).update(below)
    has_images_beside = tree.pop("", None) is not None
    return root / shared, {top: sorted(tree[top]) for top in sorted(tree)}, has_images_beside


def _keys_of(parts: Sequence[tuple[Path, FolderName]], root: Path) -> list[tuple[str, Path]]:
    """Returns the config keys, with their folders, that would read parts of a data set as splits.

    Of parts in several folders, those in the first one that has one to train on are taken.
    """
    places = [p for p, _ in parts if not FolderName.parse(_relative(p, root)).may_hold_labels]
    places.sort(key=lambda place: (place, TRAIN) not in [(p, name.kind) for p, name in parts])
    names = [name for place, name in parts if place == places[0]] if places else []
    train = split_called([TRAIN], names)
    test = split_called([VALIDATION, TEST], names, like=train)
    splits = [("train_split", train), ("test_split", test)]
    return [(key, places[0] / name.text) for key, name in splits if name]


def _beside(
    maps: Sequence[tuple[Path, FolderName]], tops: Sequence[FolderName], base: Path
) -> list[Path]:
    """Returns the folder of images beside those of label maps, if it is the only one."""
    images = [name for name in tops if name not in [n for _, n in maps]]
    if len(images) != 1 or any(place != base for place, _ in maps):
        return []
    return [base / images[0].text]


def _inner(folder: Path) -> Path:
    """Returns the innermost folder that holds a split's images.

    A folder is entered while it holds nothing but one folder of the same kind of split, or one
    folder of images beside those of label maps.
    """
    while True:
        names = parse_names(folder_names(folder))
        maps = label_maps(names)
        images = [name for name in names if name not in maps]
        is_alone = len(names) == 1 and names[0].kind == FolderName.parse(folder.name).kind
        if len(images) != 1 or not (maps or (is_alone and names[0].kind)):
            return folder
        folder = folder / images[0].text


def _relative(folder: Path, root: Path) -> str:
    """Returns the path of a folder relative to another one."""
    return folder.relative_to(root).as_posix()


def _warn_of_ignored_folders(root: Path, split: str) -> None:
    """Warns if ``split`` may be one class of several: beside folders that look like no splits."""
    if FolderName.parse(split).kind and not split.isalpha():
        return  # no class, but train2017 or images/train
    names = parse_names(name for name in folder_names(root) if name.lower() not in SYSTEM_FOLDERS)
    known = parts_of_a_set(names, may_be_one=True) + label_maps(names)
    known += [name for name in names if name.kind and name.may_hold_labels]
    beside = [
        name.text
        for name in names
        if name not in known and name.text != Path(split).parts[0] and not is_run(root / name.text)
    ]
    if beside:
        _log.warning(
            "only the images in %s are read, not those in the folders beside it (%s); if %r is one "
            "of your classes, put all of them into a folder called 'train'",
            root / split,
            some_of(beside),
            split,
        )
