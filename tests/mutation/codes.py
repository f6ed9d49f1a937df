"""Puts a wrong change into the functions of a running process: `__code__` is exchanged, nothing is imported again."""

from __future__ import annotations

import ast
import gc
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType

from tests.mutation.operators import Mutant, mutated

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Change:
    """functions: code that differs, before and after. reached: the function whose run a test needs; "" for none.

    lasting: the change is in what an import executes, so a process that has imported the module does not see it.
    """

    functions: tuple[tuple[CodeType, CodeType], ...]
    reached: str
    lasting: bool


@cache
def source(file: str) -> str:
    """The text of a file of the product as this process has first seen it."""
    return (ROOT / file).read_text("utf-8")


def compiled(mutant: Mutant) -> CodeType:
    """The code of the whole wrong module. Raises SystemExit where the file has changed since its mutants were made."""
    path = ROOT / mutant.file
    if path.read_text("utf-8") != source(mutant.file):
        raise SystemExit(f"{mutant.file} has changed: begin again")
    return compile(mutated(source(mutant.file), mutant), str(path), "exec", dont_inherit=True)


@cache
def _unchanged(file: str) -> CodeType:
    return compile(ast.parse(source(file)), str(ROOT / file), "exec", dont_inherit=True)


def change(mutant: Mutant) -> Change:
    """What differs between a module and its mutant."""
    found: list[tuple[CodeType, CodeType]] = []
    inner = _differing(_unchanged(mutant.file), compiled(mutant), found)
    functions = tuple(pair for pair in found if pair[0].co_flags & inspect.CO_OPTIMIZED)
    lasting = inner is None or not inner.co_flags & inspect.CO_OPTIMIZED
    lasting = lasting or any(len(a.co_freevars) != len(b.co_freevars) for a, b in functions)
    return Change(functions, "" if inner is None else name(mutant.file, inner), lasting)


def name(file: str, code: CodeType) -> str:
    """A function as the tracer tells it: comprehensions and inner lambdas belong to the function around them."""
    return f"{file}:{code.co_qualname.partition('.<locals>.<')[0]}"


def _inner(code: CodeType) -> list[CodeType]:
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _own(code: CodeType) -> tuple[object, ...]:
    values = [(type(value), repr(value)) for value in code.co_consts if not isinstance(value, CodeType)]
    return code.co_code, values, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags


def _differing(old: CodeType, new: CodeType, found: list[tuple[CodeType, CodeType]]) -> CodeType | None:
    """The innermost code whose own instructions differ. found: it and all around it."""
    one, other = _inner(old), _inner(new)
    if _own(old) != _own(new) or len(one) != len(other):
        found.append((old, new))
        return old
    for a, b in zip(one, other, strict=True):
        inner = _differing(a, b, found)
        if inner is not None:
            found.append((old, new))
            return inner
    return None


def functions(file: str) -> list[FunctionType]:
    """All functions of this process whose code stands in the file, those that tables and closures hold included."""
    place = str(ROOT / file)
    return [item for item in gc.get_objects() if type(item) is FunctionType and item.__code__.co_filename == place]


def install(made: Change, among: Iterable[FunctionType]) -> dict[FunctionType, CodeType]:
    """Exchanges the code in all functions that have it. Returns the code that each had."""
    before: dict[FunctionType, CodeType] = {}
    for function in among:
        for old, new in made.functions:
            if function.__code__ == old:
                before[function] = function.__code__
                function.__code__ = new
                break
    return before
