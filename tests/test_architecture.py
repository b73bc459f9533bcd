"""The house: imports go down only, there is no circle, and every public name is documented.

Read from the source with ``ast``, so that imports inside functions count too.
"""

import ast
import functools
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "ddae_jax"
PATHS = sorted((ROOT / PACKAGE).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))

FLOOR_OF_FOLDER = {
    "models": 2,
    "methods": 3,
    "training": 4,
    "evaluation": 4,
    "forecast": 4,
    "config": 5,
    "tasks": 5,
}
FLOOR_1 = {
    "platform",
    "patches",
    "distance",
    "masking",
    "dynamic_loss",
    "hog",
    "codebook",
    "hints",
    "mixing",
}
BESIDE_THE_HOUSE = {"data", "interop"}  # on no floor, and standing on none
GROUND = {"disks"}  # which everything may stand on


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PATHS}
every_module = pytest.mark.parametrize("module", MODULES)


def imported(path: Path) -> set[str]:
    """Everything a file imports, by absolute name; of the package's own names, the module."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; name the package"
            for alias in node.names:
                is_module = f"{node.module}.{alias.name}" in MODULES
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def own_imports(module: str) -> set[str]:
    names = imported(MODULES[module])
    unknown = {n for n in names if n.split(".")[0] == PACKAGE and n not in MODULES}
    assert not unknown, f"{module} imports {unknown}, which are no modules of {PACKAGE}"
    return names & MODULES.keys()


def place(module: str) -> str:
    """The folder, or the name of a file that lies directly in the package."""
    return module.split(".")[1]


def floor(module: str) -> int | None:
    """1 to 5, and 0 below them; None beside the house."""
    if place(module) in BESIDE_THE_HOUSE:
        return None
    if place(module) in GROUND:
        return 0
    if place(module) in FLOOR_1:
        return 1
    folder = FLOOR_OF_FOLDER.get(place(module))
    assert folder or MODULES[module].parent == ROOT / PACKAGE, f"{module} lies on no known floor"
    return folder or 5


def test_there_is_something_to_look_at():
    assert {floor(module) for module in MODULES if module != PACKAGE} >= {1, 2, 3, 4, 5, None}
    assert {f"{PACKAGE}.{name}" for name in FLOOR_1} <= MODULES.keys()


@every_module
def test_imports_go_down_only(module):
    if module == PACKAGE:
        # The front door shows the plug-in and its mathematics, and nothing above them.
        assert all(floor(name) <= 3 for name in own_imports(module))
        return
    for name in own_imports(module):
        assert name != PACKAGE, f"{module} imports through the front door"
        assert floor(module) != 0, f"{module} imports {name}; the ground stands on nothing"
        if floor(name) == 0:
            continue
        if floor(module) is None:
            assert place(name) == place(module), f"{module} imports {name}, a part of the house"
        elif floor(name) is None:
            assert floor(module) >= 4, f"{module} imports {name}; methods know no data"
        else:
            assert floor(name) <= floor(module), f"{module} imports {name}, on a floor above"


def test_there_is_no_circle():
    is_done = set()

    def visit(module, path):
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in is_done:
            for name in own_imports(module):
                visit(name, [*path, module])
            is_done.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("path", PATHS + CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_tensorflow_or_torch(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots.isdisjoint({"tensorflow", "torch", "torchvision", "keras"})


@pytest.mark.parametrize("path", PATHS + CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_uses_pmap(path):
    for node in ast.walk(tree_of(path)):
        names = [getattr(node, field, None) for field in ("id", "attr", "name")]
        assert "pmap" not in names, f"{path}:{getattr(node, 'lineno', '?')}"


def is_protocol(node: ast.AST) -> bool:
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return any("Protocol" in ast.unparse(base) for base in bases)


@functools.cache
def words_of_protocols() -> set[str]:
    """Methods that a protocol of the package documents, once for all that follow it."""
    found = set()
    for path in PATHS:
        for node in filter(is_protocol, ast.walk(tree_of(path))):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            found |= {method.name for method in methods if ast.get_docstring(method)}
    return found


def undocumented(node: ast.Module | ast.ClassDef, prefix: str = ""):
    """Public classes, functions and methods that neither they nor a protocol document."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        is_method = isinstance(node, ast.ClassDef)
        # Flax prescribes setup; a protocol may say in its own docstring what it asks for.
        is_explained = is_method and (
            child.name == "setup" or child.name in words_of_protocols() or is_protocol(node)
        )
        if child.name.startswith("_") or is_explained:
            continue
        if not ast.get_docstring(child):
            yield f"{prefix}{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


@every_module
def test_every_public_name_is_documented(module):
    tree = tree_of(MODULES[module])
    assert ast.get_docstring(tree), f"{module} does not say what it is"
    assert list(undocumented(tree)) == []


def test_what_is_no_module_is_packaged_too():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = told["tool"]["setuptools"]["package-data"][PACKAGE]
    folder = ROOT / PACKAGE
    packaged = {path for pattern in patterns for path in folder.glob(pattern)}
    there = {path for path in folder.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert there == packaged
