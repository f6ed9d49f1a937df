"""A sample of mutants is seen by the tests of bounds, in this process; each survivor is explained."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType

import pytest

from mccompile.arithmetic import interval, operations
from tests.arithmetic import test_bounds
from tests.mutation.again import run
from tests.mutation.codes import ROOT, change, functions, install
from tests.mutation.operators import Mutant, mutants
from tests.mutation.rooms import all_mutants, sampled
from tests.mutation.tried import explained

FILES = tuple(f"mccompile/arithmetic/{module.__name__.rpartition('.')[2]}.py" for module in (interval, operations))
AT_IMPORT, NUMBER = ("_rounded", "_true"), 20
WRONG = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)


def oracle() -> None:
    """All tests of bounds, one after the other. Raises what the first failing one raises."""
    found: list[Callable[..., None]] = [v for name, v in vars(test_bounds).items() if name.startswith("test_")]
    for test in found:
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        for case in marks[0].args[1] if marks else [()]:
            test(*case)


def survives(mutant: Mutant, among: Sequence[FunctionType]) -> bool:
    before = install(change(mutant), among)
    assert before
    try:
        oracle()
    except WRONG:
        return False
    else:
        return True
    finally:
        for function, code in before.items():
            function.__code__ = code


def test_a_sample_of_mutants_is_seen() -> None:
    """Of the changes that a process sees after it has imported the module: those of functions that run later."""
    oracle()
    found = [m for file in FILES for m in mutants(file, (ROOT / file).read_text("utf-8"))]
    drawn = random.Random(3).sample(found, 2 * NUMBER)
    tried = [mutant for mutant in drawn if mutant.scope not in AT_IMPORT and not change(mutant).lasting]
    assert len(tried) >= NUMBER
    known, among = explained(), {file: functions(file) for file in FILES}
    assert [m.key for m in tried if m.key not in known and survives(m, among[m.file])] == []
    oracle()


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("def f(a):\n    return a < 1", {"comparison": 1, "constant": 1, "returned": 1}),
        ("def f(a):\n    if not a:\n        g(a)", {"negated": 1, "removed": 1}),
        ("def f(a):\n    \"\"\"Words.\"\"\"\n    raise E(f\"words {a + 1}\")",
         {"removed": 1, "arithmetic": 1, "constant": 1}),
        ("x: int = 3\n@dataclass(slots=True)\nclass A:\n    b: bool = True", {"constant": 2}),
        ("def f(a):\n    while a and a.b:\n        a.c = -a\n        break",
         {"negated": 1, "boolean": 1, "removed": 1, "arithmetic": 1, "loop": 1}),
    ],
)  # fmt: skip
def test_what_is_changed(source: str, made: dict[str, int]) -> None:
    found = mutants("f.py", source)
    assert {name: sum(m.operator == name for m in found) for name in made} == made
    assert len(found) == sum(made.values())
    assert len({m.key for m in found}) == len(found)


def test_a_change_of_a_table_lasts_and_one_of_a_function_does_not() -> None:
    found = mutants(FILES[1], (ROOT / FILES[1]).read_text("utf-8"))
    assert change(next(m for m in found if m.before == "'lt'")).lasting
    inner = change(next(m for m in found if m.before == "a.low + b.low"))
    assert not inner.lasting
    assert inner.reached == f"{FILES[1]}:<lambda>"


def test_a_sample_has_a_mutant_of_each_file() -> None:
    found = all_mutants("arithmetic")
    assert {m.file for m in sampled(found, 10)} == {m.file for m in found} > set(FILES)
    assert len(sampled(found, len(found))) == len(found)


def test_what_is_explained_has_reasons() -> None:
    for key, why in explained().items():
        file, _, _ = key.partition(" ")
        assert (ROOT / file).is_file()
        assert len(why) > 20


def test_a_mutant_is_tried_again_as_a_file(tmp_path: Path) -> None:
    source = "def least(a, b):\n    return a if a < b else b\n"
    (tmp_path / "one.py").write_text(source)
    (tmp_path / "test_one.py").write_text("from one import least\ndef test_least(): assert least(1, 2) == 1\n")
    (tmp_path / "test_two.py").write_text("def test_nothing(): pass\n")
    (turned,) = (m for m in mutants("one.py", source) if (m.before, m.after) == ("a < b", "not a < b"))
    assert run(turned, source, tmp_path, ["test_one.py"]) == "killed"
    assert run(turned, source, tmp_path, ["test_two.py"]) == "survived"
    assert (tmp_path / "one.py").read_text() == source
