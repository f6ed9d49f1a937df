"""The best static schedule: dynamic programming finds what trying all schedules finds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.studio.explore.measuring import read_table, table_json
from mccompile.studio.explore.schedule import CostTable, best_schedule, in_ranges, mask_policy


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    n = draw(st.integers(1, 7))
    numbers = st.integers(0, 9).map(float)
    return CostTable(tuple(tuple(draw(numbers) if i < k else 0.0 for k in range(n)) for i in range(n)))


@given(tables(), st.data())
@settings(max_examples=100)
def test_no_schedule_of_the_budget_loses_less(table: CostTable, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, table.steps))
    found = best_schedule(table, budget)
    assert len(found) == budget
    assert found[0] == 0
    every = itertools.combinations(range(1, table.steps), budget - 1)
    assert table.loss(found) == min(table.loss((0, *rest)) for rest in every)


@pytest.mark.parametrize("budget", [0, 4])
def test_a_budget_that_no_run_has_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="1 to 3"):
        best_schedule(CostTable(((0.0, 1.0, 2.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))), budget)


def test_the_policy_says_the_schedule() -> None:
    assert in_ranges((0, 1, 2, 5, 7, 8)) == "0..2, 5, 7..8"
    policy = load_policy(mask_policy("static_4", (0, 1, 3, 5), 6, ir.Chunks(3, "skip", "keep")))
    (phase,) = policy.phases
    assert phase.rule == ir.StepMask((True, True, False, True, False, True))
    assert policy.chunks == ir.Chunks(3, "skip", "keep")


def test_a_table_is_read_for_what_it_was_measured_on() -> None:
    table, about = CostTable(((0.0, 0.5), (0.0, 0.0))), {"prompts": ["a"]}
    written = table_json(table, about)
    assert read_table(written, about) == table
    assert read_table(written, {"prompts": ["b"]}) is None
    for damaged in (None, {}, [], {**written, "costs": [[0.0]] * 2}, {**written, "costs": [["a", 0.0]] * 2}):
        assert read_table(damaged, about) is None
