"""What clock and plan know of a chunk at a call, before any data is looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.phases import Grid, advance, start
from mccompile.policy.planner import plan
from mccompile.runtime.actions import Action, resolve, resolve_all
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.store import ChunkRecord, History

STEPS = 6
GRID = Grid(STEPS, tuple(900.0 - 100 * i for i in range(STEPS)), tuple(0.9 - 0.1 * i for i in range(STEPS)))
CLOCK = "phase first for 1 step { compute } phase rest { compute every 2 steps }"
DATA = "phase first for 1 step { compute } phase rest { reuse chunk while accumulate(rel_l1(latent)) < 0.5 }"
WAYS = "phase all { reuse chunk as 2 * kept(residual) while step < 3 reuse chunk as 3 * kept(residual) while step < 9 }"


def bound(phases: str, near: bool = False) -> BoundPolicy:
    kept = "reuse as nearest(residual, by = latent)" if near else ""
    text = f"policy p {{ {phases} layers blocks[*] {{ keep residual {kept} }} }}"
    return bind(load_policy(Source("p.policy", text)), {})


def at(policy: BoundPolicy, step: int, **more: object) -> Action:
    """The action of an active chunk that was computed at each of its steps so far."""
    state = start(policy)
    for _ in range(step):
        state = advance(policy, state, GRID, True)
    record = ChunkRecord(state, computed=step > 0, cleaned=False, since=0, planned=True, lost="")
    moment = Moment("run", step, "cond", GRID, (), 1)
    made = plan(policy, GRID, {}, frozenset())
    return resolve(ChunkTime(0, "active", step), moment, replace(record, **more), policy, made)  # type: ignore[arg-type]


def test_the_plan_is_followed_as_long_as_nothing_has_happened_that_it_did_not_foresee() -> None:
    policy = bound(CLOCK)
    assert at(policy, 0) == Action("compute", 0, None, "nothing kept yet")
    assert [at(policy, step).kind for step in range(1, 5)] == ["compute", "reuse", "compute", "reuse"]
    assert (at(policy, 2).phase, at(policy, 2).why) == (1, "planned")
    assert [at(bound(WAYS), step).way for step in range(1, 5)] == [0, 0, 1, 1]
    told = at(policy, 2, planned=False)
    assert (told.kind, told.phase, told.account, told.why) == ("reuse", 1, None, "phase")
    assert at(policy, 3, planned=False).kind == "compute"


def test_where_data_decides_the_graph_is_asked_and_told_the_account_that_is_planned() -> None:
    policy = bound(DATA)
    first = at(policy, 1)
    assert (first.kind, first.phase, first.account, first.why) == ("dynamic", 1, 0.0, "phase")
    assert at(policy, 1, planned=False).account is None
    assert at(policy, 2).account is None  # data has decided step 1


def test_what_is_lost_is_computed_for_the_reason_why_it_was_lost() -> None:
    assert at(bound(CLOCK), 2, computed=False, lost="another prompt") == Action("compute", 1, None, "another prompt")
    assert at(bound(CLOCK), 2, computed=False) == Action("compute", 1, None, "nothing kept yet")


def test_tokens_that_merge_need_nothing_that_is_kept_unless_it_was_lost() -> None:
    policy = bound("phase all { compute top 50% of tokens by similarity(latent) }", near=True)
    assert at(policy, 0).kind == "dynamic"
    assert at(policy, 0, lost="another prompt") == Action("compute", 0, None, "another prompt")


@pytest.mark.parametrize(
    ("life", "skipped"),
    [
        (("skip", "keep"), {"pending", "finished computed", "finished cleaned"}),
        (("compute", "refresh"), {"finished cleaned"}),
        (("skip", "compute"), {"pending"}),
    ],
)
def test_chunks_outside_of_their_own_steps_are_skipped_as_the_policy_says(
    life: tuple[Literal["skip", "compute"], Literal["keep", "refresh", "compute"]], skipped: set[str]
) -> None:
    made = bound(CLOCK)
    policy = replace(made, ir=replace(made.ir, chunks=ir.Chunks(None, *life)))
    moment, found = Moment("run", 0, "cond", GRID, (), 1), plan(made, GRID, {}, frozenset())
    for state, computed, cleaned in (
        ("pending", False, False), ("finished", False, False), ("finished", True, False), ("finished", True, True)
    ):  # fmt: skip
        record = ChunkRecord(start(made), computed, cleaned, 0, True, "")
        action = resolve(ChunkTime(0, state, 0), moment, record, policy, found)  # type: ignore[arg-type]
        name = state + (" cleaned" if cleaned else " computed" if computed else "")
        assert action == Action("skip" if name in skipped else "compute", -1, None, state)


def test_a_copy_follows_and_every_chunk_of_every_sample_has_an_action() -> None:
    policy = bound(CLOCK)
    history = History.empty(policy, 2, 3)
    history.computed[1, 0] = True
    history.phases[1][0] = advance(policy, advance(policy, start(policy), GRID, True), GRID, True)
    times = (ChunkTime(0, "active", 2), ChunkTime(1, "pending", 0), ChunkTime(2, "active", 2, copy_of=0))
    moment = Moment("run", 0, "cond", GRID, times, 3)
    found = resolve_all(moment, history, policy, plan(policy, GRID, {}, frozenset()), 2)
    assert [[a.kind for a in row] for row in found] == [["compute", "skip", "follow"], ["reuse", "skip", "follow"]]
    assert found[0][2] == Action("follow", -1, None, "copy")
    assert [[a.runs for a in row] for row in found] == [[True, False, False]] * 2
