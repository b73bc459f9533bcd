"""Hints and printable text for error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """Returns ``; did you mean 'mae'?`` if a word is close to a known one, else an empty string.

    Case and the difference between hyphen and underscore are ignored. A word that is no string,
    such as a number, gets no suggestion.
    """
    if not isinstance(word, str):
        return ""
    candidates = {_plain(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_plain(word), candidates, n=1)
    return f"; did you mean {candidates[matches[0]]!r}?" if matches else ""


def printable(text: str) -> str:
    """Returns the text in valid UTF-8: bytes that were undecodable appear as ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _plain(word: object) -> str:
    return str(word).lower().replace("-", "_")
