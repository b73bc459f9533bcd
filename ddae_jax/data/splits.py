"""Where in a folder a split lies, and what is read there though its name says something else."""

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

# What may stand in for a split that is not there: never what is trained on.
_INSTEAD = {TRAIN: (TRAIN,), VALIDATION: (VALIDATION, TEST), TEST: (TEST, VALIDATION)}

_PERCENTS = re.compile(r"(?:(-?\d+)%)?:(?:(-?\d+)%)?")

# Folders that are looked into for a split that is not there.
_MOST_LOOKED_INTO = 20

Tree = Mapping[str, Sequence[str]]


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
        return root
    raise FileNotFoundError(
        f"no split {split!r} in {root}: expected the folder {root / split}; "
        f"{root} contains {contents(root)}{split_hint(split, [root])}"
    )


def split_hint(split: str, folders: Sequence[Path]) -> str:
    """A hint for an error message: what the split may be called in all of the folders.

    What is trained on is never proposed for a test.
    """
    kind = FolderName.parse(split).kind
    found = _instead_of(split, folders)
    if found is None and len(folders) == 1:
        below = folder_names(folders[0])[:_MOST_LOOKED_INTO]
        tries = (_instead_of(split, [folders[0] / name]) for name in below if kind)
        found = next((folder for folder in tries if folder), None)
    if found is None:
        return ""
    key = "train_split" if (kind or FolderName.parse(found.name).kind) == TRAIN else "test_split"
    found = _inner(found) if len(folders) == 1 else found
    return f"; did you mean data.{key}={_relative(found, folders[0])!r}?"


def _instead_of(split: str, folders: Sequence[Path]) -> Path | None:
    """The folder in the first one that a split is in, if it is in the others too."""
    there = [folder_names(folder) for folder in folders]
    names = parse_names(name for name in there[0] if all(name in others for others in there[1:]))
    kind = FolderName.parse(split).kind
    if kind is None:
        near = difflib.get_close_matches(split, [name.text for name in names], n=1)
        return folders[0] / near[0] if near else None
    train = split_called([TRAIN], names)
    found = split_called(_INSTEAD[kind], names, like=train)
    return folders[0] / found.text if found else None


def warn_of_parts(data_dir: str, root: Path, paths: Iterable[bytes]) -> None:
    """Warns where folders whose images are read are called as splits are, or as label maps.

    That is told by names, of two levels of folders below the one that all images share.

    **Arguments:**

    - `data_dir`: as it is given.
    - `root`: of the images: `data_dir`, or a split in it.
    - `paths`: of the images, relative to `root`.
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
    told = [
        f"{what} ({some_of([_relative(place / name.text, root) for place, name in found])})"
        for found, what in ((parts, "are parts of a data set"), (maps, "hold label maps"))
        if found
    ]
    if not told:
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
        ", and others ".join(told),
        "set " + " and ".join(f"data.{key}={value!r}" for key, value in values.items())
        if values
        else "move the images out from among them",
    )


def warn_of_shared_examples(
    source: str, data_dir: str, train_split: str, test_split: str, within: str = ""
) -> None:
    """Warns where what is tested on is trained on too, by what the splits are called.

    **Arguments:**

    - `source`, `data_dir`, `train_split`, `test_split`: those of the config.
    - `within`: where in `data_dir` the folders of splits lie.
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
            "trained on: scores on them tell what is remembered, and nothing of other images. Set "
            "data.test_split to a split of its own",
            test_split,
            train_split,
        )


def _slices_meet(one: str, other: str) -> bool:
    """Whether two slices of TFDS splits, such as train[:80%], have examples in common.

    Of those by numbers of examples only the same ones are known to.
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
    """The folder that all images share, two levels below it, and whether some lie beside these."""
    folders = set(map(os.fsdecode, set(map(os.path.dirname, paths))))
    shared = os.path.commonpath(folders)
    tree: dict[str, set[str]] = {}
    for folder in folders:
        top, *below = Path(folder).relative_to(shared).parts[:2] or ("",)
        tree.setdefault(top, set()).update(below)
    has_images_beside = tree.pop("", None) is not None
    return root / shared, {top: sorted(tree[top]) for top in sorted(tree)}, has_images_beside


def _keys_of(parts: Sequence[tuple[Path, FolderName]], root: Path) -> list[tuple[str, Path]]:
    """The keys that would make parts the splits, of the first folder that has one to train on."""
    places = [p for p, _ in parts if not FolderName.parse(_relative(p, root)).may_hold_labels]
    places.sort(key=lambda place: (place, TRAIN) not in [(p, name.kind) for p, name in parts])
    names = [name for place, name in parts if place == places[0]] if places else []
    train = split_called([TRAIN], names)
    test = split_called([VALIDATION, TEST], names, like=train)
    found = [("train_split", train), ("test_split", test)]
    return [(key, places[0] / name.text) for key, name in found if name]


def _beside(
    maps: Sequence[tuple[Path, FolderName]], tops: Sequence[FolderName], base: Path
) -> list[Path]:
    """The folder of all images beside label maps, if it is one."""
    images = [name for name in tops if name not in [n for _, n in maps]]
    if len(images) != 1 or any(place != base for place, _ in maps):
        return []
    return [base / images[0].text]


def _inner(folder: Path) -> Path:
    """The folder, or what lies in it alone by a split's name, or by that of images beside maps."""
    while True:
        names = parse_names(folder_names(folder))
        maps = label_maps(names)
        images = [name for name in names if name not in maps]
        is_alone = len(names) == 1 and names[0].kind == FolderName.parse(folder.name).kind
        if len(images) != 1 or not (maps or (is_alone and names[0].kind)):
            return folder
        folder = folder / images[0].text


def _relative(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix()


def _warn_of_ignored_folders(root: Path, split: str) -> None:
    """Where `split` may be one class of several, beside others that nobody would call a split."""
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
