"""What the other guidance branch has given at the same step: it is handed over once, or the reason why it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid
from mccompile.runtime.actions import Action
from mccompile.runtime.beside import afresh, found_beside, lose_gap, returned, served
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.store import BranchStore, GapBase, Window

BOUND = bind(load_policy("teacache"), {})
MOMENT = Moment("run", 4, "cond", Grid(1, (0.0,), (0.0,)), (ChunkTime(0, "active", 0), ChunkTime(1, "active", 0)), 2)
WINDOW = Window(((0, False), (1, False)), 4, ())
REUSE, GRAPH = Action("reuse", 0, 0.5, "planned"), Action("dynamic", 0, None, "phase")
FULL, SKIP = Action("compute", 0, None, "phase"), Action("skip", -1, None, "pending")


def store(row: int = 4, window: Window | None = WINDOW) -> BranchStore:
    made = BranchStore.empty({"": BOUND}, 1, 2)
    made.row, made.window = row, window
    return made


def test_the_output_of_the_other_branch_is_handed_over_once() -> None:
    output = torch.ones(2)
    for own, name in (("cond", "uncond"), ("uncond", "cond"), ("perturbed", "cond")):
        other, mine = store(), store()
        other.returned = returned((output,), computed=True)
        moment = replace(MOMENT, branch=own)
        found = found_beside({name: other, own: mine}, moment, mine)
        assert found.value is output
        assert found.why == ""
        assert found_beside({name: other}, moment, mine) == GapBase(None, f"`{name}` was not called before it")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("missing", "`uncond` was not called before it"), ("row", "`uncond` was not called before it"),
        ("left out", "`uncond` was not computed"), ("changed", "the output of `uncond` was changed"),
        ("window", "`uncond` has other chunks"), ("no window", "`uncond` has other chunks"),
        ("no own window", "`uncond` has other chunks"),
    ],
)  # fmt: skip
def test_why_an_output_cannot_be_used(case: str, why: str) -> None:
    output, other, mine = torch.ones(2), store(), store()
    other.returned = returned((output,), computed=case != "left out")
    other.row = 3 if case == "row" else 4
    if case == "changed":
        output.add_(1)
    if case == "window":
        other.window = Window(((0, False),), 4, ())
    other.window = None if case == "no window" else other.window
    mine.window = None if case == "no own window" else mine.window
    assert found_beside({} if case == "missing" else {"uncond": other}, MOMENT, mine) == GapBase(None, why)


def test_nothing_is_reused_where_the_other_branch_has_given_nothing() -> None:
    mine = store()
    actions = ((REUSE, SKIP),)
    found = served(mine, "", {}, MOMENT, actions, reuses=True)
    assert found == ((Action("compute", 0, None, "`uncond` was not called before it"), SKIP),)
    assert mine.course.history.planned.tolist() == [[False, True]]
    lose_gap(mine, "")
    assert mine.beside is None
    assert mine.course.history.chunk(0, 0).lost == "`uncond` was not called before it"


def test_with_an_output_or_without_rules_for_the_gap_actions_stay() -> None:
    for reuses in (True, False):
        mine, other = store(), store()
        other.returned = returned((torch.ones(1),), computed=True)
        assert served(mine, "", {"uncond": other}, MOMENT, ((REUSE, GRAPH),), reuses) == ((REUSE, GRAPH),)
        assert (mine.beside is not None) is reuses
        mine.course.history.computed[:] = True
        lose_gap(mine, "")
        assert mine.beside is None
        assert mine.course.history.computed.all()


def test_what_was_to_be_reused_is_computed_afresh_in_each_sample() -> None:
    history = BranchStore.empty({"": BOUND}, 2, 2).course.history
    found = afresh(((GRAPH, FULL), (SKIP, REUSE)), MOMENT, history, "why")
    fresh = Action("compute", 0, None, "why")
    assert found == ((fresh, FULL), (SKIP, fresh))
    assert history.planned.tolist() == [[False, True], [True, False]]
