"""Reasons and differences of runs say what the plans do, and the run that is planned for where no model says one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Chunk
from policy_cases import MODULATION, MOTION, STATIC, UNHURRIED, below, grid_of, policy, rest, reuse
from test_planner_oracle import planned, rules, runs

from mccompile import ir
from mccompile.arithmetic.operations import Operator
from mccompile.language.walk import walk_rule
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.difference import StepsComputed, difference
from mccompile.policy.flow import flow_grid
from mccompile.policy.planner import plan
from mccompile.policy.reasons import reasons, stands_in
from mccompile.policy.rules import Static

C = ir.Const
NOTHING = Static({}, frozenset())
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def known(chunk: Chunk) -> Static:
    """All that the timestep decides in the run of a chunk."""
    return Static({MODULATION: tuple(float(v) for v in chunk.data[MODULATION][:, 0])}, STATIC)


def accumulates(bound: BoundPolicy) -> bool:
    return any(isinstance(e, ir.Accumulate) for phase in bound.ir.phases for e in walk_rule(phase.rule, {}))


@settings(UNHURRIED, max_examples=30)
@given(runs(static=True))
def test_reasons_say_what_a_plan_does(run: tuple[Chunk, frozenset[str]]) -> None:
    chunk, made = run[0], planned(run[0])
    if made is None:
        return
    found = reasons(chunk.bound, chunk.grid, known(chunk))
    for cell, reason in zip(made.cells, found, strict=True):
        assert cell.phase is not None
        assert (reason.step, reason.action, reason.phase) == (cell.step, cell.action, made.phases[cell.phase])
        assert reason.before == ((("account", cell.account),) if accumulates(chunk.bound) else ())
        for one in reason.compared:
            assert one.holds == SIGNS[one.sign](np.float32(one.value), np.float32(one.limit))
            assert one.left
            assert one.right
    for now, later in pairwise(found):
        if now.before:
            assert later.before == ((("account", 0.0),) if now.action == "compute" else now.after)


@settings(UNHURRIED, max_examples=20)
@given(runs(static=False))
def test_reasons_are_sure_of_what_a_plan_is_sure_of(run: tuple[Chunk, frozenset[str]]) -> None:
    chunk, made = run[0], planned(run[0])
    for cell, reason in zip(made.cells, reasons(chunk.bound, chunk.grid, known(chunk)), strict=True) if made else ():
        assert cell.action in ("dynamic", reason.action)
        assert (reason.action == "compute") == (cell.action == "compute")
        if cell.account is None:
            assert reason.before in ((), None)


@st.composite
def near(draw: st.DrawFn) -> tuple[Chunk, BoundPolicy]:
    """A run that the clock decides, and a policy that has another rule in one phase."""
    chunk, _ = draw(runs(static=True))
    phases = list(chunk.bound.ir.phases)
    place = draw(st.integers(0, len(phases) - 1))
    phases[place] = replace(phases[place], rule=draw(rules(static=True)))
    return chunk, bind(replace(chunk.bound.ir, phases=tuple(phases)), {})


@settings(UNHURRIED, max_examples=30)
@given(near())
def test_a_difference_of_what_the_clock_decides_is_that_of_the_plans(both: tuple[Chunk, BoundPolicy]) -> None:
    chunk, second = both
    other = Chunk(second, chunk.grid, chunk.data)
    plans = planned(chunk), planned(other)
    if plans[0] is None or plans[1] is None:
        return
    found = difference(chunk.bound, second, chunk.grid, known(chunk))
    one, two = ([cell.action for cell in made.cells] for made in plans if made)
    apart = [step for step, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    assert [step for step, pair in enumerate(found.steps) if pair.relation == "differ"] == apart
    assert {pair.relation for pair in found.steps} <= {"alike", "differ"}
    assert found.first == (apart[0] if apart else None)
    counts = [actions.count("compute") for actions in (one, two)]
    assert found.work == tuple(StepsComputed(count, count) for count in counts)
    assert found.change == StepsComputed(counts[1] - counts[0], counts[1] - counts[0])
    assert found.sections == ()


def test_where_data_decides_a_difference_has_two_ends() -> None:
    drift = policy(rest(reuse(below(MOTION, C(0.1)))))
    first, second = bind(drift, {}), bind(replace(drift, phases=(rest(ir.Every(C(2.0))),)), {})
    found = difference(first, second, grid_of(5), NOTHING)
    assert [pair.relation for pair in found.steps] == ["alike", *["may differ"] * 4]
    assert found.first == 1
    assert found.work == (StepsComputed(1, 5), StepsComputed(3, 3))
    assert found.change == StepsComputed(-2, 2)
    same = difference(first, first, grid_of(5), NOTHING)
    assert (same.first, same.change) == (None, StepsComputed(0, 0))


@pytest.mark.parametrize("name", ["layers", "chunks", "branches", "cache"])
def test_other_declarations_that_differ_are_named(name: str) -> None:
    one = policy(rest(ir.Compute()))
    changed: dict[str, ir.PolicyIR] = {
        "layers": replace(one, regions=(ir.Region(ir.Blocks(1, -1), "residual"),)),
        "chunks": replace(one, chunks=ir.Chunks(None, "compute", "keep")),
        "branches": replace(one, branches=ir.Branches("cond", batch=False)),
        "cache": replace(one, cache=replace(one.cache, dtype="bfloat16")),
    }
    found = difference(bind(one, {}), bind(changed[name], {}), grid_of(3), NOTHING)
    assert (found.sections, found.first) == ((name,), None)


def test_why_a_step_is_computed_or_reused() -> None:
    """Each reason once, in a run that is worked out by hand: changes of 0.3, at most 0.75 in the account."""
    account = replace(
        reuse(below(ir.Accumulate(MODULATION), C(0.75))), max_consecutive=C(5.0), all_at=ir.AllAt(None, (7,))
    )
    capped = replace(reuse(below(C(0.0), C(1.0))), max_consecutive=C(1.0))
    made = bind(policy(
        ir.Phase("warmup", ir.ForSteps(C(2.0)), ir.Compute()),
        ir.Phase("account", ir.ForSteps(C(7.0)), account),
        ir.Phase("capped", ir.ForSteps(C(2.0)), capped),
        ir.Phase("mask", ir.ForSteps(C(1.0)), ir.StepMask((False,) * 14)),
        rest(ir.Every(C(3.0))),
    ), {})  # fmt: skip
    found = reasons(made, grid_of(14), Static({MODULATION: (0.0, *[0.3] * 13)}, STATIC))
    assert [(r.action, r.why) for r in found] == [
        ("compute", "nothing is kept yet"), ("compute", "the phase computes"),
        ("reuse", "the condition holds"), ("reuse", "the condition holds"), ("compute", "the condition fails"),
        ("reuse", "the condition holds"), ("reuse", "the condition holds"), ("compute", "a step that computes all"),
        ("reuse", "the condition holds"), ("compute", "the condition holds, and 1 reuses in a row are the most"),
        ("reuse", "the condition holds"), ("reuse", "the mask says so"),
        ("compute", "every 3 steps of the phase"), ("reuse", "every 3 steps of the phase"),
    ]  # fmt: skip
    (one,) = found[3].compared
    assert (one.sign, one.limit, one.holds) == ("<", 0.75, True)
    assert one.value == pytest.approx(0.6)
    assert [len(r.compared) for r in found] == [0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0]


def test_why_a_guard_or_data_decides() -> None:
    """A guard on shares acts on a whole chunk at its ends; what stands in is told behind the reason."""
    forecast = ir.Forecast(((1.0,),))
    alternatives = {"stand_ins": (forecast,), "hold_below": C(2.0)}
    held = replace(reuse(below(C(1.0), C(0.0))), **alternatives)  # type: ignore[arg-type]
    raised = replace(reuse(below(C(0.0), C(1.0))), all_above=C(-1.0), max_consecutive=C(9.0))
    measured = replace(reuse(below(MOTION, C(0.5))), granularity=ir.Granularity.TOKEN)
    for rule, action, why in (
        (held, "reuse", f"the condition fails, and a guard on shares holds the step back{stands_in(forecast)}"),
        (raised, "compute", "the condition holds, and a guard on shares computes the step"),
        (ir.Top(C(0.5), MOTION), "dynamic", "measured: top 0.5 by (change distance=l1"),
        (measured, "dynamic", "measured: (lt (change distance=l1"),
    ):
        (_, found) = reasons(bind(policy(rest(rule)), {}), grid_of(2), NOTHING)
        assert (found.action, found.why[: len(why)]) == (action, why)


def test_where_no_alternative_holds_and_a_guard_reuses_the_last_one_stands_in() -> None:
    either = ir.Apply("or", (below(C(1.0), C(0.0)), below(C(2.0), C(0.0))))
    rule = replace(reuse(either), stand_ins=(ir.Forecast(((1.0,),)), None), hold_below=C(2.0))
    made = plan(bind(policy(rest(rule)), {}), grid_of(3), {}, STATIC)
    assert [(cell.action, cell.way) for cell in made.cells] == [("compute", 0), ("reuse", 1), ("reuse", 1)]


@pytest.mark.parametrize(("op", "sign"), [*zip(("lt", "le", "gt", "ge"), SIGNS, strict=True)])
def test_each_comparison_of_a_condition_is_told(op: Operator, sign: str) -> None:
    both = ir.Apply("and", (ir.Apply(op, (ir.ClockRef("step"), C(2.0))), below(C(0.0), C(1.0))))
    found = reasons(bind(policy(rest(reuse(both))), {}), grid_of(4), NOTHING)
    told = [[(one.sign, one.value, one.limit, one.holds) for one in reason.compared] for reason in found]
    assert told == [[], *([(sign, n, 2.0, SIGNS[sign](n, 2.0)), ("<", 0.0, 1.0, True)] for n in (1.0, 2.0, 3.0))]


@pytest.mark.parametrize(
    "more",
    [{"regions": (ir.RegionRule("front", ir.Compute()),)}, {"branches": (ir.BranchRule("uncond", ir.Compute()),)}],
)
def test_a_plan_is_of_one_group_of_regions(more: dict[str, object]) -> None:
    made = policy(replace(rest(ir.Compute()), **more))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one group of regions"):
        plan(bind(made, {}), grid_of(2), {}, STATIC)


def test_the_grid_of_flow_matching() -> None:
    """Sigma runs from 1 evenly to 1/1000, and is shifted by 5; the timestep is a thousand times it."""
    grid = flow_grid(4)
    even = (1.0, 0.75025, 0.5005, 0.25075)
    assert grid.sigmas == pytest.approx([5 * s / (1 + 4 * s) for s in even])
    assert grid.timesteps == pytest.approx([1000 * s for s in grid.sigmas])
    assert grid.steps == 4


def test_a_chunk_without_a_token_to_take_from_is_computed_for_that_reason() -> None:
    rule = reuse(below(ir.ClockRef("step"), C(2.0)), ir.Granularity.TOKEN)
    found = reasons(replace(bind(policy(rest(rule)), {}), merges=True), flow_grid(4), NOTHING)
    assert [reason.action for reason in found] == ["compute"] * 4
    assert [reason.why for reason in found[1:3]] == [
        "the condition holds, and no token would be left to take from", "the condition fails",
    ]  # fmt: skip
