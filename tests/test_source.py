"""The source: every public name is documented, nothing is long, and all files are packaged.

What a module may import is a contract of import-linter (pyproject.toml), which launch/test.sh runs.
"""

import ast
import functools
import tomllib
from pathlib import Path

import tiny

PACKAGE = "ddae_jax"
PATHS = sorted((tiny.ROOT / PACKAGE).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_protocol(node: ast.AST) -> bool:
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return any("Protocol" in ast.unparse(base) for base in bases)


@functools.cache
def words_of_protocols() -> set[str]:
    """Methods that a protocol of the package documents, once for all that follow it."""
    names = set()
    for path in PATHS:
        for node in filter(is_protocol, ast.walk(tree_of(path))):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            names |= {method.name for method in methods if ast.get_docstring(method)}
    return names


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


def test_every_module_and_every_public_name_is_documented():
    undescribed = [str(path) for path in PATHS if not ast.get_docstring(tree_of(path))]
    assert undescribed == []
    names = {str(path): list(undocumented(tree_of(path))) for path in PATHS}
    assert {path: missing for path, missing in names.items() if missing} == {}


def test_no_file_is_long_and_no_function_is():
    files, functions = {}, {}
    for path in PATHS:
        files[str(path)] = len(path.read_text(encoding="utf-8").splitlines())
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                functions[f"{path}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert {path: lines for path, lines in files.items() if lines > 450} == {}
    assert {name: lines for name, lines in functions.items() if lines > 70} == {}


def test_files_that_are_no_modules_are_packaged_too():
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"][PACKAGE]
    folder = tiny.ROOT / PACKAGE
    packaged = {path for pattern in patterns for path in folder.glob(pattern)}
    there = {path for path in folder.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert there == packaged
