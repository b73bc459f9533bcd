"""The platform that a program is compiled for; the best form of a layer depends on it."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_compiled_for: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """Returns ``cpu``, ``gpu`` or ``tpu``: JAX's default, or what :func:`compiled_for` sets."""
    return _compiled_for.get() or jax.default_backend()


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Makes layers that are traced in the body take the forms that suit ``platform``."""
    token = _compiled_for.set(platform)
    try:
        yield
    finally:
        _compiled_for.reset(token)
