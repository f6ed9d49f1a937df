"""Budgets and habits of the code: sizes, stubs, prints, guesses. The report of what is near a limit is in the log."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from tests.house.tree import ROOT, Module, modules, read, standing

FILE_LINES = 400
FUNCTION_LINES = 80
NEAR_FILE, NEAR_FUNCTION = 250, 40
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources() -> list[Module]:
    tests = [read(f"tests.{path.stem}", path) for path in sorted((ROOT / "tests").rglob("*.py"))]
    return [*modules().values(), *tests]


def functions(module: Module) -> Iterator[Function]:
    return (node for node in ast.walk(module.tree) if isinstance(node, Function))


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def scripts(module: Module) -> set[ast.AST]:
    """Everything in the `main` of a file that is run as a script."""
    runs = any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in module.tree.body)
    mains = [n for n in module.tree.body if runs and isinstance(n, Function) and n.name == "main"]
    return {inner for main in mains for inner in ast.walk(main)}


def prints(module: Module) -> Iterator[str]:
    """Only the doors and the `main` of a script write to the terminal; everything else returns values."""
    doors = scripts(module)
    for node in ast.walk(module.tree):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if named and standing(module.name) != "cli" and node not in doors:
            yield f"{module.place}:{node.lineno}: print"


def guesses(module: Module) -> Iterator[str]:
    """Asking an object what it is, or writing attributes whose names are computed."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            computed = node.func.id == "setattr" and not isinstance(node.args[1], ast.Constant)
            if node.func.id == "hasattr" or computed:
                yield f"{module.place}:{node.lineno}: {node.func.id}"


def uneven_zips(module: Module) -> Iterator[str]:
    """A zip that drops what is left over in silence: lengths that differ are cut where one sees it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            strict = [ast.unparse(k.value) for k in node.keywords if k.arg == "strict"]
            if strict != ["True"] and not any(isinstance(a, ast.Starred) for a in node.args):
                yield f"{module.place}:{node.lineno}: zip"


def broad_handlers(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if caught in {"", "Exception", "BaseException"} and not reraises:
                yield f"{module.place}:{node.lineno}: except {caught}"


def stubs(module: Module) -> Iterator[str]:
    protocols = {
        inner
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
        for inner in node.body
    }
    for node in functions(module):
        said = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        body = said or node.body
        marks = {ast.unparse(mark).split(".")[-1] for mark in node.decorator_list}
        if node not in protocols and not marks & {"abstractmethod", "overload"}:
            if all(isinstance(n, ast.Pass) for n in body):
                yield f"{module.place}:{node.lineno}: {node.name} is empty"
            elif isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.unparse(body[0]):
                yield f"{module.place}:{node.lineno}: {node.name} is a stub"


def notes_to_self(module: Module) -> Iterator[str]:
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "for" + " now"))
    for number, line in enumerate(module.text.splitlines(), 1):
        if re.search(rf"#.*\b({marks})\b", line):
            yield f"{module.place}:{number}: {line.strip()}"


def undocumented(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield f"{module.place}: a file says its one duty in a docstring"


Rule = Callable[[Module], Iterator[str]]
IN_THE_PACKAGE: tuple[Rule, ...] = (prints, guesses, uneven_zips, broad_handlers, stubs, notes_to_self, undocumented)


@pytest.mark.parametrize("rule", IN_THE_PACKAGE, ids=lambda rule: rule.__name__)
def test_habits_of_the_package(rule: Rule) -> None:
    assert [line for module in modules().values() for line in rule(module)] == []


@pytest.mark.parametrize("rule", [broad_handlers, notes_to_self], ids=lambda rule: rule.__name__)
def test_habits_of_the_tests(rule: Rule) -> None:
    assert [line for module in sources() for line in rule(module)] == []


def test_no_file_and_no_function_grows_past_its_budget() -> None:
    over = [m.place for m in sources() if len(m.text.splitlines()) > FILE_LINES]
    long = ((m, f) for m in sources() for f in functions(m) if length(f) > FUNCTION_LINES)
    over += [f"{m.place}: {f.name} ({length(f)})" for m, f in long]
    assert over == []


def test_what_is_near_its_budget_is_reported(record_property: Callable[[str, object], None]) -> None:
    files = sorted((-len(m.text.splitlines()), m.place) for m in modules().values())
    longest = sorted((-length(f), f"{m.place}:{f.name}") for m in modules().values() for f in functions(m))
    near = [f"{-n} {p}" for n, p in files if -n > NEAR_FILE] + [f"{-n} {p}" for n, p in longest if -n > NEAR_FUNCTION]
    record_property("near", "\n".join(near))
    # Most code is small, whatever its longest parts are.
    assert -files[len(files) // 2][0] <= NEAR_FILE
    assert -longest[len(longest) // 20][0] <= NEAR_FUNCTION


WRONG = {
    prints: "def f():\n    print(1)",
    guesses: "def f(x):\n    return hasattr(x, 'y')",
    uneven_zips: "x = zip(a, b, strict=False)",
    broad_handlers: "try:\n    f()\nexcept Exception:\n    g()",
    stubs: "class A:\n    def f(self):\n        raise NotImplementedError",
    notes_to_self: "x = 1  # TO" + "DO: later",
    undocumented: "x = 1",
}


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.__name__)
def test_each_habit_is_seen_to_fail(rule: Rule) -> None:
    assert list(rule(read("mccompile.wrong", ROOT / "mccompile" / "wrong.py", WRONG[rule])))
