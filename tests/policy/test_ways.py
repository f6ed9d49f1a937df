"""Several `reuse ... while` in order, before a run: plans, their text, what is proved of them, and what never acts."""

from __future__ import annotations

import pytest

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.intervals import Ranges
from mccompile.language.load import load_policy
from mccompile.language.ways import never_acts, ways_of
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.difference import difference
from mccompile.policy.flow import flow_grid
from mccompile.policy.plan_text import diff_plans, read_plan, show_plan
from mccompile.policy.planner import plan
from mccompile.policy.prove import NOTHING, Equivalent, Implies, prove
from mccompile.policy.reasons import reasons

GRID = flow_grid(20)
SIGNALS = {"drift": "abs(sigma - before(sigma))", "moved": "rel_l1(latent)"}


def bound(rule: str, **values: float) -> BoundPolicy:
    signals = "".join(f"signal {name} = {what}\n" for name, what in SIGNALS.items() if name in rule)
    text = f"""policy p {{
  param small    = 0.02 in 0.01..0.90
  param moderate = 0.06 in 0.01..0.90
  {signals}
  phase first for 2 steps {{ compute }}
  phase cache {{ {rule} }}
  phase end for last 2 steps {{ reuse chunk while sigma < small + moderate }}
  layers blocks[*] {{ keep residual }}
}}
"""
    return bind(load_policy(Source("p.policy", text)), values)


def scope(stand_in: str = "taylor(residual)", **values: float) -> BoundPolicy:
    return bound(
        f"""reuse chunk while accumulate(drift) < small
        reuse chunk as {stand_in} while accumulate(drift) < moderate""", **values
    )  # fmt: skip


JOINED = "reuse chunk while accumulate(drift) < small or accumulate(drift) < moderate"


def test_a_plan_says_which_alternative_acts() -> None:
    made = plan(scope(), GRID, {}, frozenset())
    account = 0.0
    for cell in made.cells[2:-2]:
        account += abs(made.grid.sigmas[cell.step] - made.grid.sigmas[cell.step - 1])
        wanted = ("reuse", 0) if account < 0.02 else ("reuse", 1) if account < 0.06 else ("compute", 0)
        assert (cell.action, cell.way) == wanted
        account = 0.0 if wanted[0] == "compute" else account
    assert {cell.way for cell in made.cells} == {0, 1}
    assert read_plan(show_plan(made)) == made
    other = plan(scope(small=0.05), GRID, {}, frozenset())
    assert "reuse by alternative 2 -> cache reuse" in diff_plans(made, other)
    whys = {reason.why for reason in reasons(scope(), GRID, NOTHING)}
    assert {"condition 1 of 2 holds", "condition 2 of 2 holds, as taylor(residual)", "no condition holds"} <= whys


def test_what_stands_in_parts_two_policies() -> None:
    """Both reuse the same steps; only the same stand-in makes them equivalent."""
    ours, joined, twice = scope(), bound(JOINED), scope("taylor(residual, order = 2)")
    grids = [flow_grid(n) for n in (10, 20)]
    assert prove(ours, Equivalent(scope()), grids).outcome == "proved"
    for other in (joined, twice):
        found = prove(ours, Equivalent(other), grids)
        assert found.outcome == "refuted"
        assert "what stands in is not the same" in found.reason
        told = difference(ours, other, GRID, NOTHING)
        assert told.first is not None
        pair = told.steps[told.first]
        assert (pair.relation, pair.a.action, pair.b.action) == ("differ", "reuse", "reuse")
        assert told.change.least == told.change.most == 0
    assert difference(ours, scope(), GRID, NOTHING).first is None


def test_what_is_measured_stands_in_alike_under_one_rule() -> None:
    """Data decides: the same rule has the same stand-ins, and another order of them may have others."""
    small, moderate = "while accumulate(moved) < small", "while accumulate(moved) < moderate"
    first = f"reuse chunk {small} reuse chunk as taylor(residual) {moderate}"
    second = f"reuse chunk as taylor(residual) {small} reuse chunk {moderate}"
    a, b, grids = bound(first), bound(second), [flow_grid(6)]
    assert prove(a, Equivalent(bound(first)), grids).outcome == "proved"
    assert prove(a, Equivalent(b), grids).outcome != "proved"


def test_wherever_an_alternative_reuses_the_joined_condition_does() -> None:
    assert prove(scope(), Implies(bound(JOINED)), [flow_grid(6)]).outcome == "proved"


def test_an_alternative_that_parameters_make_idle_is_noted() -> None:
    notes = plan(scope(small=0.5, moderate=0.3), GRID, {}, frozenset()).notes
    assert "phase cache: `reuse` number 2 never acts, for one before it holds wherever it does" in notes
    assert not any("never acts" in note for note in plan(scope(), GRID, {}, frozenset()).notes)


def test_the_alternative_that_is_idle_is_noted_and_not_the_one_before_it() -> None:
    rule = """reuse chunk while accumulate(drift) < small
        reuse chunk as taylor(residual) while accumulate(drift) < 0.03
        reuse chunk as taylor(residual, order = 2) while accumulate(drift) < moderate"""
    notes = plan(bound(rule, moderate=0.025), GRID, {}, frozenset()).notes
    assert [note.split("`")[2].split()[1] for note in notes if "never acts" in note] == ["3"]
    assert not any("never acts" in note for note in plan(bound(rule), GRID, {}, frozenset()).notes)


@pytest.mark.parametrize(
    ("first", "second", "never"),
    [
        ("m < 0.2", "m < 0.1", True), ("m < 0.1", "m < 0.2", False), ("m < 0.1", "m <= 0.1", False),
        ("m <= 0.1", "m < 0.1", True), ("m < high", "m < low", True), ("m < low", "m < high", False),
        ("m < low", "m < any", False), ("not m >= high", "m < low and sigma > 0.5", True),
        ("m < high and sigma > 0.5", "m < low", False), ("m > low", "m > high", True),
        ("m > 2 * low", "m > high", False),
    ],
)  # fmt: skip
def test_what_the_first_alternative_covers(first: str, second: str, never: bool) -> None:
    """low is 0.1 to 0.15, high 0.2 to 0.25, any 0.05 to 0.9."""
    text = f"""policy p {{
  param low = 0.1 in 0.1..0.15
  param high = 0.2 in 0.2..0.25
  param any = 0.2 in 0.05..0.9
  signal m = rel_l1(latent)
  phase first for 2 steps {{ compute }}
  phase a for 5 steps {{ reuse chunk while {first} }}
  phase b for 5 steps {{ reuse chunk while {second} }}
  phase c {{ reuse chunk while m < low + high + any }}
  layers blocks[*] {{ keep residual }}
}}
"""
    policy = load_policy(Source("p.policy", text))
    rules = [phase.rule for phase in policy.phases[1:3]]
    conditions = tuple(rule.condition for rule in rules if isinstance(rule, ir.Reuse))
    ranges = Ranges({p.name: p for p in policy.params}, {s.name: s for s in policy.signals})
    assert never_acts(conditions, ranges) is never


def test_alternatives_are_taken_apart_in_their_order() -> None:
    rule = """reuse chunk while moved < small or sigma > 0.9
    reuse chunk as taylor(residual) while moved < moderate or sigma > 0.8
    reuse chunk while sigma > 0.7"""
    made = bound(rule).ir.phases[1].rule
    assert isinstance(made, ir.Reuse)
    found = ways_of(made)
    assert [way.stand_in is None for way in found] == [True, False, True]
    assert [way.condition.at and way.condition.at.text for way in found] == [
        "moved < small or sigma > 0.9", "moved < moderate or sigma > 0.8", "sigma > 0.7",
    ]  # fmt: skip
