"""A job without what costs a tiny run most beside its training: undrawn.py JOB --flags.

The files of figures are there, but empty; what the report says is written as ever. Neither
Matplotlib nor scikit-learn is imported, which takes two seconds; digits are read from a file.
"""

import contextlib
import importlib
import os
import pathlib
import sys
import types

FIGURES = ("", ".axes", ".colors", ".figure", ".image", ".lines", ".patches", ".ticker")


@contextlib.contextmanager
def pictures_left_out():
    """Lets figures be made and saved, but not drawn, in the body."""
    from matplotlib.figure import Figure

    save = Figure.savefig
    Figure.savefig = lambda self, path, **_: path.touch()
    try:
        yield
    finally:
        Figure.savefig = save


def load(job: str) -> types.ModuleType:
    """The module of a job, in a process that draws nothing."""
    _put_digits_in_place()
    for name in FIGURES:
        sys.modules[f"matplotlib{name}"] = _Absent(f"matplotlib{name}")
    module = importlib.import_module(f"ddae_jax.{job}")
    for other in [found for name, found in sys.modules.items() if name.startswith("ddae_jax.")]:
        for name in vars(other):
            if name.endswith("_figure"):
                setattr(other, name, _touch)
    return module


class _Absent(types.ModuleType):
    """A module of which everything can be imported, and nothing used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_: None})


def _touch(path: pathlib.Path, *_, **__) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()


def _put_digits_in_place() -> None:
    """Lets scikit-learn's digits be read from a file, which the first such process writes."""
    import numpy as np

    from ddae_jax.training.workdir import written_atomically

    path = pathlib.Path(os.environ["TEST_PROGRAMS"]) / "digits.npz"
    if not path.exists():
        from sklearn.datasets import load_digits

        digits = load_digits()
        with written_atomically(path) as half_written:
            np.savez(half_written, images=digits.images, target=digits.target)

    def read_digits():
        with np.load(path) as digits:
            return types.SimpleNamespace(**digits)

    sys.modules["sklearn.datasets"] = types.SimpleNamespace(load_digits=read_digits)


if __name__ == "__main__":
    job = load(sys.argv[1])
    from ddae_jax.jobs import exits

    exits.run(lambda: job.main(sys.argv[2:]))
