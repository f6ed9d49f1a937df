"""A sample of mutants is seen by the tests of bounds, in this process; each survivor is explained."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from math import inf
from pathlib import Path
from types import FunctionType

import pytest
from _pytest.main import pytest_runtestloop as loop

from mccompile.arithmetic import interval, operations
from tests.arithmetic import test_bounds
from tests.mutation.again import run
from tests.mutation.children import FAILED, Failing, forked, options
from tests.mutation.codes import ROOT, Change, change, functions, install
from tests.mutation.loop import Judge
from tests.mutation.operators import Mutant, mutants
from tests.mutation.order import Kept, Order, Traced
from tests.mutation.reached import Tracer
from tests.mutation.rooms import all_mutants, in_groups
from tests.mutation.tried import EXPLAINED, explained, keep, known
from tests.mutation.warm import Warm

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


def test_a_file_that_changes_under_its_mutants_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = mutants(FILES[1], (ROOT / FILES[1]).read_text("utf-8"))[0]
    change(mutant)
    monkeypatch.setattr("tests.mutation.codes.source", lambda file: "before = 1\n")
    with pytest.raises(SystemExit, match="has changed"):
        change(mutant)


def test_mutants_of_a_function_are_tried_together() -> None:
    found = all_mutants("arithmetic")
    tried = in_groups(found)
    assert set(tried) == set(found)
    assert len(tried) == len(found)
    assert len(list(groupby(tried, key=lambda m: (m.file, m.scope)))) == len({(m.file, m.scope) for m in found})


def test_verdicts_are_kept_by_file_and_read_back(tmp_path: Path) -> None:
    """Those of other rooms stay, and those of a file whose mutants are all gone do not."""
    place, found = tmp_path / "tried.json", mutants(FILES[0], (ROOT / FILES[0]).read_text("utf-8"))
    place.write_text(
        '{"mccompile/arithmetic/gone.py": {"slow": ["01234567"]}, "mccompile/ir.py": {"slow": ["0123abcd"]}}'
    )
    verdicts = {m.key: ("killed", "slow", "survived")[i % 3] for i, m in enumerate(found)}
    keep("mccompile/arithmetic/", verdicts, place)
    assert known(found, place) == {key: what for key, what in verdicts.items() if what != "survived"}
    assert list(json.loads(place.read_text("utf-8"))) == [FILES[0], "mccompile/ir.py"]


def lines(*numbers: int) -> dict[str, frozenset[int]]:
    return {"one.py:least": frozenset(numbers)}


def test_a_test_that_runs_the_changed_line_comes_first_and_then_what_has_seen_others_and_what_is_quick() -> None:
    source = "def least(a, b):\n    if a < b:\n        return a\n    return b\n"
    mutant = next(m for m in mutants("one.py", source) if m.line == 3)
    made = Change((), "one.py:least", lasting=False)
    known = [
        Traced("far", 0.1, lines(1, 2, 4)), Traced("slow", 2.0, lines(1, 2, 3)), Traced("quick", 0.2, lines(1, 2, 3)),
        Traced("other", 0.1, {"one.py:most": frozenset([9])}),
    ]  # fmt: skip
    order = Order(known, {})
    assert order.chosen(mutant, made, 9.0) == ["quick", "slow", "far"]
    assert order.chosen(mutant, made, 1.0) == ["quick"]
    for _ in range(30):
        order.killed(mutant, "slow")
    assert order.chosen(mutant, made, 9.0) == ["slow", "quick", "far"]
    order.without.add("slow")
    assert order.chosen(mutant, made, 9.0) == ["quick", "far"]
    assert order.chosen(mutant, Change((), "one.py:none", lasting=True), 9.0) == ["far", "other", "quick"]


def test_what_is_filled_anew_under_a_mutant_counts_for_the_tests_that_take_it() -> None:
    order = Order([], {"shared": Kept(5.0, frozenset({"one.py:least"}))})
    test = Traced("a", 1.0, lines(1), ("shared",))
    costs = [order.cost(test, Change((), what, lasting=False)) for what in ("one.py:least", "one.py:most")]
    assert costs[0] == costs[1] + 5.0


@pytest.mark.parametrize(
    ("fails", "always", "verdict"),
    [
        (["a.py::one"], [], ("killed", "a.py::one")),
        (["a.py::one"], ["a.py::one"], ("killed", "a.py::two")),  # and not by what fails without the mutant too
        (["a.py::one", "a.py::two"], ["a.py::one", "a.py::two"], ("unreached", "")),
        (["a.py"], [], ("killed", "a.py")),  # it cannot be imported
        (["a.py"], ["a.py"], ("survived", "")),
        ([], [], ("survived", "")),
    ],
)
def test_a_mutant_is_killed_by_what_passes_without_it(
    fails: list[str], always: list[str], verdict: tuple[str, str], tmp_path: Path
) -> None:
    source = "def least(a, b):\n    return b\n"
    (mutant,) = mutants("one.py", source)
    order = Order([Traced(name, 0.1, lines(1, 2)) for name in ("a.py::one", "a.py::two")], {})

    def run(wrong: Mutant | None, made: Change, names: list[str]) -> tuple[str, str]:
        of = fails + ["a.py::two"] * bool(fails) if wrong else always
        by = next((name for name in of if name in names or name == "a.py"), None)
        return ("survived", "") if by is None else ("killed", by)

    judge = Judge(order, 9.0, tmp_path / "one.jsonl", tmp_path / "pause", inf)
    judge.judge(mutant, Change((), "one.py:least", lasting=False), run)
    (told,) = map(json.loads, judge.place.read_text("utf-8").splitlines())
    assert (told["what"], told["by"]) == verdict


@cache
def remembered() -> float:
    return interval.size(interval.Interval(-3.0, 2.0)).high


def test_what_filling_a_memory_runs_is_told_apart_and_belongs_to_the_test_too() -> None:
    tracer = Tracer(["arithmetic"])
    tracer.filling = {remembered.__wrapped__.__code__: "remembered"}
    remembered.cache_clear()
    tracer.begin()
    assert remembered() == 3.0
    interval.power(interval.Interval(1.0, 2.0), interval.Interval(2.0, 2.0))
    whole = {code.co_name for code in tracer.end()}
    _, inner = tracer.filled["remembered"]
    assert {"size", "power"} <= whole
    assert "size" in {code.co_name for code in inner}
    assert "power" not in {code.co_name for code in inner}
    size = next(code for code in inner if code.co_name == "size")
    assert inner[size] <= {line for _, _, line in size.co_lines() if line is not None}


def stops(write: int) -> int:
    """Ends as a test does that runs for ever."""
    Failing(write, {"one": 0.01}).pytest_runtest_logstart("one")
    while True:
        pass


def fails(write: int) -> int:
    os.write(write, b"two")
    return FAILED


def test_a_child_tells_what_became_of_it() -> None:
    assert forked(lambda write: 0) == ("survived", "")
    assert forked(fails) == ("killed", "two")
    assert forked(stops) == ("slow", "one")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        forked(lambda write: 1 // 0)


FILES_OF = ("a/test_of.py", "a/test_on.py", "b/test_of.py")
FILLED = """
import pytest
from pathlib import Path
def fill(what):
    with (Path(__file__).parents[1] / what).open("a") as file: file.write("x")
@pytest.fixture(scope="module")
def kept(): fill("kept"); return 1
@pytest.fixture(scope="session")
def whole(): fill("whole"); yield 1; fill("ended")
def test_a(kept, whole): assert kept == whole
def test_b(kept, whole): assert kept == whole
"""


class Twice:
    """Runs all tests under `Warm`, then once more as a child does under a mutant of what fills some fixtures."""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        kept = {
            f"{place}::{what}[0]": Kept(1.0, frozenset({"f"} if place == FILES_OF[0] else ()))
            for place in FILES_OF for what in ("kept", "whole")
        }  # fmt: skip
        warm = Warm(session, Order([], kept))
        session.config.pluginmanager.register(warm)
        warm.ready([item.nodeid for item in session.items])
        assert len(warm.ran) == len(FILES_OF)
        assert warm.order.without == set()
        warm.forget("f")
        loop(session)
        assert session.testsfailed == 0
        return True


def test_what_tests_share_is_filled_once_and_anew_under_a_mutant_of_what_fills_it(tmp_path: Path) -> None:
    for file in FILES_OF:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(FILLED)
        (tmp_path / file).with_name("__init__.py").touch()

    def work(write: int) -> int:
        place = ["--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)]
        return int(pytest.main([*options(str(tmp_path / "base")), *place], plugins=[Twice(), Failing(write, {})]))

    assert forked(work) == ("survived", "")
    assert (tmp_path / "kept").read_text() == "xxxx"  # of each module, and that of the first one again
    assert (tmp_path / "whole").read_text() == "xxxx"


def test_what_is_explained_has_reasons() -> None:
    told = json.loads(EXPLAINED.read_text("utf-8"))
    assert all(len(why) > 20 for part in told.values() for why in part.values())
    assert all((ROOT / key.partition(" ")[0]).is_file() for key in told["mutants"])
    assert all(re.match(r"mccompile/\w+/\w+\\.py ", pattern) for pattern in told["patterns"])  # of one file


def test_a_pattern_explains_survivors_alone() -> None:
    other = "mccompile/policy/witness.py _draws | constant | 6 -> 7 | 0"
    assert other not in explained()
    assert other in explained([other])
    assert other.replace("witness", "prove") not in explained([other.replace("witness", "prove")])


def test_a_mutant_is_tried_again_as_a_file(tmp_path: Path) -> None:
    source = "def least(a, b):\n    return a if a < b else b\n"
    (tmp_path / "one.py").write_text(source)
    (tmp_path / "test_one.py").write_text("from one import least\ndef test_least(): assert least(1, 2) == 1\n")
    (tmp_path / "test_two.py").write_text("def test_nothing(): pass\n")
    (turned,) = (m for m in mutants("one.py", source) if (m.before, m.after) == ("a < b", "not a < b"))
    assert run(turned, source, tmp_path, ["test_one.py"]) == "killed"
    assert run(turned, source, tmp_path, ["test_two.py"]) == "survived"
    assert (tmp_path / "one.py").read_text() == source
