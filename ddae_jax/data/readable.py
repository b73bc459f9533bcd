"""Whether any example of a split can be decoded, asked before a run relies on it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddae_jax.data.images import CorruptImage
from ddae_jax.data.source_base import Source

_SOME = 3


class NothingReadable(ValueError):
    """A split of which no example can be decoded. The message counts the causes."""


def check_any_is_readable(source: Source, what: str) -> None:
    """Decodes examples that have a label, until one can be.

    `what` names the source. Raises `NothingReadable` if none can be.
    """
    indices: Sequence[int] = range(len(source))
    if source.has_labels_at_hand:
        indices = np.flatnonzero(source.labels() >= 0).tolist()
    check_any_decodes(source.__getitem__, indices, what)


def check_any_decodes(decode: Callable[[int], Any], indices: Sequence[int], what: str) -> None:
    """Decodes examples until one can be; raises `NothingReadable` if there are some and none can.

    **Arguments:**

    - `decode`: the example of an index. Raises `CorruptImage`.
    - `indices`: of the examples.
    - `what`: names the source.
    """
    causes: Counter[str] = Counter()
    told: list[str] = []
    for index in indices:
        try:
            decode(index)
        except CorruptImage as error:
            causes[error.kind] += 1
            told += [str(error)] if len(told) < _SOME else []
        else:
            return
    if causes:
        counts = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common())
        raise NothingReadable(
            f"{what}: none of {causes.total():,} examples can be decoded ({counts}): "
            f"{'; '.join(told)}{'; ...' if causes.total() > _SOME else ''}"
        )
