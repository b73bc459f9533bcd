"""What names of folders say: of which split they are, or that label maps lie in them."""

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

# What people write beside the word for a split without meaning anything else.
_NEUTRAL = frozenset({"set", "data", "dataset", "split", "images", "image", "imgs", "img"})
# Words for splits that are classes of images too: alone among others they tell nothing.
_ALSO_CLASSES = frozenset({"train", "training", "valid"})

_IMAGES = frozenset({"images", "image", "imgs", "img", "photos", "pictures", "frames", "rgb"})
_IMAGES |= {"input", "inputs"}
# Words for label maps: nobody's classes; classes rarely; and words that classes have as well.
_LABEL_MAPS = frozenset({"annotations", "annotation", "groundtruth", "trimaps", "labelmaps"})
_LABEL_MAPS |= {"segmentationclass", "segmentationobject", "labelids"}
_LABELS = frozenset({"labels", "masks", "annots", "segmentations"})
_LABEL = frozenset({"label", "mask", "gt", "annot", "segmentation"})

# A name parts where its case changes, at digits, and at what is no letter.
_WORD = re.compile(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+")


@dataclasses.dataclass(frozen=True)
class FolderName:
    """The name of a folder, by its words.

    **Arguments:**

    - `text`: the name.
    - `words`: in lower case; two that follow each other count as one too, as in ground_truth.
    - `kind`: `TRAIN`, `VALIDATION` or `TEST` if one of the words is a split's; else None.
    - `around`: what the name is around that word; the names of one set of splits share it.
    - `is_plain`: whether it is of a split and says nothing else.
    """

    text: str
    words: frozenset[str]
    kind: str | None
    around: str
    is_plain: bool

    @classmethod
    def of(cls, text: str) -> "FolderName":
        """Takes a name apart."""
        singles = [(m.group().lower(), *m.span()) for m in _WORD.finditer(text)]
        neighbours = zip(singles[:-1], singles[1:], strict=True)
        spans = [(a + b, start, end) for (a, start, _), (b, _, end) in neighbours] + singles
        words = frozenset(word for word, _, _ in spans)
        named = [span for span in spans if span[0] in _KINDS]
        if not named:
            return cls(text, words, None, text, False)
        order = tuple(_WORDS)  # trainval is trained on
        word, start, end = min(named, key=lambda span: order.index(_KINDS[span[0]]))
        others = {other for other, first, last in singles if last <= start or first >= end}
        around = f"{text[:start]}*{text[end:]}".lower()
        return cls(text, words, _KINDS[word], around, others <= _NEUTRAL)

    @property
    def may_hold_labels(self) -> bool:
        """Whether one of its words stands for label maps."""
        return bool(self.words & (_LABEL_MAPS | _LABELS | _LABEL))

    @property
    def says_images(self) -> bool:
        """Whether one of its words stands for images, and none for label maps."""
        return bool(self.words & _IMAGES) and not self.may_hold_labels


def named(texts: Iterable[str]) -> list[FolderName]:
    """Takes names of folders apart."""
    return [FolderName.of(text) for text in texts]


def parts_of_a_set(names: Sequence[FolderName], may_be_one: bool = False) -> list[FolderName]:
    """Those names of folders that lie side by side which are called as splits are.

    One for training needs a counterpart, with the same words around or with none, and so does the
    counterpart. A class may be called a train, or be of test tubes.

    **Arguments:**

    - `names`: of all of them.
    - `may_be_one`: whether a name without a counterpart, which says nothing else and is no class's
      too, is enough.
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
    """Those names of folders that lie side by side which are called as label maps are.

    **Arguments:**

    - `names`: of all of them.
    - `has_images_beside`: whether there are images beside these folders too.
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
    """The split to take of several: of the first kind there is, called like another, or plainly."""
    usable = [name for name in names if name.kind in kinds and not name.may_hold_labels]

    def rank(name: FolderName) -> tuple[int, bool, bool]:
        is_like = like is not None and name.around == like.around
        return kinds.index(name.kind), not is_like, not name.is_plain

    return min(usable, key=rank, default=None)
