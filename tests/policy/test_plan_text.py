"""Plans as text: what is shown reads back, and what does not read is refused at its word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy_cases import grid_of, motioncache
from test_planner import planned, teacache

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.policy.cells import Cell, Plan, PlannedAction
from mccompile.policy.groups import views
from mccompile.policy.plan_text import headings, read_plans
from mccompile.policy.planner import read_plan, show_plan

TABLE = """\
plan made_by_hand
phases [warmup all last]
c0 (change distance=rel_l1 of=(source modulation) since=step over=chunk)
step  timestep  sigma  phase   action   account   c0
   0    1000.0    1.0  warmup  compute      0.0  0.0
   1     800.0    0.8  warmup  compute      0.0  0.1
   2     600.0    0.6  all     reuse        0.0  0.1
   3     400.0    0.4  all     compute      0.1  0.1
   4     200.0    0.2  last    compute      0.0  0.1
summary computes 4 of 5 steps, reuses 1, leaves 0 to the run (100% static)
"""


def test_a_plan_as_text() -> None:
    made = planned(teacache(0.15), 5, (0.0, 0.1, 0.1, 0.1, 0.1))
    assert show_plan(made) == TABLE
    assert read_plan(TABLE) == made
    noted = replace(made, notes=("one thing", "and another"))
    assert read_plan(show_plan(noted)) == noted


MARKED = {"plan made": "plam", "reuses 1": "summary"}  # the first word of a line that is wrong as a whole


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("plan made", "plam made", 1),
        ("[warmup all last]", "[warmup last]", 7),
        ("   3     400.0", "   4     400.0", 8),
        ("  reuse ", "  maybe ", 7),
        ("0.1\n   3", "\n   3", 7),
        ("reuses 1", "reuses 2", 10),
        ("static)\n", "static)\nstep", 11),
        ("  last    compute      0.0", "  last    compute      zero", 9),
    ],
)
def test_a_damaged_plan_is_refused_at_its_line(old: str, new: str, line: int) -> None:
    assert old in TABLE
    with pytest.raises(PolicyError) as caught:
        read_plan(TABLE.replace(old, new, 1))
    (found,) = caught.value.diagnostics
    assert found.code == "MC0308"
    assert found.span is not None
    assert found.span.line == line
    if old in MARKED:
        assert found.span.text == MARKED[old]


def test_a_table_without_rows_is_no_plan() -> None:
    lines = TABLE.splitlines(keepends=True)
    with pytest.raises(PolicyError, match="the table has no rows") as caught:
        read_plan("".join([*lines[:4], lines[-1]]))
    assert [(d.span.line, d.span.text) for d in caught.value.diagnostics if d.span] == [(5, "summary")]


WAYS = """\
plan made_by_hand
phases [first all]
accounts [debt]
step  timestep  sigma  phase  action   account  debt  way
   0    1000.0    1.0  first  compute      0.0   0.0    0
   1     750.0   0.75  all    reuse        0.5   0.0    2
   2     500.0    0.5  ?      dynamic        ?     ?    0
   3     250.0   0.25  all    dynamic      0.5  0.25    0
summary computes 1 of 4 steps, reuses 1, leaves 2 to the run (50% static)
"""


def test_alternatives_and_accounts_as_text() -> None:
    """A way is counted from 1, and is that of a reuse; of an account that data decides nothing is known."""
    actions: tuple[PlannedAction, ...] = ("compute", "reuse", "dynamic", "dynamic")
    accounts = ((0.0, (0.0,)), (0.5, (0.0,)), (None, ()), (0.5, (0.25,)))
    phases = (0, 1, None, 1)
    cells = tuple(
        Cell(step, phases[step], actions[step], (), account, others, int(step == 1))
        for step, (account, others) in enumerate(accounts)
    )
    made = Plan("made_by_hand", grid_of(4), ("first", "all"), (), cells, (), ("debt",))
    assert show_plan(made) == WAYS
    assert read_plan(WAYS) == made


@pytest.mark.parametrize(
    ("old", "new", "place", "cause"),
    [
        ("hand\n", "hand again\n", "plan", "`plan` takes one value"),
        ("[debt]", "[debt] []", "accounts", "`accounts` takes one value"),
        ("   0.0    2", "   0.0   -2", "-2", "the number of an alternative is expected"),
        ("   0.0    2", "   0.0", "1", "the row has 7 columns"),
        ("debt  way\n", "debt  (way)\n", "0", "the row has 8 columns"),
        ("static)\n", "static)\nstep 1\n", "step", "nothing may follow the summary"),
        ("  all    reuse", "  last   reuse", "last", "not a phase of the plan"),
        ("  all    reuse", "  all    maybe", "maybe", "compute, reuse or dynamic is expected"),
    ],
)
def test_what_is_wrong_with_a_plan_is_told_at_its_word(old: str, new: str, place: str, cause: str) -> None:
    assert old in WAYS
    with pytest.raises(PolicyError) as caught:
        read_plan(WAYS.replace(old, new, 1))
    (found,) = caught.value.diagnostics
    assert found.span is not None
    assert (found.span.text, found.span_label()) == (place, cause)


def test_an_empty_text_is_no_plan() -> None:
    with pytest.raises(PolicyError, match="the text is empty") as caught:
        read_plan("\n \n")
    assert [(d.span.line, d.span.text) for d in caught.value.diagnostics if d.span] == [(1, "")]


@pytest.mark.parametrize("number", range(1, len(TABLE.splitlines())))
def test_a_plan_that_ends_too_early_is_refused_at_its_last_line(number: int) -> None:
    with pytest.raises(PolicyError, match="a line beginning with") as caught:
        read_plan("".join(TABLE.splitlines(keepends=True)[:number]))
    assert [(d.code, d.span.line) for d in caught.value.diagnostics if d.span] == [("MC0308", number)]


def test_a_heading_stands_at_the_very_beginning() -> None:
    assert list(read_plans(f"regions front\n{TABLE}")) == ["front"]
    with pytest.raises(PolicyError, match="a line beginning with `plan`"):
        read_plans(f"\nregions front\n{TABLE}")


def test_blocks_in_a_row_that_have_one_plan_share_a_heading() -> None:
    """Those of `rear` stand apart in a model; `front` is no block of them, though its plan is the same."""
    one, other = read_plan(TABLE), read_plan(WAYS)
    rear = tuple(ir.Region(ir.Blocks(n, n), "residual", name=f"rear[{n}]", depth=n / 3) for n in range(4))
    made = replace(motioncache(), regions=(ir.Region(ir.Blocks(9, 9), "residual", name="front"), *rear))
    plans = {"front": one, "rear[0]": one, "rear[1]": one, "rear[2]": one, "rear[3]": other}
    assert headings(made, plans) == {
        "front": "regions front", "rear[0]": "regions rear[0] to rear[2]", "rear[3]": "regions rear[3]"
    }  # fmt: skip
    assert headings(made, plans | {"rear[1]": other, "rear[2]": other}) == {
        "front": "regions front", "rear[0]": "regions rear[0]", "rear[1]": "regions rear[1] to rear[3]"
    }  # fmt: skip
    two = replace(made, regions=rear[:2])
    assert headings(two, {"rear[0]": one, "rear[1]": one}) == {"rear[0]": "regions rear[0] to rear[1]"}
    branch = ir.BranchRule("uncond", ir.Compute())
    apart = replace(made, phases=(*made.phases[:-1], replace(made.phases[-1], branches=(branch,))))
    found = headings(apart, {view.name: one for view in views(apart)})
    assert [text for text in found.values() if " to " in text] == [
        "other branches, regions rear[0] to rear[3]", "branch uncond, regions rear[0] to rear[3]"
    ]  # fmt: skip
