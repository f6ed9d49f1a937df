"""Decisions of a run against a slow simulation written apart from the package, over random signals.

Two samples of two chunks, each four tokens in two frames, go through the runtime's own decision: what clock and plan
know, the graph, the history. The simulation sees the sources alone. Every number is a small fraction of a power of two,
so that sums do not depend on their order and decisions must agree to the last token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mccompile import ir
from mccompile.capture.part import Input, Shared
from mccompile.diagnostics.failure import PolicyError
from mccompile.lowering.decide import build_decide
from mccompile.lowering.slots import Late
from mccompile.lowering.sources import Located
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import static_changes
from mccompile.policy.groups import ALL
from mccompile.policy.planner import plan
from mccompile.runtime.actions import resolve_all
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.decision import Decide
from mccompile.runtime.fresh import renew
from mccompile.runtime.layout import Layout
from mccompile.runtime.step import Step
from mccompile.runtime.store import BranchStore, Made
from tests.runtime.simulated import CHUNKS, F32, FRAMES, PLACES, SAMPLES, Run, Simulated

C = ir.Const
LAYOUT = Layout(SAMPLES, CHUNKS, FRAMES, PLACES)
DRIFT = ir.Change("l1", ir.SourceRef("modulation"), "step", ir.Granularity.CHUNK)
MOVED = {
    (since, over): ir.Change("l1", ir.SourceRef("latent"), since, over)
    for since in ("step", "compute")
    for over in (ir.Granularity.CHUNK, ir.Granularity.FRAME, ir.Granularity.TOKEN)
}
MOTION = ir.FrameDiff(ir.SourceRef("latent"), False)
LATE = ir.Signal("late", ir.FrameDiff(ir.SourceRef("block_output"), True), ir.Granularity.TOKEN, True)
LOCATED = {
    "latent": Located("latent", Input("x"), "tokens", 1, (1, 1, 1)),
    "modulation": Located("modulation", Shared("m"), "tokens", 1, (1, 1, 1)),
}
STATIC = frozenset({"modulation"})


# ---- what is drawn -----------------------------------------------------------------------------------------
tenths = st.integers(0, 12).map(lambda n: C(n / 10))
few = st.integers(0, 4).map(lambda n: C(float(n)))
often = st.none() | st.integers(1, 4).map(lambda n: C(float(n)))
all_at = st.builds(ir.AllAt, often, st.lists(st.integers(0, 9), max_size=2).map(tuple))
none = st.none()


def amounts(finest: ir.Granularity) -> st.SearchStrategy[ir.Expr]:
    fit = [DRIFT, *(c for (_, over), c in MOVED.items() if over <= finest)]
    fine: list[ir.Expr] = [MOTION, ir.SignalRef("late")] if finest == ir.Granularity.TOKEN else []
    plain = st.sampled_from([*fit, *fine])
    steady = [c for c in fit if c.since == "step"]
    past = st.one_of(
        st.builds(ir.Kept, st.sampled_from(steady), st.integers(1, 3)),
        st.just(ir.Before(DRIFT)),
        st.builds(ir.Average, st.sampled_from(steady), st.sampled_from([2, 4])),
        st.builds(ir.Smooth, st.sampled_from([*steady, *fine[1:]]), st.sampled_from([C(0.0), C(0.5)])),
        st.builds(lambda x: ir.Stairs(x, (0.25, 0.5), (0.25, 1.0, 0.5)), plain),
    )
    return st.one_of(plain, past, st.builds(lambda a, b: ir.Apply("mul", (a, b)), plain, tenths))


@st.composite
def reuses(draw: st.DrawFn) -> ir.Reuse:
    grain = draw(st.sampled_from([ir.Granularity.CHUNK, ir.Granularity.FRAME, ir.Granularity.TOKEN]))
    value = draw(amounts(grain))
    value = ir.Accumulate(value) if draw(st.booleans()) else value
    condition = ir.Apply("lt", (value, draw(st.integers(1, 20).map(lambda n: C(n / 10)))))
    guards = [draw(none | none | tenths) for _ in range(3)] + [draw(none | none | few) for _ in range(2)]
    return ir.Reuse(grain, condition, *guards, draw(none | none | tenths), draw(none | none | all_at))


rules = st.one_of(
    st.just(ir.Compute()),
    st.integers(1, 4).map(lambda n: ir.Every(C(float(n)))),
    st.lists(st.booleans(), min_size=10, max_size=10).map(lambda m: ir.StepMask(tuple(m))),
    st.builds(ir.Top, tenths, amounts(ir.Granularity.TOKEN)),
    reuses(),
    reuses(),
    reuses(),
)
spans = st.one_of(
    st.builds(ir.ForSteps, few),
    st.builds(ir.UntilRefreshes, few),
    st.builds(ir.LastSteps, few),
    st.builds(
        lambda a, n: ir.Between(ir.ClockRef("step"), C(float(a)), C(float(a + n))), st.integers(0, 6), st.integers(1, 4)
    ),
)


def run_of(phases: list[ir.Phase], cache: ir.Cache, steps: int, lag: int, seed: int, scale: float) -> Run:
    policy = ir.PolicyIR(
        name="drawn", models=(), params=(), signals=(LATE,), phases=tuple(phases),
        regions=(ir.Region(ir.Blocks(0, -1), "residual"),), chunks=ir.Chunks(None, "skip", "keep"),
        branches=ir.Branches(None, batch=False), cache=cache,
    )  # fmt: skip
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.integers(0, 9, shape) / 8 * scale).astype(F32)

    rows = steps + lag
    cells = (SAMPLES, CHUNKS, FRAMES, PLACES)
    return Run(bind(policy, {}), steps, lag, drawn(rows, *cells, 2), drawn(rows, *cells), drawn(steps, 4))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    drawn = draw(st.lists(st.tuples(spans, rules), max_size=3))
    phases = [ir.Phase(f"p{i}", s, r) for i, (s, r) in enumerate(drawn)] + [ir.Phase("rest", ir.Rest(), draw(rules))]
    cache = ir.Cache("model", "model", "model", None, draw(none | none | st.integers(1, 5)), draw(st.booleans()))
    scale = draw(st.sampled_from([0.25, 0.5, 1.0]))
    return run_of(phases, cache, draw(st.integers(1, 10)), draw(st.integers(0, 3)), draw(st.integers(0, 10**6)), scale)


# ---- the runtime -------------------------------------------------------------------------------------------
def decided(run: Run, fold: bool, left_out: frozenset[int] = frozenset()) -> list[np.ndarray]:
    """The masks [B, G, F, P] of all rows but those left out, by the runtime."""
    bound, grid = run.bound, run.grid
    changes = static_changes(bound.ir, STATIC)
    moved = np.abs(np.diff(run.drift, axis=0)).mean(1)
    tables = {c: (0.0, *(float(v) for v in moved)) for c in changes}
    made = plan(bound, grid, tables, STATIC, fold)
    spec = build_decide(bound.ir, LOCATED, frozenset(changes) if fold else frozenset())  # type: ignore[arg-type]
    decide = None if spec is None else Decide(spec, spec.module.forward)
    store, masks = BranchStore.empty({ALL: bound}, SAMPLES, CHUNKS), []
    for row in sorted(set(range(run.steps + run.lag)) - left_out):
        times = tuple(time_of(run, g, row) for g in range(CHUNKS))
        moment = Moment("r", row, "cond", grid, times, CHUNKS)
        each = [run.drift[min(max(t.step, 0), run.steps - 1)] for t in times for _ in range(FRAMES * PLACES)]
        sources = {
            "latent": torch.from_numpy(run.latent[row]).flatten(1, 3),
            "modulation": torch.from_numpy(np.stack(each)).expand(SAMPLES, -1, -1),
        }
        store.course.states.tensors[Late("late")] = torch.from_numpy(run.late[row])
        store = renew(store, Made(LAYOUT.cells, {}), moment, {ALL: bound})
        actions = resolve_all(moment, store.course.history, bound, made, SAMPLES)
        mask = stepped(decide, sources, run, fold, moment, store, made, actions).decide({})
        for b in range(SAMPLES):
            for g, time in enumerate(times):
                store.course.history.note(b, time, bound, grid, mask[b, g])
        store.row = row
        masks.append(mask)
    return masks


def time_of(run: Run, chunk: int, row: int) -> ChunkTime:
    step = run.step_of(chunk, row)
    state = "pending" if step < 0 else "active" if step < run.steps else "finished"
    return ChunkTime(chunk, state, step)  # type: ignore[arg-type]


def stepped(decide, sources, run, fold, moment, store, made, actions) -> Step:  # type: ignore[no-untyped-def]
    engine = SimpleNamespace(
        decides={ALL: decide},
        sources=lambda *_: sources,
        video=lambda _: torch.zeros(1),
        lowered=SimpleNamespace(regions=()),
        uses_rows=True,
    )
    return Step(engine, run.bound, fold, moment, LAYOUT, store, made, actions, None, {}, {}, {}, ALL, ALL)  # type: ignore[arg-type]


def check(run: Run, fold: bool) -> Counter[str]:
    """Every decision of the run is that of the simulation; returns what was seen happen."""
    try:
        masks = decided(run, fold)
    except PolicyError as error:
        if {d.code for d in error.diagnostics} != {"MC0307"}:
            raise
        return Counter()  # a range outside of a short run is refused
    seen: Counter[str] = Counter()
    for sample in range(SAMPLES):
        for chunk in range(CHUNKS):
            for step, wanted in enumerate(Simulated(run, sample, chunk).masks()):
                found = masks[step + chunk * run.lag][sample, chunk]
                assert (found == wanted).all(), (sample, chunk, step, found, wanted)
                seen["all" if wanted.all() else "some" if wanted.any() else "none"] += 1
    return seen


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("grain", [ir.Granularity.CHUNK, ir.Granularity.TOKEN])
def test_a_chunk_that_is_held_computes_nothing_though_its_share_is_above(grain: ir.Granularity, fold: bool) -> None:
    """Guards apply in their order: `compute all` looks at what `hold` has left."""
    value = DRIFT if grain == ir.Granularity.CHUNK else MOVED["step", grain]
    rule = ir.Reuse(grain, ir.Apply("lt", (value, C(0.1))), None, C(1.1), C(0.0), None, None, None)
    cache = ir.Cache("model", "model", "model", None, None, False)
    seen = check(run_of([ir.Phase("rest", ir.Rest(), rule)], cache, 4, 1, seed=3, scale=0.5), fold)
    assert seen == {"all": SAMPLES * CHUNKS, "none": 3 * SAMPLES * CHUNKS}


@settings(max_examples=80)
@given(runs(), st.booleans())
def test_a_run_decides_as_its_words_say(run: Run, fold: bool) -> None:
    check(run, fold)


@settings(max_examples=40)
@given(runs(), st.sets(st.integers(0, 12), min_size=1, max_size=4))
def test_folded_and_unfolded_decide_alike_across_gaps(run: Run, rows: set[int]) -> None:
    """Rows that a branch is not called in: at the next one everything is computed, and then both go on alike."""
    left_out = frozenset(rows)
    try:
        one, two = (decided(run, fold, left_out) for fold in (True, False))
    except PolicyError as error:
        if {d.code for d in error.diagnostics} != {"MC0307"}:
            raise
        return
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    called = sorted(set(range(run.steps + run.lag)) - left_out)
    for (before, row), mask in zip(pairwise(called), one[1:], strict=True):
        if row != before + 1:
            active = [g for g in range(CHUNKS) if 0 <= run.step_of(g, row) < run.steps]
            assert mask[:, active].all()


TOKEN = ir.Reuse(
    ir.Granularity.TOKEN, ir.Apply("lt", (ir.Accumulate(MOVED["step", ir.Granularity.TOKEN]), C(0.7))),
    None, None, None, None, None, None,
)  # fmt: skip


def per(grain: ir.Granularity) -> ir.Reuse:
    """TOKEN at another granularity."""
    moved = ir.Change("l1", ir.SourceRef("latent"), "step", grain)
    return replace(TOKEN, granularity=grain, condition=ir.Apply("lt", (ir.Accumulate(moved), C(0.9))))


EACH: Mapping[str, ir.Rule] = {
    "reuse token": TOKEN,
    "reuse step": per(ir.Granularity.STEP),
    "reuse frame": per(ir.Granularity.FRAME),
    "reuse chunk": per(ir.Granularity.CHUNK),
    "since compute": replace(TOKEN, condition=ir.Apply("lt", (MOVED["compute", ir.Granularity.TOKEN], C(0.4)))),
    "kept": replace(
        TOKEN, condition=ir.Apply("lt", (ir.Accumulate(ir.Kept(MOVED["step", ir.Granularity.TOKEN], 1)), C(0.9)))
    ),
    "kept twice": replace(
        TOKEN, condition=ir.Apply("lt", (ir.Accumulate(ir.Kept(MOVED["step", ir.Granularity.TOKEN], 2)), C(0.9)))
    ),
    "before": replace(
        TOKEN, condition=ir.Apply("lt", (ir.Accumulate(ir.Before(MOVED["step", ir.Granularity.TOKEN])), C(0.9)))
    ),
    "average": replace(
        TOKEN, condition=ir.Apply("lt", (ir.Accumulate(ir.Average(MOVED["step", ir.Granularity.TOKEN], 4)), C(0.9)))
    ),
    "kept average": replace(
        TOKEN,
        condition=ir.Apply(
            "lt", (ir.Accumulate(ir.Kept(ir.Average(MOVED["step", ir.Granularity.TOKEN], 2), 1)), C(0.9))
        ),
    ),
    "smooth": replace(
        TOKEN,
        condition=ir.Apply("lt", (ir.Accumulate(ir.Smooth(MOVED["step", ir.Granularity.TOKEN], C(0.5))), C(0.9))),
    ),
    "pick": replace(
        TOKEN,
        condition=ir.Apply(
            "lt", (ir.Accumulate(ir.Stairs(MOVED["step", ir.Granularity.TOKEN], (0.2, 0.4), (0.1, 0.3, 0.5))), C(0.9))
        ),
    ),
    "two accounts": replace(
        TOKEN,
        condition=ir.Apply(
            "and",
            (
                ir.Apply("lt", (ir.Accumulate(MOVED["step", ir.Granularity.TOKEN]), C(0.9))),
                ir.Apply("lt", (ir.Accumulate(DRIFT, "debt"), C(0.7))),
            ),
        ),
    ),
    "accounts added": replace(
        TOKEN,
        condition=ir.Apply(
            "lt",
            (
                ir.Apply("add", (ir.Accumulate(MOTION, "debt"), ir.Accumulate(MOVED["step", ir.Granularity.TOKEN]))),
                C(1.5),
            ),
        ),
    ),
    "top of accounts": ir.Top(C(0.5), ir.Accumulate(MOVED["step", ir.Granularity.TOKEN])),
    "top, in a row": ir.Top(C(0.25), MOVED["step", ir.Granularity.TOKEN], C(2.0), C(4.0)),
    "all every": replace(TOKEN, all_at=ir.AllAt(C(3.0), ())),
    "top, all at": ir.Top(C(0.25), MOVED["step", ir.Granularity.TOKEN], all_at=ir.AllAt(None, (3, 7))),
    "late": replace(TOKEN, condition=ir.Apply("lt", (ir.Accumulate(ir.SignalRef("late")), C(0.9)))),
    "frame_diff": replace(TOKEN, condition=ir.Apply("lt", (ir.Accumulate(MOTION), C(0.9)))),
    "vote": replace(TOKEN, vote=C(0.5)),
    "hold": replace(TOKEN, hold_below=C(0.6)),
    "compute all": replace(TOKEN, all_above=C(0.5)),
    "in a row": replace(TOKEN, max_consecutive=C(1.0)),
    "in total": replace(TOKEN, max_total=C(2.0)),
    "of tokens": replace(TOKEN, max_reused=C(0.5)),
    "top": ir.Top(C(0.5), MOVED["step", ir.Granularity.TOKEN]),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("name", "lag"), [(n, lag) for n in EACH for lag in (0, 2) if (n, lag) != ("reuse step", 2)])
def test_every_rule_and_guard_is_seen_in_a_graph(name: str, lag: int, fold: bool) -> None:
    """Each word acts: it decides as the simulation, and otherwise than the plain rule does.

    A value per step is one of all chunks of a call, and the simulation knows one chunk: there both take the same steps.
    """
    cache = ir.Cache("model", "model", "model", None, None, False)

    def made(rule: ir.Rule) -> Run:
        return run_of([ir.Phase("all", ir.Rest(), rule)], cache, 9, lag, 5, 0.5)

    seen = check(made(EACH[name]), fold)
    assert seen["none"] + seen["some"] > 0
    if name in ("vote", "hold", "compute all", "in a row", "in total", "of tokens"):
        pairs = zip(decided(made(EACH[name]), fold), decided(made(TOKEN), fold), strict=True)
        assert any((a != b).any() for a, b in pairs)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("guard", [{"max_total": C(4.0)}, {"max_consecutive": C(4.0)}])
def test_reuses_that_the_plan_knew_count(guard: dict[str, ir.Expr], fold: bool) -> None:
    """`at most 4` of a later phase counts what an earlier phase reused, though no graph had to decide that."""
    open_ = replace(EACH["late"], condition=ir.Apply("lt", (ir.SignalRef("late"), C(9.0))), **guard)  # type: ignore[type-var]
    phases = [
        ir.Phase("known", ir.ForSteps(C(4.0)), ir.StepMask((True, *[False] * 9))),
        ir.Phase("open", ir.Rest(), open_),
    ]
    cache = ir.Cache("model", "model", "model", None, None, False)
    check(run_of(phases, cache, 9, 0, 5, 0.25), fold)
