"""Warnings that are told once in a process, however many files they concern."""

import logging

_told: set[str] = set()


def is_told(kind: str) -> bool:
    """Tells whether a kind of warning was given already."""
    return kind in _told


def warn_once(log: logging.Logger, kind: str, message: str, *arguments: object) -> None:
    """Warns, unless a warning of that kind was given before."""
    if not is_told(kind):
        _told.add(kind)
        log.warning(message, *arguments)
