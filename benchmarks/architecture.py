"""Counts of the source: rooms, floors, circles, long files, and the way from a command to the loss.

    python -m benchmarks.architecture

The way is measured, not read: a tiny pretraining run is stopped where the weights of patches are
computed for the first time, and the files of this package are counted whose functions stand on the
call stack then, and those any function of which was called before, data and networks aside.
Circles and floors are those that import-linter's graph has. What is counted is stored in
benchmarks/results/architecture.json.
"""

import ast
import inspect
import itertools
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

import grimp

from benchmarks.environment import store

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "ddae_jax"
ASIDE = ("data", "models", "interop")
"""Rooms that are read for what they are about, and not on the way from a command to the loss."""

OPTIONS = (
    "--config.epochs=0.05",
    "--config.model.size=nano",
    "--config.data.num_threads=1",
    "--config.evaluation.knn_every_epochs=0",
    "--config.log.tensorboard=False",
)


class _AtTheLoss(BaseException):
    """The first weights of patches are about to be computed."""


def main() -> None:
    """Prints the counts and stores them."""
    counts = {
        "rooms": rooms(),
        "longest_files": longest_files(),
        "longest_functions": longest_functions(),
        "circles": circles(),
        "way_to_the_loss": way_to_the_loss(),
    }
    for name, value in counts.items():
        print(f"{name}: {value}")
    store("architecture", counts)


def rooms() -> dict[str, dict[str, int]]:
    """Returns files and lines of each room; "." is the top level of the package."""
    counts: dict[str, dict[str, int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = counts.setdefault(str(path.parent.relative_to(PACKAGE)), {"files": 0, "lines": 0})
        room["files"] += 1
        room["lines"] += len(path.read_text(encoding="utf-8").splitlines())
    return counts


def longest_files(count: int = 5) -> dict[str, int]:
    """Returns the lines of the longest files."""
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    return dict(sorted(lines.items(), key=lambda pair: -pair[1])[:count])


def longest_functions(count: int = 5) -> dict[str, int]:
    """Returns the lines of the longest functions."""
    lines = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                name = f"{path.relative_to(ROOT)}:{node.name}"
                lines[name] = node.end_lineno - node.lineno + 1
    return dict(sorted(lines.items(), key=lambda pair: -pair[1])[:count])


def circles() -> list[list[str]]:
    """Returns pairs of modules that import each other, directly or through others."""
    graph = grimp.build_graph("ddae_jax")
    above = {name: graph.find_upstream_modules(name) for name in graph.modules}
    return [
        sorted(pair)
        for pair in itertools.combinations(sorted(graph.modules), 2)
        if pair[0] in above[pair[1]] and pair[1] in above[pair[0]]
    ]


def way_to_the_loss() -> dict[str, list[str]]:
    """Returns the files on the call stack at the loss, and all that were called on the way."""
    from ddae_jax import pretrain
    from ddae_jax.methods import supervision

    called: set[str] = set()
    stack: list[str] = []

    def stop(*_):
        stack.extend(_on_the_stack())
        raise _AtTheLoss

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # not a module's body
            called.add(frame.f_code.co_filename)

    weights, supervision.dynamic_weights = supervision.dynamic_weights, stop
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(note)
        try:
            config = f"--config={ROOT / 'configs' / 'digits.py'}"
            pretrain.main([config, f"--workdir={folder}/run", *OPTIONS])
        except _AtTheLoss:
            pass
        finally:
            sys.setprofile(None)
            supervision.dynamic_weights = weights
    return {"on_the_stack": _of_the_package(stack), "called": _of_the_package(called)}


def _on_the_stack() -> Iterator[str]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def _of_the_package(paths) -> list[str]:
    """Returns those of the package, but for rooms aside, in alphabetical order."""
    inside = {pathlib.Path(path) for path in paths if str(PACKAGE) in path}
    names = {str(path.relative_to(PACKAGE)) for path in inside}
    return sorted(name for name in names if not re.match(rf"({'|'.join(ASIDE)})/", name))


if __name__ == "__main__":
    main()
