"""The repository as the house tests see it: its modules, their imports, the floors that docs/architecture.md lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mccompile"
DOCS = ROOT / "docs"
TORCH_LINE = "torch line"


@dataclass(frozen=True, slots=True)
class Module:
    """A source file: dotted name, path, text, syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def place(self) -> str:
        return str(self.path.relative_to(ROOT))


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module as seen from `importer`; deferred: inside a function; typing: under TYPE_CHECKING."""

    importer: str
    target: str
    line: int
    deferred: bool
    typing: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the house: the packages and modules that stand there, and whether torch may be imported."""

    names: tuple[str, ...]
    torch: bool


@cache
def modules() -> dict[str, Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = read(name, path)
    return found


def read(name: str, path: Path, text: str | None = None) -> Module:
    """The file at `path`, or `text` as if it stood there."""
    source = path.read_text() if text is None else text
    return Module(name, path, source, ast.parse(source, filename=str(path)))


def imports(module: Module) -> tuple[Import, ...]:
    """What a module imports, `from package import module` resolved to the module where the package has it."""
    return _imports_at(module.name, module.path, module.text)


@cache
def _imports_at(name: str, path: Path, text: str) -> tuple[Import, ...]:
    module = read(name, path, text)
    return tuple(_imports(module, modules().keys(), module.tree, deferred=False, typing=False))


def _imports(
    module: Module, known: Collection[str], node: ast.AST, *, deferred: bool, typing: bool
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checked = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        match child:
            case ast.Import():
                targets = [alias.name for alias in child.names]
            case ast.ImportFrom(level=0):
                base = child.module or ""
                targets = [
                    f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in child.names
                ]
            case ast.ImportFrom():
                raise AssertionError(f"{module.place}:{child.lineno}: relative import")
            case _:
                targets = []
        for target in dict.fromkeys(targets):
            yield Import(module.name, target, child.lineno, inside, checked)
        yield from _imports(module, known, child, deferred=inside, typing=checked)


def house(text: str | None = None) -> tuple[Row, ...]:
    """The rows of the fenced block `house` of docs/architecture.md, top first; raises AssertionError without one."""
    page = (DOCS / "architecture.md").read_text() if text is None else text
    block = re.search(r"^```house\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert block is not None, "docs/architecture.md has no fenced block `house`"
    rows, torch = [], True
    for line in block[1].splitlines():
        if TORCH_LINE in line:
            torch = False
            continue
        names = re.findall(r"(?<![\w.])([\w/]+?)(?:/|\.py)(?=\s)", line + " ")
        if names:
            rows.append(Row(tuple(name.replace("/", ".") for name in names), torch))
    return tuple(rows)


@cache
def singled_out() -> frozenset[str]:
    """Modules that the list places apart from their package: `studio.metrics`."""
    return frozenset(name for row in house() for name in row.names if "." in name)


def standing(name: str) -> str:
    """The part of the house that a module belongs to: `mccompile.policy.bind` stands in `policy`."""
    inside = name.partition(".")[2]
    if inside in singled_out():
        return inside
    return inside.split(".")[0] or "__init__"
