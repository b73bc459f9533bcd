"""Warnings that are given once in a process, however many files they concern."""

import logging

_given: set[str] = set()


def was_given(kind: str) -> bool:
    """Tells whether a warning of this kind was given before."""
    return kind in _given


def warn_once(log: logging.Logger, kind: str, message: str, *arguments: object) -> None:
    """Logs a warning, unless one of the same kind was given before.

    Args:
        log: the logger of the calling module.
        kind: a name of the warning, which differs from those of all others.
        message, arguments: as for ``Logger.warning``.
    """
    if not was_given(kind):
        _given.add(kind)
        log.warning(message, *arguments)
