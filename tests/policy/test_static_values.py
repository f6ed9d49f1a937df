"""Static values: the same float32 numbers as the lowered graph, and what counts as static."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy_cases import (
    MODULATION,
    MOTION,
    PROBE,
    STATIC,
    UNHURRIED,
    WAN,
    below,
    grid_of,
    motioncache,
    policy,
    rest,
    reuse,
)

from mccompile import ir
from mccompile.arithmetic.operations import OPERATIONS
from mccompile.lowering.expressions import Leaves
from mccompile.lowering.expressions import evaluate as evaluate_tensor
from mccompile.lowering.running import ChunkStep, RunningMeans
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import (
    TIMESTEP_SOURCES,
    Grid,
    StaticMoment,
    clock_row,
    clock_value,
    evaluate,
    is_static,
    static_changes,
    table_value,
)
from mccompile.policy.groups import bounds_of

C = ir.Const
GRID = grid_of(12)
MOTION_ONLY = (ir.SourceRef("latent"), ir.FrameDiff(ir.SourceRef("latent"), True))
TABLE = ir.Table((0.3, 1.7, -0.25))
TOTAL = ir.Cumulative("product", ir.Apply("add", (TABLE, ir.ClockRef("sigma"))))
PASTS: dict[ir.Kept | ir.Before, float] = {  # of a cell that steps 3 and 1 computed last
    ir.Kept(ir.ClockRef("sigma"), 1): GRID.sigmas[3],
    ir.Kept(ir.ClockRef("sigma"), 2): GRID.sigmas[1],
}
MEANS = (ir.Average(ir.ClockRef("sigma"), 4), ir.Smooth(ir.ClockRef("timestep"), ir.ParamRef("share")))
singles = st.floats(-4, 4, width=32)
clocks = [ir.ClockRef("step"), ir.ClockRef("fraction"), ir.ClockRef("timestep"), ir.ClockRef("sigma")]
leaves = st.sampled_from([ir.ParamRef("a"), ir.ParamRef("b"), MODULATION, TABLE, *clocks])
constants = st.floats(-3, 3).map(C)
rows = {n: r for n, r in OPERATIONS.items() if n != "pow"}  # its exponents are few: see `_numeric`
NUMERIC, TRUTHS = ([n for n, r in rows.items() if r.truth is truth] for truth in (False, True))


def _applied(names: Iterable[str], inner: st.SearchStrategy[ir.Expr]) -> st.SearchStrategy[ir.Expr]:
    """Each operation of the table on as many operands as it has."""
    each = (st.tuples(st.just(name), st.tuples(*[inner] * len(rows[name].operands))) for name in names)
    return st.one_of(*each).map(lambda drawn: ir.Apply(*drawn))  # type: ignore[arg-type]


literals = st.recursive(st.one_of(constants, st.sampled_from([0.1, 0.2, 0.3]).map(C)), lambda c: _applied(NUMERIC, c))


def _numeric(inner: st.SearchStrategy[ir.Expr]) -> st.SearchStrategy[ir.Expr]:
    return st.one_of(
        _applied(NUMERIC, inner),
        st.builds(lambda op, a, c: ir.Apply(op, (a, c)), st.sampled_from(["add", "mul", "div"]), inner, literals),
        st.builds(ir.Polynomial, literals, st.just(WAN)),
        st.builds(lambda a, n: ir.Apply("pow", (a, C(n))), inner, st.sampled_from([0.5, 1.7, 2.0, 3.0])),
        st.builds(ir.Polynomial, inner, st.just(WAN)),
        st.builds(ir.Accumulate, inner),
        st.builds(ir.SignalRef, st.just("drift")),
        st.builds(ir.Kept, st.just(ir.ClockRef("sigma")), st.integers(1, 2)),
        st.just(ir.Before(ir.ClockRef("timestep"))),
        st.just(TOTAL),
        st.builds(lambda x: ir.Stairs(x, (-0.5, 0.1, 2.0), (3.0, 0.7, -1.0, 0.1)), inner | literals),
        st.sampled_from(MEANS),
    )


numbers = st.recursive(leaves, _numeric, max_leaves=6)
LOGIC = ["and", "or", "not"]
compared = sorted(set(TRUTHS) - set(LOGIC))
comparisons = _applied(compared, numbers) | st.builds(
    lambda op, a, b: ir.Apply(op, (a, b)), st.sampled_from(compared), numbers, literals
)
truths = st.one_of(comparisons, _applied(LOGIC, comparisons), _applied(LOGIC, _applied(compared, literals)))


def _walked(mean: ir.Average | ir.Smooth, step: int) -> torch.Tensor:
    """What the graph makes of a mean, step after step."""
    running = RunningMeans.of([mean])
    kept = {slot: torch.zeros(1, 1, 1, 1) for slot in running.slots}
    found = torch.zeros(())
    for at in range(step + 1):
        clock = {"sigma": torch.tensor(GRID.sigmas[at]), "timestep": torch.tensor(GRID.timesteps[at])}
        leaves_ = Leaves({"share": torch.tensor(0.7)}, clock, {}, {}, {}, {}, {}, {})
        now = ChunkStep(torch.tensor(float(at)), torch.tensor(True), torch.tensor(at == 0))
        means, kept = running.run(leaves_, kept.__getitem__, now, torch.zeros(1, 1, 1, 1))  # type: ignore[assignment]
        found = means[mean]
    return found.reshape(())


NOTHING_LEFT = ir.Apply("remainder", (ir.ParamRef("b"), ir.ParamRef("a")))


@example(ir.Apply("div", (ir.ParamRef("a"), NOTHING_LEFT)), -1.0, 0.0, 0.0, 0.0, 0)  # 0 has no sign
@example(ir.Apply("sqrt", (ir.SignalRef("drift"),)), 0.0, 0.0, 0.0546875, 0.0, 0)  # torch.sqrt is one bit off on AVX2
@settings(UNHURRIED, max_examples=300)
@given(numbers | truths, singles, singles, singles, singles, st.integers(0, 11))
def test_the_planner_computes_what_the_graph_computes(
    expr: ir.Expr, a: float, b: float, change: float, account: float, step: int
) -> None:
    signals = {"drift": ir.Signal("drift", ir.Polynomial(MODULATION, WAN), ir.Granularity.CHUNK, False)}
    params = {"a": np.float32(a), "b": np.float32(b), "share": np.float32(0.7)}
    changes = {MODULATION: np.float32(change)}
    accounts = {"account": np.float32(account)}
    ours = evaluate(expr, StaticMoment(params, signals, GRID, step, changes, accounts, {}, (3, 1)))
    clock = {"step": step, "fraction": step / 12, "timestep": GRID.timesteps[step], "sigma": GRID.sigmas[step]}
    given_ = Leaves(
        params={n: torch.tensor(v.item()) for n, v in params.items()},
        clock={n: torch.tensor(float(v)) for n, v in clock.items()},
        tables={t: torch.tensor(clock_row(t, step, GRID).item()) for t in (TABLE, TOTAL)},
        changes={MODULATION: torch.tensor(change)},
        motions={},
        late={},
        signals=signals,
        accounts={"account": torch.tensor(account)},
        pasts={p: torch.tensor(v) for p, v in PASTS.items()}
        | {ir.Before(ir.ClockRef("timestep")): torch.tensor(GRID.timesteps[max(step - 1, 0)])}
        | {mean: _walked(mean, step) for mean in MEANS},
    )
    theirs = torch.as_tensor(evaluate_tensor(expr, given_))
    assert theirs.dtype in (torch.float32, torch.bool)
    assert np.array_equal(np.asarray(ours), theirs.numpy(), equal_nan=True)


@pytest.mark.parametrize("picked", [[4], [0, 2, 4], [0, 1, 2, 3, 4], [0, 1, 1, 2, 2, 3, 3, 4]])
def test_a_table_is_resampled_to_the_nearest(picked: list[int]) -> None:
    table = ir.Table((0.0, 1.0, 2.0, 3.0, 4.0))
    assert [table_value(table, step, len(picked)) for step in range(len(picked))] == picked


@pytest.mark.parametrize("norm", ["mean", "max"])
def test_a_motion_so_small_that_its_guard_decides(norm: ir.Norm) -> None:
    """m / (m + 1e-8), as in the graph."""
    frame = ir.Normalise(norm, MODULATION, C(0.0), C(1.0))
    tiny = np.float32(1e-8)
    found = evaluate(frame, StaticMoment({}, {}, GRID, 1, {MODULATION: tiny}, None))
    assert found == np.float32(tiny / np.float32(tiny + np.float32(1e-8))) == np.float32(0.5)


@pytest.mark.parametrize(("power", "weight"), [(1.0, 0.25), (0.0, 1.0)])
def test_of_a_frame_whose_tokens_are_alike_none_moves_most(power: float, weight: float) -> None:
    """Between the least and the most there is nothing, so the weight is the floor; nothing to the power of 0 is 1."""
    for value, wanted in ((0.5, weight), (0.0, weight), (np.nan, 1.0)):
        frame = ir.Normalise("min_max", MODULATION, C(0.25), C(power))
        assert evaluate(frame, StaticMoment({}, {}, GRID, 1, {MODULATION: np.float32(value)}, None)) == wanted


def test_the_depth_of_a_block_is_static_where_the_block_is_known() -> None:
    made = motioncache()
    each = replace(made, regions=(replace(made.regions[0], each=True),))
    assert is_static(ir.Apply("add", (ir.Depth(), C(1.0))), made, frozenset())
    assert not is_static(ir.Depth(), each, STATIC)


@pytest.mark.parametrize(
    ("depths", "depth"), [((0.25, 0.25, 0.75), 0.25), ((0.25, 0.5, 0.75), None), ((None, None, 0.75), None)]
)
def test_a_group_stands_where_all_of_its_blocks_stand(depths: tuple[float | None, ...], depth: float | None) -> None:
    made = motioncache()
    names = ("front", "front", "rear")
    regions = tuple(replace(made.regions[0], name=n, depth=at) for n, at in zip(names, depths, strict=True))
    bounds = bounds_of(bind(replace(made, regions=regions), {}))
    assert {name: bound.depth for name, bound in bounds.items()} == {"front": depth, "rear": depths[-1]}


def test_what_is_static() -> None:
    made = motioncache()
    drift = ir.SignalRef("drift")
    assert is_static(ir.Accumulate(drift), made, STATIC)
    assert not is_static(drift, made, frozenset())
    assert not is_static(ir.Apply("mul", (drift, ir.SignalRef("motion"))), made, STATIC)
    everything = frozenset({"modulation", "block_output", "probe", "latent"})
    assert is_static(MOTION, made, everything)
    assert not is_static(PROBE, made, everything)
    for late in ("block_output", "probe", "probe_output"):
        assert not is_static(replace(MOTION, of=ir.SourceRef(late)), made, everything | {late})
    embedding = replace(MODULATION, of=ir.SourceRef("time_embedding"))
    assert static_changes(policy(rest(reuse(below(embedding, C(0.1))))), TIMESTEP_SOURCES) == (embedding,)
    assert not is_static(replace(PROBE, since="step"), made, everything)
    assert not is_static(replace(MODULATION, since="compute"), made, everything)
    assert not is_static(ir.Similarity(ir.SourceRef("latent"), 2), made, everything)
    assert not is_static(ir.FrameDiff(ir.SourceRef("latent"), True), made, everything)


def test_the_changes_a_plan_needs() -> None:
    made = motioncache()
    assert static_changes(made) == (MODULATION,)
    assert static_changes(made, frozenset()) == ()
    sums = ir.Apply("add", (MOTION, ir.Apply("add", (MODULATION, MOTION))))
    both = policy(rest(reuse(below(sums, C(1.0)))))
    assert static_changes(both) == (MODULATION,)
    assert static_changes(both, frozenset({"latent", "modulation"})) == (MOTION, MODULATION)


def test_earlier_values() -> None:
    """At step 6 of a cell that steps 4, 3 and 1 computed: of a change, of the clock, and running totals."""
    table = tuple(float(s) for s in range(12))
    at = StaticMoment({}, {}, GRID, 6, {MODULATION: np.float32(6)}, None, {MODULATION: table}, (4, 3, 1))
    pasts = [ir.Kept(MODULATION, 1), ir.Kept(MODULATION, 3), ir.Kept(MODULATION, 8), ir.Before(MODULATION)]
    assert [evaluate(p, at) for p in pasts] == [4, 1, 1, 5]
    assert evaluate(ir.Cumulative("sum", ir.ClockRef("step")), at) == 21
    assert evaluate(ir.Before(ir.ClockRef("step")), StaticMoment({}, {}, GRID, 0, {}, None)) == 0
    first = StaticMoment({}, {}, GRID, 1, {MODULATION: np.float32(1)}, None, {MODULATION: (7.0, *table[1:])}, (0,))
    assert evaluate(ir.Before(MODULATION), first) == 0  # no change has been measured at the first step


@pytest.mark.parametrize(("x", "value"), [(-1.0, 7.0), (0.0, 8.0), (0.5, 8.0), (1.0, 9.0), (5.0, 9.0)])
def test_a_step_function(x: float, value: float) -> None:
    """From a limit on, the next value holds; of what is no finite number there is none."""
    stairs = ir.Stairs(C(x), (0.0, 1.0), (7.0, 8.0, 9.0))
    assert evaluate(stairs, StaticMoment({}, {}, None, 0, {}, None)) == value
    undefined = evaluate(replace(stairs, of=C(float("inf"))), StaticMoment({}, {}, None, 0, {}, None))
    assert np.isnan(undefined)


def test_means_over_steps() -> None:
    """What was no finite number at an earlier step is left out."""
    table = (9.0, 2.0, float("nan"), 4.0, 8.0)
    at = StaticMoment({}, {}, GRID, 4, {MODULATION: np.float32(8)}, None, {MODULATION: table})
    assert evaluate(ir.Average(MODULATION, 2), at) == 6
    assert evaluate(ir.Average(MODULATION, 4), at) == np.float32((8 + 4 + 2) / np.float32(3))
    assert evaluate(ir.Average(MODULATION, 8), at) == (8 + 4 + 2 + 0) / 4  # no change is measured at the first step
    assert evaluate(ir.Smooth(MODULATION, C(0.5)), at) == 6  # 0, 1, undefined, 4, 6
    assert evaluate(ir.Smooth(MODULATION, C(0.0)), at) == 8
    second = StaticMoment({}, {}, GRID, 1, {MODULATION: np.float32(2)}, None, {MODULATION: table})
    assert evaluate(ir.Smooth(MODULATION, C(0.5)), second) == 1


@pytest.mark.parametrize(
    "expr", [MODULATION, *MOTION_ONLY, ir.Accumulate(C(1.0)), ir.Kept(ir.ClockRef("step"), 1), ir.Kept(MODULATION, 1)]
)
def test_what_is_not_known_has_no_value(expr: ir.Expr) -> None:
    with pytest.raises(ValueError, match=r"known|depends on data"):
        evaluate(expr, StaticMoment({}, {}, GRID, 1, {}, None))


def test_a_grid_has_a_timestep_and_a_sigma_for_each_step() -> None:
    with pytest.raises(ValueError, match="3 steps"):
        Grid(3, (1.0, 2.0), (1.0, 0.5, 0.2))
    with pytest.raises(ValueError, match="0 steps"):
        Grid(0, (), ())
    assert Grid(1, (1.0,), (1.0,)).steps == 1


def test_the_clock() -> None:
    found = {what: float(clock_value(what, 3, GRID)) for what in ("step", "fraction", "timestep", "sigma")}
    assert found == {"step": 3.0, "fraction": 0.25, "timestep": 750.0, "sigma": 0.75}
    with pytest.raises(ValueError, match="unknown clock moon"):
        clock_value("moon", 3, GRID)  # type: ignore[arg-type]
