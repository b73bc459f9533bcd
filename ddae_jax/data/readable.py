"""Checking that at least one example of a split can be decoded, before a run relies on it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddae_jax.data.images import CorruptImage
from ddae_jax.data.source_base import Source

_MOST_NAMED = 3  # errors in a message


class NothingReadable(ValueError):
    """A split of which no example can be decoded. The message counts the causes."""


def check_any_is_readable(source: Source, what: str) -> None:
    """Decodes labelled examples until one can be decoded.

    Args:
        source: the examples. Those of a source whose labels are not at hand all count as labelled.
        what: the name of the source in the message.

    Raises:
        NothingReadable: if there are some and none can be decoded.
    """
    indices: Sequence[int] = range(len(source))
    if source.has_labels_at_hand:
        indices = np.flatnonzero(source.labels() >= 0).tolist()
    check_any_decodes(source.__getitem__, indices, what)


def check_any_decodes(decode: Callable[[int], Any], indices: Sequence[int], what: str) -> None:
    """Decodes examples until one can be decoded.

    Args:
        decode: decodes the example of an index, or raises ``CorruptImage``.
        indices: of the examples.
        what: the name of the source in the message.

    Raises:
        NothingReadable: if there are some and none can be decoded.
    """
    causes: Counter[str] = Counter()
    messages: list[str] = []
    for index in indices:
        try:
            decode(index)
        except CorruptImage as error:
            causes[error.kind] += 1
            messages += [str(error)] if len(messages) < _MOST_NAMED else []
        else:
            return
    if causes:
        counts = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common())
        raise NothingReadable(
            f"{what}: none of {causes.total():,} examples can be decoded ({counts}): "
            f"{'; '.join(messages)}{'; ...' if causes.total() > _MOST_NAMED else ''}"
        )
