"""Policies built by hand, and hypothesis strategies for the policy IR."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mccompile import ir
from mccompile.policy.phases import Grid

WAN = (-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2)
MODULATION = ir.Change("rel_l1", ir.SourceRef("modulation"), "step", ir.Granularity.CHUNK)
PROBE = ir.Change("rel_l1", ir.SourceRef("probe"), "compute", ir.Granularity.CHUNK)
MOTION = ir.Change("l1", ir.SourceRef("latent"), "step", ir.Granularity.TOKEN)
STATIC = frozenset({"modulation", "time_embedding"})
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
PLAIN_CACHE = ir.Cache("auto", "auto", "auto", None, None, False)


def grid_of(steps: int) -> Grid:
    """An even flow-matching grid."""
    return Grid(
        steps, tuple(1000.0 * (1 - i / steps) for i in range(steps)), tuple(1 - i / steps for i in range(steps))
    )


def reuse(condition: ir.Expr, granularity: ir.Granularity = ir.Granularity.CHUNK) -> ir.Reuse:
    return ir.Reuse(granularity, condition, None, None, None, None, None, None)


def below(value: ir.Expr, limit: ir.Expr) -> ir.Apply:
    return ir.Apply("lt", (value, limit))


def policy(*phases: ir.Phase, params: tuple[ir.Param, ...] = (), signals: tuple[ir.Signal, ...] = ()) -> ir.PolicyIR:
    return ir.PolicyIR(
        name="made_by_hand",
        models=(),
        params=params,
        signals=signals,
        phases=phases,
        regions=(ir.Region(ir.Blocks(0, -1), "residual"),),
        chunks=ir.Chunks(None, "skip", "keep"),
        branches=ir.Branches(None, batch=False),
        cache=PLAIN_CACHE,
    )


def rest(rule: ir.Rule) -> ir.Phase:
    return ir.Phase("all", ir.Rest(), rule)


def warmup(n: ir.Expr) -> ir.Phase:
    return ir.Phase("warmup", ir.ForSteps(n), ir.Compute())


def motioncache() -> ir.PolicyIR:
    """MotionCache on SkyReels-V2, the settings of the paper."""
    drift = ir.Signal("drift", ir.Polynomial(MODULATION, WAN), ir.Granularity.CHUNK, False)
    weight = ir.Normalise(
        "min_max", ir.FrameDiff(ir.SourceRef("block_output"), True), ir.ParamRef("floor"), ir.Const(1.0)
    )
    motion = ir.Signal("motion", weight, ir.Granularity.TOKEN, True)
    threshold = ir.ParamRef("threshold")
    weighed = ir.Apply("mul", (ir.SignalRef("drift"), ir.SignalRef("motion")))
    fine = replace(
        reuse(below(ir.Accumulate(weighed), threshold), ir.Granularity.TOKEN),
        vote=ir.Const(0.5),
        hold_below=ir.Const(0.4),
    )
    coarse = reuse(below(ir.Accumulate(ir.SignalRef("drift")), threshold))
    return policy(
        warmup(ir.ParamRef("warmup")),
        ir.Phase("coarse", ir.UntilRefreshes(ir.ParamRef("updates")), coarse),
        ir.Phase("fine", ir.Rest(), fine),
        params=(
            ir.Param("threshold", 0.10, 0.01, 0.50, False, ""),
            ir.Param("warmup", 5, 1, 50, True, "steps"),
            ir.Param("updates", 6, 0, 50, True, ""),
            ir.Param("floor", 0.6, 0, 1, False, "%"),
        ),
        signals=(drift, motion),
    )


# ---- any IR that the types allow ---------------------------------------------------------------------------
numbers = st.floats(allow_nan=False) | st.integers(-5, 5)
names = st.text(max_size=4) | st.sampled_from(
    ["drift", "a", "none", "true", "x-1", "", "two words", 'say "hi"', "é", "inf", "nan", "3"]
)
granularities = st.sampled_from(list(ir.Granularity))
sources = st.builds(ir.SourceRef, st.sampled_from(["modulation", "latent", "block_output", "probe"]))
changes = st.builds(
    ir.Change, st.sampled_from(["rel_l1", "cosine"]), sources, st.sampled_from(["step", "compute"]), granularities
)
leaves = st.one_of(
    st.builds(ir.Const, numbers),
    st.builds(ir.ParamRef, names),
    st.builds(ir.SignalRef, names),
    st.builds(ir.ClockRef, st.sampled_from(["step", "fraction", "timestep", "sigma"])),
    st.builds(ir.Table, st.lists(numbers, max_size=3).map(tuple)),
    sources,
    changes,
    st.builds(ir.FrameDiff, sources, st.booleans()),
    st.builds(ir.Similarity, sources, st.integers(1, 8)),
    st.just(ir.Area((0.25, 1.0), (0.0, 0.5))),
    st.just(ir.Depth()),
    st.builds(ir.SpectralWeight, st.integers(1, 3), st.just(4), st.just(8), st.builds(ir.Const, numbers)),
)


def _above(below_: st.SearchStrategy[ir.Expr]) -> st.SearchStrategy[ir.Expr]:
    return st.one_of(
        st.builds(ir.Normalise, st.sampled_from(["mean", "max", "min_max"]), below_, below_, below_),
        st.builds(ir.Polynomial, below_, st.lists(numbers, max_size=3).map(tuple)),
        st.builds(ir.Accumulate, below_),
        st.builds(ir.Kept, below_, st.integers(1, 8)),
        st.builds(ir.Before, below_),
        st.builds(ir.Cumulative, st.sampled_from(["sum", "product"]), below_),
        st.builds(ir.Average, below_, st.integers(2, 8)),
        st.builds(ir.Smooth, below_, below_),
        st.builds(ir.Stairs, below_, st.just((0.5,)), st.tuples(numbers, numbers)),
        st.builds(ir.Around, st.sampled_from(["max", "mean"]), below_, st.integers(1, 8)),
        st.builds(ir.Reduce, st.sampled_from(["mean", "min"]), below_, granularities),
        st.builds(lambda op, a: ir.Apply(op, (a,)), st.sampled_from(["neg", "not"]), below_),
        st.builds(lambda op, a, b: ir.Apply(op, (a, b)), st.sampled_from(["add", "lt", "and", "max"]), below_, below_),
    )


expressions = st.recursive(leaves, _above, max_leaves=4)
maybe = st.none() | expressions
all_at = st.none() | st.builds(ir.AllAt, maybe, st.lists(st.integers(0, 40), max_size=3).map(tuple))
rules = st.one_of(
    st.builds(ir.Compute),
    st.builds(ir.Reuse, granularities, expressions, maybe, maybe, maybe, maybe, maybe, maybe, all_at),
    st.builds(ir.Every, expressions),
    st.builds(ir.StepMask, st.lists(st.booleans(), max_size=4).map(tuple)),
    st.builds(ir.Top, expressions, expressions, maybe, maybe, all_at),
)
clocks = st.builds(ir.ClockRef, st.sampled_from(["step", "fraction", "timestep", "sigma"]))
spans = st.one_of(
    st.builds(ir.ForSteps, expressions),
    st.builds(ir.UntilRefreshes, expressions),
    st.builds(ir.Between, clocks, expressions, expressions),
    st.builds(ir.LastSteps, expressions),
    st.builds(ir.Rest),
)
region_rules = st.lists(st.builds(ir.RegionRule, names, rules), min_size=1, max_size=2).map(tuple)
bounds = st.integers(-9, 9) | st.sampled_from((0.25, 0.5, 1.0))
wheres = st.builds(ir.Blocks, bounds, bounds) | st.builds(ir.Integration)
keeps = st.sampled_from(["residual", "output", "increment", None])
weights = st.lists(st.lists(expressions, max_size=2).map(tuple), max_size=2).map(tuple)
forecasts = st.none() | st.builds(ir.Forecast, weights, st.none() | weights)
counts = st.none() | st.integers(0, 10**12)


def _several(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(values, max_size=2).map(tuple)


key_terms = st.builds(ir.KeyTerm, st.sampled_from(get_args(ir.KeyMeasure)), st.integers(0, 8), expressions)
policies = st.builds(
    ir.PolicyIR,
    name=names,
    models=_several(names),
    params=_several(
        st.builds(
            ir.Param, names, numbers, numbers, numbers, st.booleans(), st.sampled_from(["", "steps", "frames", "%"])
        )
    ),
    signals=_several(st.builds(ir.Signal, names, expressions, granularities, st.booleans())),
    phases=_several(st.builds(ir.Phase, names, spans, rules, st.none() | region_rules)),
    regions=_several(st.builds(ir.Region, wheres, keeps, forecasts, st.none() | names, nearest=st.none() | sources)),
    chunks=st.builds(
        ir.Chunks, counts, st.sampled_from(["skip", "compute"]), st.sampled_from(["keep", "refresh", "compute"])
    ),
    branches=st.builds(ir.Branches, st.none() | names, st.booleans()),
    cache=st.builds(
        ir.Cache,
        st.sampled_from(["auto", "model", "float32", "bfloat16", "float16", "float8"]),
        st.sampled_from(["auto", "model", "float32", "bfloat16", "float16", "float8"]),
        st.sampled_from(["auto", "model", "cpu"]),
        counts,
        counts,
        st.booleans(),
        st.none() | st.builds(ir.KeyWindow, expressions, expressions),
        st.none() | st.builds(ir.KeyChoice, expressions, st.builds(ir.KeySum, st.lists(key_terms).map(tuple))),
    ),
)
