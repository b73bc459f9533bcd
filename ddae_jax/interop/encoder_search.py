"""Search for an encoder in what a checkpoint holds: under which key, behind which name prefix.

Training code saves several networks side by side (student and teacher, weights and their moving
average) and wraps them in modules that put a word before each name. An encoder is recognised by its
patch embedding, whatever surrounds it.
"""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddae_jax.interop.weights_to_params import Weights

Place = tuple[str, ...]
"""Keys of nested dicts, then the words of a name prefix, that lead to a network."""

PREFERRED = ("model", "state_dict", "module", "teacher", "target_encoder", "base_encoder")
PREFERRED += ("student", "encoder", "backbone")
"""Preference among several networks, if none is asked for: places with earlier words come first."""

_MOST_DEPTH = 3
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_DATA_PARALLEL = "module."  # torch's DataParallel puts it before each name
_CHUNK = re.compile(r"((?:^|\.)blocks)\.\d+\.(\d+\.)")  # DINOv2's training code chunks its blocks

_PATCH_EMBEDDING = re.compile(
    r"((?:.*\.)?)(?:patch_embed\.proj\.weight|embeddings\.patch_embeddings\.projection\.weight|"
    r"embeddings\.patch_embedding\.weight|class_embedding)"
)
"""Names that mark an encoder in timm, transformers and OpenAI's CLIP, and the prefix before them.

CLIP's patch embedding has a common name, ``conv1.weight``; the class token beside it is the mark.
"""


class Network(NamedTuple):
    """Weights of an encoder, taken from a file that may hold more.

    Attributes:
        weights: arrays by name, without the prefix that they have in the file.
        place: where in the file the encoder lies, words separated by dots; empty if the file holds
            nothing but the encoder.
        others: places of the other encoders in the file.
    """

    weights: Weights
    place: str
    others: tuple[str, ...] = ()


class NoSuchPart(ValueError):
    """Error for a place that holds no network, or more than one. The message lacks the file."""


def preferred_arrays(content: Any) -> Weights | None:
    """Returns the arrays by name in a file's content; of several collections, the preferred one.

    Args:
        content: as in :func:`find_encoder`.

    Returns:
        Arrays by name, or None if there are none.

    Raises:
        NoSuchPart: if two arrays would have the same name without their wrappers' prefixes.
    """
    ranked = sorted(_collections(content), key=lambda item: _rank(item[0]))
    return _unwrapped(ranked[0][1]) if ranked else None


def find_encoder(content: Any, part: str = "") -> Network | None:
    """Finds the encoder in a file's content.

    Args:
        content: what the file holds; dicts in it may be nested up to three deep.
        part: the place of the encoder (see :class:`Network`), or some consecutive words of it. If
            empty, the preferred encoder is taken: see :data:`PREFERRED`.

    Returns:
        The encoder, or None if there is none.

    Raises:
        NoSuchPart: if ``part`` fits no encoder, if several are equally preferred, or if two arrays
            would have the same name without their wrappers' prefixes.
    """
    encoders = dict(_encoders(content))
    if not encoders:
        return None
    words = part.split(".") if part else []
    chosen = [p for p in encoders if ".".join(p) == part] if part else list(encoders)
    chosen = chosen or [place for place in encoders if _has_in_a_row(place, words)]
    known = ", ".join(repr(".".join(place)) for place in encoders)
    if not chosen:
        raise NoSuchPart(f"has no network at {part!r}; there is one at {known}")
    chosen.sort(key=_rank)
    if len(chosen) > 1 and _rank(chosen[0]) == _rank(chosen[1]):
        raise NoSuchPart(
            f"has networks at {known}, and which of them is meant is not known: "
            f"--config.init_part={'.'.join(chosen[0])} takes one of them"
        )
    others = tuple(".".join(place) for place in encoders if place != chosen[0])
    return Network(encoders[chosen[0]], ".".join(chosen[0]), others)


def _encoders(content: Any) -> Iterator[tuple[Place, Weights]]:
    """Yields each place with a patch embedding, and the arrays there without their prefix."""
    for place, arrays in _collections(content):
        arrays = _unwrapped(arrays)
        prefixes = list(_prefixes(arrays))
        for prefix in prefixes:
            inner = [other for other in prefixes if other != prefix and other.startswith(prefix)]
            own = {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix) and not name.startswith(tuple(inner))
            }
            yield (*place, *prefix.split(".")[:-1]), own


def _prefixes(arrays: Weights) -> dict[str, None]:
    """Returns the prefix of each patch embedding's name, in order and without duplicates."""
    if "embedding/kernel" in arrays:  # Google's files
        return {"": None}
    matches = (_PATCH_EMBEDDING.fullmatch(name) for name in arrays)
    prefixes = dict.fromkeys(match[1] for match in matches if match)
    is_clip = {prefix: f"{prefix}conv1.weight" in arrays for prefix in prefixes}
    return {p: None for p in prefixes if is_clip[p] or f"{p}class_embedding" not in arrays}


def _collections(content: Any) -> Iterator[tuple[Place, Mapping[str, np.ndarray]]]:
    """Yields each dict of arrays by name with its place, outer dicts before inner ones."""
    waiting: collections.deque[tuple[Place, dict]] = collections.deque()
    waiting += [((), content)] if isinstance(content, dict) else []
    visited = set()
    while waiting:
        place, values = waiting.popleft()
        if id(values) in visited:
            continue
        visited.add(id(values))  # dicts may contain each other
        arrays = {n: a for n, a in values.items() if isinstance(n, str) and _is_array(a)}
        if arrays and (len(arrays) == len(values) or _prefixes(arrays)):
            yield place, arrays
        if len(place) < _MOST_DEPTH:
            waiting += [
                ((*place, name), value)
                for name, value in values.items()
                if isinstance(name, str) and isinstance(value, dict)
            ]


def _unwrapped(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Returns the arrays by their names without what wrapping modules add to these.

    Raises :class:`NoSuchPart` if two names become the same.
    """
    names = {name: _CHUNK.sub(r"\1.\2", _WRAPPERS.sub("", name)) for name in arrays}
    if all(name.startswith(_DATA_PARALLEL) for name in names.values()):
        names = {name: new.removeprefix(_DATA_PARALLEL) for name, new in names.items()}
    weights: dict[str, np.ndarray] = {}
    for name, new in names.items():
        if new in weights:
            raise NoSuchPart(f"has two arrays that are called {new} but for their wrappers")
        weights[new] = arrays[name]
    return weights


def _rank(place: Place) -> tuple[int, ...]:
    """Returns a sort key by which preferred places come first."""
    return tuple(PREFERRED.index(word) if word in PREFERRED else len(PREFERRED) for word in place)


def _has_in_a_row(place: Place, words: Sequence[str]) -> bool:
    count = len(words)
    return any(list(place[i : i + count]) == list(words) for i in range(len(place) - count + 1))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
