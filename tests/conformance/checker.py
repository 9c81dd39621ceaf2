"""Asks mypy what a source does with TensorRT, and finds the places where mypy could not know."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TYPES = ("tensorrt", "tensorrt_rtx")
_CONFIGURATION = Path(__file__).with_name("mypy.ini")
_COMPOUND = re.compile(r"[^_]_[^_]|[a-z][A-Z]")
_DYNAMIC = ("delattr", "getattr", "hasattr", "setattr", "vars")
_IGNORED_BASE = re.compile(r"^\s*class .*\(.*\):  # type: ignore\[misc\]")


@dataclass(frozen=True, order=True)
class Finding:
    """Something mypy said of an expression. Lines count from one, columns from zero."""

    path: Path
    line: int
    message: str
    span: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}: {self.message}"


class Checker:
    """Runs mypy over sources that use TensorRT, always with the same cache.

    Args:
        cache: Directory of mypy's cache.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def errors(self, sources: Iterable[Path], stubs: Path) -> list[Finding]:
        """Return what is wrong by the stubs in a directory, and would not be said without them."""
        sources = list(sources)
        without = {(each.path, each.line, each.message) for each in self._run(sources, None)}
        return [each for each in self._run(sources, stubs) if (each.path, each.line, each.message) not in without]

    def unchecked(self, sources: Iterable[Path], stubs: Path, names: frozenset[str]) -> list[Finding]:
        """Return the places where an attribute with a name of TensorRT's is read from an object of unknown type."""
        sources = list(sources)
        unknown: dict[Path, set[tuple[int, int, int, int]]] = {}
        for each in self._run(sources, stubs, "--disallow-any-expr"):
            if each.message == 'Expression has type "Any"':
                unknown.setdefault(each.path, set()).add(each.span)
        return [finding for path in unknown for finding in _uses(path, names) if finding.span in unknown[path]]

    def _run(self, sources: list[Path], stubs: Path | None, *flags: str) -> list[Finding]:
        command = [sys.executable, "-m", "mypy", "--config-file", str(_CONFIGURATION), "--cache-dir", str(self._cache)]
        environment = os.environ | {"MYPYPATH": str(stubs or "")}
        command += ["--output", "json", *flags, *map(str, sources)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode > 1 or done.stderr:
            raise RuntimeError(f"mypy failed:\n{done.stderr or done.stdout}")
        found = [json.loads(line) for line in done.stdout.splitlines() if line]
        return [
            Finding(
                path=Path(each["file"]).resolve(),
                line=each["line"],
                message=each["message"],
                span=(each["line"], each["column"], each["end_line"], each["end_column"]),
            )
            for each in found
            # The stubs themselves have flaws, as the bindings do: a property overridden by one of another type.
            if each["severity"] == "error" and each["file"].endswith(".py")
        ]


def names_of(stub: Path) -> frozenset[str]:
    """Return the names by which a use of TensorRT is told from any other: classes, and members of compound name."""
    found = set()
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and _COMPOUND.search(node.name)):
            found.add(node.name)
    return frozenset(name for name in found if not name.startswith("_"))


def without_casts(source: str) -> str:
    """Return a source whose values are no longer cast to types of TensorRT, so that they must be of them.

    Its lines stay where they are.
    """
    while casts := [node for node in ast.walk(ast.parse(source)) if _is_cast(node)]:
        call, value = casts[-1], casts[-1].args[1]
        source = _cut(_cut(source, _end(value), _end(call), ")"), _start(call), _start(value), "(")
    return source


def imports_types(source: str) -> bool:
    """Return whether a module imports TensorRT, be it only for its types."""
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    return any(alias.name in TYPES for node in imported for alias in node.names)


def loopholes(source: str) -> list[str]:
    """Return the lines of a module that imports TensorRT's types where it could get round them unseen by mypy."""
    lines = source.splitlines()
    found = {
        number for number, line in enumerate(lines, 1) if "# type: ignore" in line and not _IGNORED_BASE.match(line)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in TYPES:
            found.add(node.lineno)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            to_any = node.func.id == "cast" and "Any" in ast.unparse(node.args[0])
            if node.func.id in _DYNAMIC or to_any:
                found.add(node.lineno)
    return [f"{number}: {lines[number - 1].strip()}" for number in sorted(found)]


def _is_cast(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether a node casts to a type of TensorRT."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast"):
        return False
    return bool(re.search(r"\b(trt|rtx)\.", ast.unparse(node.args[0])))


def _cut(source: str, start: tuple[int, int], end: tuple[int, int], put: str) -> str:
    lines = source.splitlines(keepends=True)
    head = lines[start[0] - 1].encode()[: start[1]].decode()
    tail = lines[end[0] - 1].encode()[end[1] :].decode()
    broken = "\n" * (end[0] - start[0])
    return "".join([*lines[: start[0] - 1], head, put, broken, tail, *lines[end[0] :]])


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _uses(path: Path, names: frozenset[str]) -> Iterator[Finding]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    foreign = set(_names_of_other_packages(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) not in foreign:
            message = f"the type of {ast.unparse(node.value)} is unknown, so {node.attr} is not checked"
            for place in (node.value, node, calls.get(node)):
                if place is not None:
                    yield Finding(path, node.lineno, message, (*_start(place), *_end(place)))


def _names_of_other_packages(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports from others' packages: whatever its attributes are called, they aren't TensorRT's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and _is_foreign(node.module or "")):
            yield from (alias.asname or alias.name for alias in node.names if alias.name not in TYPES)


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] not in {"trt_vit", "tests", *TYPES}
