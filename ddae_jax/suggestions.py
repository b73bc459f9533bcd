"""Words for messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """``; did you mean 'mae'?`` for a slip of a known word, or nothing.

    Capitals, and a hyphen for an underscore, are such slips; a number is no slip of another one.
    """
    if not isinstance(word, str):
        return ""
    plain = {_plain(candidate): candidate for candidate in known}
    near = difflib.get_close_matches(_plain(word), plain, n=1)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def printable(text: str) -> str:
    """The text in characters that every file takes: bytes that are no UTF-8 as ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _plain(word: object) -> str:
    return str(word).lower().replace("-", "_")
