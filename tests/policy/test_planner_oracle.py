"""The planner against a slow simulation that knows all data: whatever a plan claims, the simulation does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOKENS, Chunk
from policy_cases import MODULATION, MOTION, STATIC, UNHURRIED, below, grid_of, policy

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.policy.bind import bind
from mccompile.policy.planner import Plan, plan, read_plan, show_plan

C = ir.Const
tenths = st.integers(0, 12).map(lambda n: C(n / 10))
few = st.integers(0, 4).map(lambda n: C(float(n)))
none = st.none()


def conditions(change: st.SearchStrategy[ir.Expr]) -> st.SearchStrategy[ir.Expr]:
    added = st.one_of(change, st.builds(lambda a, b: ir.Apply("mul", (a, b)), change, tenths))
    limit = st.integers(1, 20).map(lambda n: C(n / 10))
    return st.builds(
        lambda a, on, lim: below(ir.Accumulate(a) if on else a, lim), added, st.booleans(), limit
    )


def reuses(static: bool) -> st.SearchStrategy[ir.Reuse]:
    change = st.just(MODULATION) if static else st.sampled_from([MODULATION, MOTION])
    rule = st.builds(
        ir.Reuse,
        st.just(ir.Granularity.TOKEN) if not static else st.sampled_from([ir.Granularity.CHUNK, ir.Granularity.TOKEN]),
        conditions(change),
        none | tenths,
        none | tenths,
        none | tenths,
        none | few,
        none | few,
        none if static else none | tenths,
        none | st.builds(ir.AllAt, none | st.integers(2, 4).map(lambda n: C(float(n))), st.just((5,))),
    )
    # in-range guards are the common case; without any, runs of reuses grow long
    return st.one_of(rule, rule.map(lambda r: replace(r, vote=None, hold_below=None, all_above=None, max_total=None)))


def rules(static: bool) -> st.SearchStrategy[ir.Rule]:
    always = [
        st.just(ir.Compute()),
        st.integers(1, 4).map(lambda n: ir.Every(C(float(n)))),
        st.lists(st.booleans(), min_size=16, max_size=16).map(lambda m: ir.StepMask(tuple(m))),
        reuses(static),
        reuses(static),
    ]
    return st.one_of(*always) if static else st.one_of(*always, st.builds(ir.Top, tenths, st.just(MOTION)))


spans = st.one_of(
    st.builds(ir.ForSteps, few),
    st.builds(ir.ForSteps, few),
    st.builds(ir.UntilRefreshes, few),
    st.builds(ir.UntilRefreshes, few),
    st.builds(ir.LastSteps, few),
    st.builds(
        lambda a, n: ir.Between(ir.ClockRef("step"), C(float(a)), C(float(a + n))), st.integers(0, 9), st.integers(1, 5)
    ),
)


@st.composite
def runs(draw: st.DrawFn, static: bool) -> tuple[Chunk, frozenset[str]]:
    steps = draw(st.integers(1, 16))
    drawn = draw(st.lists(st.tuples(spans, rules(static)), max_size=4))
    phases = [ir.Phase(f"p{i}", s, r) for i, (s, r) in enumerate(drawn)]
    phases.append(ir.Phase("rest", ir.Rest(), draw(rules(static))))
    cache = ir.Cache("model", "model", "model", None, draw(none | st.integers(1, 5)), draw(st.booleans()))
    made = replace(policy(*phases), cache=cache)
    seed = np.random.default_rng(draw(st.integers(0, 10**6)))
    data = {
        MODULATION: seed.random((steps, 1), np.float32) * np.float32(draw(st.sampled_from([0.1, 0.7]))),
        MOTION: seed.random((steps, TOKENS), np.float32),
    }
    return Chunk(bind(made, {}), grid_of(steps), data), STATIC


def planned(chunk: Chunk, fold: bool = True) -> Plan | None:
    """The plan, or None where the grid is too short for a range."""
    table = tuple(float(v) for v in chunk.data[MODULATION][:, 0])
    try:
        return plan(chunk.bound, chunk.grid, {MODULATION: table}, STATIC, fold=fold)
    except PolicyError as error:
        if {d.code for d in error.diagnostics} != {"MC0307"}:
            raise
        return None


def check_claims(made: Plan, chunk: Chunk) -> None:
    for cell, done in zip(made.cells, chunk.run(), strict=True):
        if cell.phase is not None:
            assert made.phases[cell.phase] == done.phase, cell
        if cell.action != "dynamic":
            assert (done.computed == (cell.action == "compute")).all(), cell
        if cell.account is not None:
            assert (done.account == np.float32(cell.account)).all(), cell


@settings(UNHURRIED, max_examples=150)
@given(runs(static=True))
def test_a_static_policy_folds_wholly_and_rightly(run: tuple[Chunk, frozenset[str]]) -> None:
    made = planned(run[0])
    if made is not None:
        assert all(c.action != "dynamic" and c.phase is not None and c.account is not None for c in made.cells)
        assert all(c.way == 0 for c in made.cells)  # no rule here has alternatives
        check_claims(made, run[0])


@settings(UNHURRIED, max_examples=150)
@given(runs(static=False), st.booleans())
def test_no_data_contradicts_a_plan(run: tuple[Chunk, frozenset[str]], fold: bool) -> None:
    made = planned(run[0], fold)
    if made is not None:
        check_claims(made, run[0])


@settings(UNHURRIED, max_examples=80)
@given(runs(static=False))
def test_folding_only_adds_to_what_is_known(run: tuple[Chunk, frozenset[str]]) -> None:
    folded, plain = planned(run[0]), planned(run[0], fold=False)
    if folded is not None and plain is not None:
        for more, less in zip(folded.cells, plain.cells, strict=True):
            assert less.action in ("dynamic", more.action)
            assert less.phase in (None, more.phase)
            assert less.account in (None, more.account)
            assert less.values == more.values


@settings(UNHURRIED, max_examples=40)
@given(runs(static=False), st.booleans())
def test_what_is_shown_reads_back(run: tuple[Chunk, frozenset[str]], fold: bool) -> None:
    made = planned(run[0], fold)
    if made is not None:
        assert read_plan(show_plan(made)) == made
