"""Reading the names of folders: which split one is, and whether label maps lie in it."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

TRAIN, VALIDATION, TEST = "train", "validation", "test"

_WORDS = {
    TRAIN: ("train", "training", "trainset", "trainval"),
    VALIDATION: ("val", "valid", "validation", "valset", "dev", "devset"),
    TEST: ("test", "testing", "testset", "eval", "evaluation", "holdout", "heldout"),
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}

# Words beside that of a split which do not change its meaning.
_NEUTRAL = frozenset({"set", "data", "dataset", "split", "images", "image", "imgs", "img"})
# Words for splits that may be classes of images too: one alone among other folders is no sign.
_ALSO_CLASSES = frozenset({"train", "training", "valid"})

_IMAGES = frozenset({"images", "image", "imgs", "img", "photos", "pictures", "frames", "rgb"})
_IMAGES |= {"input", "inputs"}
# Words for label maps: those that are never classes, those that rarely are, and common ones.
_LABEL_MAPS = frozenset({"annotations", "annotation", "groundtruth", "trimaps", "labelmaps"})
_LABEL_MAPS |= {"segmentationclass", "segmentationobject", "labelids"}
_LABELS = frozenset({"labels", "masks", "annots", "segmentations"})
_LABEL = frozenset({"label", "mask", "gt", "annot", "segmentation"})

# Names are split into words where their case changes, at digits, and at other characters.
_WORD = re.compile(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+")


@dataclasses.dataclass(frozen=True)
class FolderName:
    """The name of a folder, and what its words say.

    Args:
        text: the name.
        words: in lower case. Two that follow each other count as one too, as in ground_truth.
        kind: ``TRAIN``, ``VALIDATION`` or ``TEST`` if one of the words names a split; else None.
        around: the name without that word. The names of one set of splits share it.
        is_plain: whether the name is that of a split and says nothing else.
    """

    text: str
    words: frozenset[str]
    kind: str | None
    around: str
    is_plain: bool

    @classmethod
    def parse(cls, text: str) -> "FolderName":
        """Parses a name."""
        singles = [(m.group().lower(), *m.span()) for m in _WORD.finditer(text)]
        neighbours = zip(singles[:-1], singles[1:], strict=True)
        spans = [(a + b, start, end) for (a, start, _), (b, _, end) in neighbours] + singles
        words = frozenset(word for word, _, _ in spans)
        split_words = [span for span in spans if span[0] in _KINDS]
        if not split_words:
            return cls(text, words, None, text, False)
        order = tuple(_WORDS)  # a name for training and validation, as train_val, is for training
        word, start, end = min(split_words, key=lambda span: order.index(_KINDS[span[0]]))
        others = {other for other, first, last in singles if last <= start or first >= end}
        around = f"{text[:start]}*{text[end:]}".lower()
        return cls(text, words, _KINDS[word], around, others <= _NEUTRAL)

    @property
    def may_hold_labels(self) -> bool:
        """Whether one of the words stands for label maps."""
        return bool(self.words & (_LABEL_MAPS | _LABELS | _LABEL))

    @property
    def says_images(self) -> bool:
        """Whether one of the words stands for images, and none for label maps."""
        return bool(self.words & _IMAGES) and not self.may_hold_labels


def parse_names(texts: Iterable[str]) -> list[FolderName]:
    """Parses the names of several folders."""
    return [FolderName.parse(text) for text in texts]


def parts_of_a_set(names: Sequence[FolderName], may_be_one: bool = False) -> list[FolderName]:
    """Returns those names that look like the splits of one dataset.

    A folder for training needs a counterpart for validation or test, and the other way round, with
    the same words around or with none: classes may be called "train" or "test tubes" too.

    Args:
        names: of all folders that lie side by side.
        may_be_one: whether a name without a counterpart counts too, if it says nothing but the
            split and is unlikely to be a class.
    """
    like: dict[str, set[str | None]] = {}
    for name in names:
        like.setdefault(name.around, set()).add(name.kind)
    plain = {name.kind for name in names if name.is_plain}

    def is_part(name: FolderName) -> bool:
        if name.is_plain and (may_be_one and name.text.lower() not in _ALSO_CLASSES):
            return True
        kinds = like[name.around] | (plain if name.is_plain else set())
        return TRAIN in kinds and len(kinds) > 1

    return [name for name in names if name.kind and is_part(name)]


def label_maps(names: Sequence[FolderName], has_images_beside: bool = False) -> list[FolderName]:
    """Returns those names that look like folders of label maps.

    Args:
        names: of all folders that lie side by side.
        has_images_beside: whether images lie beside these folders too.
    """
    others = [name for name in names if not name.may_hold_labels]
    is_beside = has_images_beside or any(name.says_images for name in names)
    known = _LABEL_MAPS if others else frozenset()
    known |= _LABELS if len(others) == 1 else frozenset()
    known |= _LABEL_MAPS | _LABELS | _LABEL if is_beside else frozenset()
    return [name for name in names if name.words & known]


def split_called(
    kinds: Sequence[str], names: Sequence[FolderName], like: FolderName | None = None
) -> FolderName | None:
    """Chooses the split to propose among several folders; None if no one is of these kinds.

    Args:
        kinds: the kinds of splits to look for, the preferred one first.
        names: of the folders.
        like: the name of another split. One with the same words around is preferred, then a plain
            one.
    """
    usable = [name for name in names if name.kind in kinds and not name.may_hold_labels]

    def rank(name: FolderName) -> tuple[int, bool, bool]:
        is_like = like is not None and name.around == like.around
        return kinds.index(name.kind), not is_like, not name.is_plain

    return min(usable, key=rank, default=None)
