"""Where in a file a network lies: under which key, and behind which prefix of its names.

Training code saves networks beside each other (student and teacher, weights and their moving
average), and wraps them in modules that put a word before each name. An encoder is found by its
patch embedding, whatever lies around it.
"""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddae_jax.interop.weights_to_params import Weights

Place = tuple[str, ...]

PREFERRED = ("model", "state_dict", "module", "teacher", "target_encoder", "base_encoder")
PREFERRED += ("student", "encoder", "backbone")
"""Which of several networks is taken, if none is asked for: the first of these words decides."""

_MOST_DEPTH = 3
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_DATA_PARALLEL = "module."  # which torch puts before each name
_CHUNK = re.compile(r"((?:^|\.)blocks)\.\d+\.(\d+\.)")  # DINOv2's, of blocks that are trained

_PATCH_EMBEDDING = re.compile(
    r"((?:.*\.)?)(?:patch_embed\.proj\.weight|embeddings\.patch_embeddings\.projection\.weight|"
    r"embeddings\.patch_embedding\.weight|class_embedding)"
)
"""In the names of timm, transformers and OpenAI, whose CLIP has its class token at that level."""


class Network(NamedTuple):
    """An encoder's weights, out of a file that may hold more.

    Attributes:
        weights: by the names that they have in the encoder.
        place: of it in the file, words between dots; empty if the file is the encoder.
        others: places of what else there is.
    """

    weights: Weights
    place: str
    others: tuple[str, ...] = ()


class NoSuchPart(ValueError):
    """No network, or more than one, lies where one is asked for."""


def preferred_arrays(found: Any) -> Weights | None:
    """All arrays by name of what a file holds; of several places those of the preferred one.

    None if there are no arrays by name.
    """
    places = sorted(_collections(found), key=lambda item: _rank(item[0]))
    return _unwrapped(places[0][1]) if places else None


def find_encoder(found: Any, part: str = "") -> Network | None:
    """The encoder in what a file holds; None if there is none.

    Args:
        found: dicts within dicts, of arrays at last.
        part: the place of the one that is meant, or some words in a row of it; by default, the
            preferred one.

    Raises :class:`NoSuchPart`, naming those that there are.
    """
    encoders = dict(_encoders(found))
    if not encoders:
        return None
    asked = part.split(".") if part else []
    chosen = [p for p in encoders if ".".join(p) == part] if part else list(encoders)
    chosen = chosen or [place for place in encoders if _has_in_a_row(place, asked)]
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


def _encoders(found: Any) -> Iterator[tuple[Place, Weights]]:
    """Each place with a patch embedding, and the arrays there."""
    for place, arrays in _collections(found):
        arrays = _unwrapped(arrays)
        prefixes = list(_prefixes(arrays))
        for prefix in prefixes:
            within = [other for other in prefixes if other != prefix and other.startswith(prefix)]
            own = {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix) and not name.startswith(tuple(within))
            }
            yield (*place, *prefix.split(".")[:-1]), own


def _prefixes(arrays: Weights) -> dict[str, None]:
    """What is before the name of each patch embedding."""
    if "embedding/kernel" in arrays:  # Google's
        return {"": None}
    matches = (_PATCH_EMBEDDING.fullmatch(name) for name in arrays)
    found = dict.fromkeys(match[1] for match in matches if match)
    is_clip = {prefix: f"{prefix}conv1.weight" in arrays for prefix in found}
    return {p: None for p in found if is_clip[p] or f"{p}class_embedding" not in arrays}


def _collections(found: Any) -> Iterator[tuple[Place, Mapping[str, np.ndarray]]]:
    """Each dict of arrays by name, and its place."""
    waiting: collections.deque[tuple[Place, dict]] = collections.deque()
    waiting += [((), found)] if isinstance(found, dict) else []
    seen = set()
    while waiting:
        place, values = waiting.popleft()
        if id(values) in seen:
            continue
        seen.add(id(values))  # dicts may hold each other
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
    """The names without what wrappers put into them."""
    names = {name: _CHUNK.sub(r"\1.\2", _WRAPPERS.sub("", name)) for name in arrays}
    if all(name.startswith(_DATA_PARALLEL) for name in names.values()):
        names = {name: new.removeprefix(_DATA_PARALLEL) for name, new in names.items()}
    found: dict[str, np.ndarray] = {}
    for name, new in names.items():
        if new in found:
            raise NoSuchPart(f"has two arrays that are called {new} but for their wrappers")
        found[new] = arrays[name]
    return found


def _rank(place: Place) -> tuple[int, ...]:
    return tuple(PREFERRED.index(word) if word in PREFERRED else len(PREFERRED) for word in place)


def _has_in_a_row(place: Place, words: Sequence[str]) -> bool:
    count = len(words)
    return any(list(place[i : i + count]) == list(words) for i in range(len(place) - count + 1))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
