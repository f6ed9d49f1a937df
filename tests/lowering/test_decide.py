"""The decision graph by itself: what it takes and gives, and what it makes of flags, counts, sources, earlier steps.

One sample of two chunks, each of two frames with two tokens. All that is not told is 0, and both chunks are active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mccompile import ir
from mccompile.capture.part import Input
from mccompile.lowering.decide import DecideSpec, build_decide, dynamic_phases
from mccompile.lowering.host import AccountRow, ChangeRow, ClockRow, DepthRow, Flag, HostRow, TableRow
from mccompile.lowering.measured import MeasuredRow
from mccompile.lowering.slots import (
    ChosenWay,
    Count,
    DecidedBy,
    Host,
    Late,
    LikeAnchors,
    Mask,
    Now,
    Params,
    Past,
    Places,
    Running,
    Slot,
    SourceBefore,
    Tail,
)
from mccompile.lowering.sources import Located

C, SIGMA = ir.Const, ir.ClockRef("sigma")
CELLS, PER_TOKEN, PER_CHUNK = (1, 2, 2, 2), ir.Granularity.TOKEN, ir.Granularity.CHUNK
NAMES: tuple[ir.SourceName, ...] = ("latent", "output")
LATENT, OUTPUT = ir.SourceRef("latent"), ir.SourceRef("output")
WHERE = {name: Located(name, Input(name), "tokens", 1, (1, 1, 1)) for name in NAMES}
MOVED = ir.Change("l1", LATENT, "step", PER_TOKEN)
LATE = ir.Signal("late", ir.Polynomial(ir.FrameDiff(ir.SourceRef("block_output"), True), (2.0, 1.0)), PER_TOKEN, True)
EARLY = ir.Signal("early", SIGMA, PER_CHUNK, False)
ACCOUNT = Count("account")


def below(value: ir.Expr, limit: float) -> ir.Expr:
    return ir.Apply("lt", (value, C(limit)))


def reuse(value: ir.Expr, limit: float, **more: Any) -> ir.Reuse:
    """Reuses a token while the value is below the limit."""
    return replace(ir.Reuse(PER_TOKEN, below(value, limit), None, None, None, None, None, None), **more)


def policy(*rules: ir.Rule, **more: Any) -> ir.PolicyIR:
    phases = tuple(ir.Phase(f"p{i}", ir.Rest(), rule) for i, rule in enumerate(rules))
    made = ir.PolicyIR(
        name="made", models=(), params=(), signals=(EARLY, LATE), phases=phases,
        regions=(ir.Region(ir.Blocks(0, -1), "residual"),), chunks=ir.Chunks(None, "skip", "keep"),
        branches=ir.Branches(None, batch=False), cache=ir.Cache("model", "model", "model", None, None, False),
    )  # fmt: skip
    return replace(made, **more)


def graph(*rules: ir.Rule, supplied: frozenset[ir.Change] = frozenset(), merges: bool = False) -> DecideSpec:
    spec = build_decide(policy(*rules), WHERE, supplied, merges)
    assert spec is not None
    return spec


def decided(
    spec: DecideSpec, told: Mapping[Any, Sequence[float]], given: Mapping[Any, torch.Tensor] | None = None
) -> dict[Slot, torch.Tensor]:
    """What the graph gives. told: by the clock and the plan, of each chunk. given: other inputs."""
    rows = {Flag("active"): (1.0, 1.0), **told}
    values = {Host(): torch.tensor([[list(rows.get(row, (0.0, 0.0))) for row in spec.host]]), **(given or {})}
    sizes = {Now: (1, 8, 1), SourceBefore: (*CELLS, 1), Tail: (1, 3, 2, 1), Places: (1, 2), Params: (0,)}
    inputs = [values[s] if s in values else torch.zeros(sizes.get(type(s), CELLS)) for s in spec.inputs]
    return dict(zip(spec.outputs, spec.module(*inputs), strict=True))


def mask(found: Mapping[Slot, torch.Tensor]) -> list[int]:
    """Which tokens are computed, in order."""
    assert found[Mask()].shape == CELLS
    assert found[Mask()].dtype == torch.bool
    return found[Mask()].flatten().int().tolist()


def tokens(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(CELLS)


def listed(value: torch.Tensor) -> list[float]:
    assert value.shape == CELLS
    return value.flatten().tolist()


def test_rules_that_the_clock_decides_need_no_graph() -> None:
    every, open_, top = ir.Every(C(2.0)), reuse(SIGMA, 0.5), ir.Top(C(0.5), SIGMA)
    assert build_decide(policy(ir.Compute(), every), WHERE, frozenset()) is None
    assert dynamic_phases(policy(every, open_, ir.Compute(), top)) == ((1, open_), (3, top))


FLAGS = tuple(Flag(what) for what in ("active", "forced", "reused", "phase", "known", "first", "tail"))
CLOCK = tuple(ClockRow(what) for what in ("step", "fraction", "timestep", "sigma"))
FRESH = Flag("fresh")
TABLE, SUM = ir.Table((1.0, 2.0)), ir.Cumulative("sum", ir.Table((1.0, 2.0)))
BEFORE = SourceBefore("latent", "step")
RESULTS = SourceBefore("output", "compute"), SourceBefore("output", "compute", 2)
GAIN = ir.Apply("sub", (C(1.0), ir.Frequency()))
TAKES: dict[str, tuple[ir.Rule, tuple[Slot, ...], tuple[Slot, ...], tuple[HostRow, ...]]] = {
    # the rule, what the graph takes and gives beside the usual, and the rows that the clock and the plan tell beside it
    "the clock": (reuse(SIGMA, 0.5), (), (), ()),
    "reuses in a row": (reuse(SIGMA, 0.5, max_consecutive=C(2.0)), (Count("streak"),), (Count("streak"),), ()),
    "reuses in total": (reuse(SIGMA, 0.5, max_total=C(2.0)), (Count("total"),), (Count("total"),), ()),
    "both": (
        reuse(SIGMA, 0.5, max_total=C(2.0), max_consecutive=C(1.0)), (Count("streak"), Count("total")),
        (Count("streak"), Count("total")), (),
    ),
    "a distance": (reuse(MOVED, 0.5), (Now("latent"), BEFORE), (BEFORE,), ()),
    "a distance of results": (
        reuse(ir.Change("l1", OUTPUT, "compute", PER_TOKEN, 1, ir.PastMoment("compute", 2)), 0.5), RESULTS, (),
        (FRESH,),
    ),
    "a motion": (reuse(ir.FrameDiff(LATENT, True), 0.5), (Now("latent"), Tail("latent")), (Tail("latent"),), ()),
    "a motion of results": (
        reuse(ir.FrameDiff(OUTPUT, True, ir.PastMoment("compute", 1)), 0.5), RESULTS[:1], (), (),
    ),
    "an older source": (
        reuse(ir.Change("l1", LATENT, "compute", PER_TOKEN, 2), 0.5),
        (Now("latent"), *(SourceBefore("latent", "compute", n) for n in (1, 2))),
        tuple(SourceBefore("latent", "compute", n) for n in (1, 2)), (FRESH,),
    ),
    "an earlier number": (
        reuse(ir.Before(SIGMA), 0.5), (Past(0, 0, ir.Granularity.STEP),), (Past(0, 0, ir.Granularity.STEP),), (FRESH,),
    ),
    "a running mean": (reuse(ir.Smooth(SIGMA, C(0.5)), 0.5), (Running(0, 0),), (Running(0, 0),), (FRESH,)),
    "the depth": (reuse(ir.Depth(), 0.5), (), (), (DepthRow(),)),
    "tables": (reuse(ir.Apply("add", (TABLE, SUM)), 0.5), (), (), (TableRow(TABLE), TableRow(SUM))),
    "what lies around": (reuse(ir.Around("max", SIGMA, 1), 0.5), (Places(),), (), ()),
    "an area": (reuse(ir.Area((0.0, 1.0), (0.0, 0.5)), 0.5), (Places(),), (), ()),
    "a filter": (
        reuse(ir.Change("l1", ir.SourceRef("latent", GAIN), "zero", PER_TOKEN), 0.5), (Places(), Now("latent")), (), (),
    ),
    "what is alike": (reuse(ir.Similarity(LATENT, 2), 0.5), (LikeAnchors("latent", 2),), (), ()),
    "signals": (reuse(ir.Apply("add", (ir.SignalRef("early"), ir.SignalRef("late"))), 0.5), (Late("late"),), (), ()),
}  # fmt: skip


@pytest.mark.parametrize("how", TAKES)
def test_the_graph_takes_and_gives_what_its_rules_need(how: str) -> None:
    rule, takes, gives, rows = TAKES[how]
    spec = graph(rule)
    first = [slot for slot in takes if slot == Places()]
    assert spec.inputs == (Host(), Params(), *first, ACCOUNT, *(slot for slot in takes if slot not in first))
    assert spec.outputs == (Mask(), DecidedBy(), ACCOUNT, *gives)
    flags = (*FLAGS, FRESH) if FRESH in rows else FLAGS
    assert spec.host == (*flags, AccountRow("account"), *CLOCK, *(row for row in rows if row != FRESH))
    assert spec.counts == (ACCOUNT, *(slot for slot in takes if isinstance(slot, Count)))
    read = {slot.source for slot in takes if isinstance(slot, Now | LikeAnchors)}
    assert spec.sources == tuple(WHERE[name] for name in WHERE if name in read)
    assert spec.told_after == ((WHERE["output"],) if RESULTS[0] in takes else ())


def test_what_the_plan_has_measured_is_told_by_the_host() -> None:
    spec = graph(reuse(MOVED, 0.5), supplied=frozenset({MOVED}))
    assert spec.inputs == (Host(), Params(), ACCOUNT)
    assert spec.host == (*FLAGS, AccountRow("account"), *CLOCK, ChangeRow(MOVED))
    assert mask(decided(spec, {ChangeRow(MOVED): (0.25, 0.75)})) == [0] * 4 + [1] * 4


CLOCKED = {ClockRow("sigma"): (0.25, 0.75)}
COMPUTES: dict[str, tuple[dict[HostRow, Sequence[float]], list[int]]] = {
    "as the rule says": ({}, [0] * 4 + [1] * 4),
    "not an idle chunk": ({Flag("active"): (1.0, 0.0)}, [0] * 8),
    "a forced chunk": ({Flag("forced"): (1.0, 0.0)}, [1] * 8),
    "not a reused chunk": ({Flag("reused"): (0.0, 1.0)}, [0] * 8),
    "not an idle chunk that is forced": ({Flag("forced"): (1.0, 1.0), Flag("active"): (1.0, 0.0)}, [1] * 4 + [0] * 4),
}


@pytest.mark.parametrize("how", COMPUTES)
def test_flags_come_before_the_rule(how: str) -> None:
    told, computed = COMPUTES[how]
    assert mask(decided(graph(reuse(SIGMA, 0.5)), {**CLOCKED, **told})) == computed


def test_each_chunk_follows_the_rule_of_its_phase() -> None:
    """In what it computes, adds, tells, and lets stand in."""
    stand_in = ir.Forecast(((C(1.0),),))

    def rule(account: ir.Expr, name: str, limits: tuple[float, float]) -> ir.Reuse:
        either = ir.Apply("or", tuple(below(ir.Accumulate(account, name), limit) for limit in limits))
        return ir.Reuse(PER_TOKEN, either, None, None, None, None, None, None, None, (stand_in, None))

    spec = graph(rule(C(1.0), "account", (0.5, 9.0)), ir.Compute(), rule(C(2.0), "debt", (5.0, 9.0)))
    assert spec.outputs[:3] == (Mask(), DecidedBy(), ChosenWay())
    debt = Count("account", "debt")
    assert spec.measured == tuple(MeasuredRow(end, name) for name in ("", "debt") for end in ("highest", "lowest"))
    found = decided(spec, {Flag("phase"): (0.0, 2.0)}, {ACCOUNT: tokens(*[3.0] * 7, 4.0), debt: tokens(*[0.0] * 8)})
    assert mask(found) == [0] * 8
    assert listed(found[ACCOUNT]) == [4.0] * 4 + [3.0] * 3 + [4.0]
    assert listed(found[debt]) == [0.0] * 4 + [2.0] * 4
    assert found[ChosenWay()].dtype == torch.uint8
    assert found[ChosenWay()].flatten().tolist() == [1] * 4 + [0] * 4
    assert found[DecidedBy()].tolist() == [[[4.0, 0.0], [4.0, 0.0], [0.0, 2.0], [0.0, 2.0]]]
    swapped = decided(spec, {Flag("phase"): (2.0, 0.0)}, {debt: tokens(*[8.0] * 8)})
    assert mask(swapped) == [1] * 4 + [0] * 4


def test_rules_that_measure_nothing_tell_nothing() -> None:
    found = decided(graph(reuse(SIGMA, 0.5)), CLOCKED)
    assert found[DecidedBy()].tolist() == [[[0.0, 0.0]]]
    assert found[DecidedBy()].dtype == torch.float32


def test_accounts_are_the_plans_where_it_knows_them_and_grow_while_a_rule_decides() -> None:
    spec = graph(reuse(ir.Accumulate(SIGMA), 1.0))
    sigma, before = {ClockRow("sigma"): (0.25, 0.25)}, {ACCOUNT: tokens(*[0.5, 0.875] * 4)}

    def after(**flags: tuple[float, float]) -> list[float]:
        told = {Flag(what): values for what, values in flags.items()}  # type: ignore[arg-type]
        return listed(decided(spec, {**sigma, AccountRow("account"): (7.0, 0.25), **told}, before)[ACCOUNT])

    assert after() == [0.75, 0.0] * 4
    assert after(known=(0.0, 1.0)) == [0.75, 0.0] * 2 + [0.5] * 4
    assert after(forced=(1.0, 0.0)) == [0.0] * 4 + [0.75, 0.0] * 2
    assert after(reused=(1.0, 0.0)) == [0.5, 0.875] * 2 + [0.75, 0.0] * 2
    assert after(active=(1.0, 0.0)) == [0.75, 0.0] * 2 + [0.5, 0.875] * 2


def test_reuses_are_counted_in_a_row_and_in_total() -> None:
    spec = graph(reuse(SIGMA, 0.5, max_consecutive=C(3.0), max_total=C(9.0)))
    streak, total = Count("streak"), Count("total")
    before = {streak: tokens(*[1.0, 3.0] * 4), total: tokens(*[2.0, 4.0] * 4)}
    found = decided(spec, {ClockRow("sigma"): (0.25, 0.75)}, before)
    assert mask(found) == [0, 1] * 2 + [1] * 4
    assert listed(found[streak]) == [2.0, 0.0] * 2 + [0.0] * 4
    assert listed(found[total]) == [3.0, 4.0] * 2 + [2.0, 4.0] * 2
    idle = decided(spec, {ClockRow("sigma"): (0.25, 0.25), Flag("active"): (0.0, 1.0)}, before)
    assert listed(idle[streak]) == [1.0, 3.0] * 2 + [2.0, 0.0] * 2
    assert listed(idle[total]) == [2.0, 4.0] * 2 + [3.0, 4.0] * 2


HALVES = [0] * 4 + [1] * 4
ODD = tokens(*[0.25, 0.75] * 4)
READS: dict[str, tuple[ir.Expr, dict[HostRow, Sequence[float]], dict[Slot, torch.Tensor], list[int]]] = {
    "the depth": (ir.Depth(), {DepthRow(): (0.25, 0.75)}, {}, HALVES),
    "a table": (TABLE, {TableRow(TABLE): (0.25, 0.75)}, {}, HALVES),
    "a running total": (SUM, {TableRow(SUM): (0.25, 0.75)}, {}, HALVES),
    "an area": (ir.Area((0.0, 1.0), (0.0, 0.5)), {}, {}, [1, 0] * 4),
    "what is alike": (ir.Similarity(LATENT, 2), {}, {LikeAnchors("latent", 2): ODD}, [0, 1] * 4),
    "a late signal": (ir.SignalRef("late"), {}, {Late("late"): ODD}, [0, 1] * 4),
    "a distance": (
        MOVED, {}, {Now("latent"): torch.arange(8.0).reshape(1, 8, 1), BEFORE: torch.ones(*CELLS, 1)},
        [1, 0] + [1] * 6,
    ),
    "an earlier number": (ir.Before(SIGMA), {}, {Past(0, 0, ir.Granularity.STEP): ODD}, [0, 1] * 4),
    "a running mean": (ir.Smooth(SIGMA, C(1.0)), {}, {Running(0, 0): ODD}, [0, 1] * 4),
}  # fmt: skip


@pytest.mark.parametrize("how", READS)
def test_a_rule_reads_what_is_told_and_given(how: str) -> None:
    value, told, given, computed = READS[how]
    assert mask(decided(graph(reuse(value, 0.5)), told, given)) == computed


def test_sources_of_this_step_are_kept_for_the_next_one() -> None:
    since = SourceBefore("latent", "compute")
    both = ir.Apply("add", (MOVED, ir.Change("l1", LATENT, "compute", PER_TOKEN)))
    found = decided(
        graph(reuse(both, 3.0)), {Flag("active"): (1.0, 1.0)},
        {Now("latent"): torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0]).reshape(1, 8, 1)},
    )  # fmt: skip
    assert mask(found) == [0] * 7 + [1]
    assert found[BEFORE].flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0]
    assert found[since].flatten().tolist() == [0.0] * 4 + [1.0, 1.0, 1.0, 9.0]  # a chunk that computed some token


ZERO = ir.Const(0.0)


@pytest.mark.parametrize(
    "past", [ir.Before(SIGMA), ir.Smooth(SIGMA, C(0.5)), None], ids=["a number", "a running mean", "nothing"]
)
def test_where_rules_look_back_nothing_has_moved_before_a_chunk_was_seen(past: ir.Expr | None) -> None:
    """Not at its first step, and not in the first call that it is in."""
    value = MOVED if past is None else ir.Apply("add", (MOVED, ir.Apply("mul", (past, ZERO))))
    spec, given = graph(reuse(value, 0.5)), {Now("latent"): torch.ones(1, 8, 1)}
    for step, fresh, computed in (((0.0, 1.0), (0.0, 0.0), HALVES), ((1.0, 3.0), (1.0, 0.0), HALVES)):
        found = mask(decided(spec, {ClockRow("step"): step, FRESH: fresh}, given))
        assert found == (computed if past else [1] * 8)


def test_numbers_and_means_are_kept_for_each_cell() -> None:
    """Of a chunk that is seen for the first time, as they are now."""
    spec = graph(reuse(ir.Apply("add", (ir.Before(SIGMA), ir.Smooth(SIGMA, C(0.5)))), 9.0))
    past, running = Past(0, 0, ir.Granularity.STEP), Running(0, 0)
    given = {past: ODD, running: ODD, ACCOUNT: tokens(*[2.0] * 8)}
    found = decided(spec, {ClockRow("sigma"): (1.0, 2.0), FRESH: (0.0, 1.0)}, given)
    assert listed(found[past]) == [1.0] * 4 + [2.0] * 4
    assert listed(found[running]) == [0.625, 0.875] * 2 + [2.0] * 4
    step = {ClockRow("step"): (1.0, 1.0), ClockRow("sigma"): (4.0, 8.0)}
    mean = graph(reuse(ir.Average(SIGMA, 2), 4.0))
    assert mask(decided(mean, step, {Running(0, 1): tokens(*[2.0] * 8)})) == HALVES
    assert mask(decided(mean, {**step, ClockRow("step"): (0.0, 0.0)}, {Running(0, 1): tokens(*[2.0] * 8)})) == [1] * 8


def test_motion_is_against_the_last_frame_of_the_chunk_before() -> None:
    """The first frame of the video takes that of the second; after a chunk that was not seen, it counts as moved."""
    spec = graph(reuse(ir.FrameDiff(LATENT, True), 0.5))
    latents = torch.tensor([1.0, 1.0, 1.25, 9.0, 1.5, 9.0, 1.5, 9.0]).reshape(1, 8, 1)
    tail = torch.tensor([7.0, 7.0, 8.0, 8.0, 5.0, 5.0]).reshape(1, 3, 2, 1)
    given = {Now("latent"): latents, Tail("latent"): tail}
    found = decided(spec, {Flag("first"): (1.0, 0.0), Flag("tail"): (0.0, 1.0)}, given)
    assert mask(found) == [0, 1, 0, 1] + [0] * 4
    assert found[Tail("latent")].flatten().tolist() == [7.0, 7.0, 1.25, 9.0, 1.5, 9.0]
    unseen = decided(spec, {Flag("first"): (0.0, 0.0), Flag("tail"): (0.0, 0.0)}, given)
    assert mask(unseen) == [1, 1, 0, 1, 1, 1, 0, 0]


def test_motion_of_earlier_results_is_within_each_chunk() -> None:
    """Beside that of the source now, in one rule. Frames here have three tokens."""
    earlier = ir.FrameDiff(OUTPUT, True, ir.PastMoment("compute", 1))
    both = ir.Apply("max", (earlier, ir.FrameDiff(LATENT, True)))
    results = torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 5.0, 9.0, 1.0, 5.0, 1.0, 1.0]).reshape(1, 2, 2, 3, 1)
    given = {Now("latent"): torch.ones(1, 12, 1), Tail("latent"): torch.ones(1, 3, 3, 1)}
    given |= {RESULTS[0]: results, ACCOUNT: torch.zeros(1, 2, 2, 3)}
    told = {Flag("first"): (1.0, 0.0), Flag("tail"): (0.0, 1.0)}
    for limit, last in ((2.0, [0, 0, 0]), (0.5, [0, 1, 0])):
        found = decided(graph(reuse(both, limit)), told, given)
        assert found[Mask()].flatten().int().tolist() == [1, 0, 0] * 2 + last * 2


@pytest.mark.parametrize("merges", [True, False])
def test_of_tokens_that_take_from_others_some_are_computed_in_each_chunk(merges: bool) -> None:
    """All of a chunk of which none is selected, and none of a chunk that is idle."""
    spec, late = graph(reuse(ir.SignalRef("late"), 0.5), merges=merges), {Late("late"): tokens(1.0, *[0.0] * 7)}
    assert mask(decided(spec, {}, late)) == [1, 0, 0, 0] + [int(merges)] * 4
    assert mask(decided(spec, {Flag("active"): (1.0, 0.0)}, late)) == [1] + [0] * 7


def test_places_are_called_after_what_lies_there() -> None:
    """The text of a graph names what it takes and gives."""
    either = ir.Apply("or", tuple(below(ir.Area((0.0, 1.0), (0.0, 0.5)), limit) for limit in (0.5, 0.75)))
    rule = replace(reuse(SIGMA, 0.5), condition=either, stand_ins=(ir.Forecast(((C(1.0),),)), None))
    spec = graph(replace(rule, max_total=C(3.0)))
    counts = ["state:account", "state:total"]
    assert [slot.name for slot in spec.inputs] == ["host", "params", "places", *counts]
    assert [slot.name for slot in spec.outputs] == ["mask", "measured", "way", *counts]
    named = [n.name for n in spec.module.graph.find_nodes(op="placeholder")]
    assert named == [slot.name.replace(":", "__") for slot in spec.inputs]
