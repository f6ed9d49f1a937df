"""The names that prose may use: what the code, the language, the tools and the repository really have.

A docstring or a page names a class, a function, a field, an option, a verb or a file. Such a name outlives what it
named unless a test holds it against the code. This file collects the names that exist; `unknown` finds the others.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.house.tree import DOCS, PACKAGE, ROOT, Module, modules, read

NAME = r"[A-Za-z_]\w*"
CAMEL = re.compile(r"(?<![\w./`-])(?:[A-Z][a-z0-9]+){2,}(?![\w-])")
SPAN = re.compile(r"(?<!`)(?:``?)(?!`)((?:[^`\n]|\n(?!\s*\n))+)(?:``?)(?!`)")
RAISES = re.compile(r"\b[Rr]aises? ((?:[A-Z]\w+)(?:(?:, and |, or |, | and | or )(?:[A-Z]\w+))*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
VERB = re.compile(r"(?<![\w./-])mccompile ([a-z]+)")
PATH = re.compile(r"(?<![\w./-])(?:[\w.-]+/)+[\w.-]*")

# Proper names and terms of other projects, of papers and of formats: nothing of ours answers to them.
FOREIGN = (
    "AlexNet", "ControlNet", "DiCache", "EasyCache", "FasterCache", "FirstBlockCache", "FlexAttention", "FlowCache",
    "FoCa", "LongLive", "MagCache", "ModelPatcher", "MotionCache", "WrapperExecutor",
    "NaNs", "NumPy", "PreciseCache",
    "PyTorch", "PyramidAttentionBroadcast", "SeaCache", "SkyReels", "SmoothCache", "TaylorSeer",
    "TeaCache",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wrong:
    """A name that does not exist, and where it is said."""

    place: str
    name: str

    def __str__(self) -> str:
        return f"{self.place}: {self.name}"


def docstrings(module: Module) -> Iterator[tuple[str, str]]:
    """(place, text) of every docstring of a module."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield f"{module.place}:{node.body[0].lineno}", text


def prose(page: str) -> str:
    """A page without its fenced blocks and without the targets of its links."""
    outside = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", outside)


def identifiers(module: Module) -> Iterator[str]:
    """Every name that a module defines, reads or imports, and the words that stand alone in its strings."""
    documented = {text for _, text in docstrings(module)}
    for node in ast.walk(module.tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.alias(name=name, asname=other):
                yield from re.findall(NAME, f"{name} {other or ''}")
            case ast.Constant(value=str(text)) if text not in documented and not re.search(r"\s", text.strip()):
                yield from re.findall(NAME, text)
    yield from re.findall(NAME, module.name)


def texts() -> Iterator[str]:
    """Files that are neither code nor prose, and whose words may be named: grammar, policies, build, measurements."""
    for pattern in ("grammar/*", "policies/*", "Makefile", "pyproject.toml", "mkdocs.yml", "docs/benchmarks/*.json"):
        for path in ROOT.glob(pattern):
            yield path.read_text()


@cache
def words() -> frozenset[str]:
    """Every name that the code of the package, the language or a tool of the repository knows."""
    found = {*keyword.kwlist, *dir(builtins), *FOREIGN}
    for module in modules().values():
        found.update(identifiers(module))
    for text in texts():
        found.update(re.findall(NAME, text))
    return frozenset(found)


@cache
def words_of_tests() -> frozenset[str]:
    """The same of the tests, which pages for contributors name, but for the test that holds wrong names."""
    paths = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.stem != "test_house_words")
    return frozenset(name for path in paths for name in identifiers(read(f"tests.{path.stem}", path)))


@cache
def errors() -> frozenset[str]:
    """The exceptions that a docstring may promise: the package's classes and Python's."""
    ours = {n.name for m in modules().values() for n in ast.walk(m.tree) if isinstance(n, ast.ClassDef)}
    imported = {
        alias.asname or alias.name
        for m in modules().values()
        for n in ast.walk(m.tree)
        if isinstance(n, ast.ImportFrom)
        for alias in n.names
    }
    classes = (thing for thing in vars(builtins).values() if isinstance(thing, type))
    theirs = {thing.__name__ for thing in classes if issubclass(thing, BaseException)}
    return frozenset(ours | imported | theirs)


@cache
def options() -> frozenset[str]:
    """The options of the command line and of the tools that the repository runs."""
    sources = [*modules().values(), read("tests.conftest", ROOT / "tests" / "conftest.py")]
    strings = (text for module in sources for text in _strings(module))
    return frozenset(option for text in (*strings, *texts(), "--help") for option in OPTION.findall(text))


def _strings(module: Module) -> Iterator[str]:
    documented = {text for _, text in docstrings(module)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documented:
            yield node.value


@cache
def verbs() -> frozenset[str]:
    """The verbs of the command line: one file each, `import_.py` for the one that is a word of Python."""
    return frozenset(path.stem.rstrip("_") for path in (PACKAGE / "cli").glob("*.py"))


def exists(path: str, beside: Path) -> bool:
    """Whether a path names something of the repository, of the package or beside the page, with or without `.py`."""
    for folder in (ROOT, PACKAGE, DOCS, beside):
        place = folder / path
        if place.exists() or place.with_suffix(".py").exists() or any(folder.glob(path.rstrip("/"))):
            return True
    return False


def unknown(text: str, place: str, beside: Path, known: frozenset[str]) -> Iterator[Wrong]:
    """The names in a docstring or a page's prose that nothing answers to."""
    for match in RAISES.finditer(text):
        for name in re.findall(NAME, match[1]):
            if name[0].isupper() and name not in errors():
                yield Wrong(place, f"raises {name}")
    for match in CAMEL.finditer(SPAN.sub(" ", text)):
        if match[0] not in known:
            yield Wrong(place, match[0])
    for span in SPAN.findall(text):
        yield from (Wrong(place, name) for name in _unknown_in(span, beside, known))


def _unknown_in(span: str, beside: Path, known: frozenset[str]) -> Iterator[str]:
    for verb in VERB.findall(span):
        if verb not in verbs():
            yield f"mccompile {verb}"
    for option in OPTION.findall(span):
        if option not in options():
            yield option
    for path in PATH.findall(span):
        if Path(path).suffix in {".py", ".md", ".toml", ".lark"} and not exists(path, beside):
            yield path
    rest = re.sub(r"\"[^\"]*\"|'[^']*'", " ", PATH.sub(" ", OPTION.sub(" ", span)))
    for name in re.findall(NAME, rest):
        if len(name) > 2 and not name.isupper() and name not in known:
            yield name
