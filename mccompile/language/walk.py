"""Walks through the expressions of the IR."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import assert_never

from mccompile import ir


def children(expr: ir.Expr) -> Iterator[ir.Expr]:
    """The expressions right below `expr`; signals are not entered."""
    for f in fields(expr):
        value: object = getattr(expr, f.name)
        for child in value if isinstance(value, tuple) else (value,):
            if isinstance(child, ir.Expr):
                yield child


def walk(expr: ir.Expr, signals: Mapping[str, ir.Signal], late: bool = True) -> Iterator[ir.Expr]:
    """`expr` and all below it; the signals of `signals` are entered.

    late=False: the late ones are leaves, because a step reads what the one before left of them.
    """
    yield expr
    if isinstance(expr, ir.SignalRef):
        signal = signals.get(expr.name)
        below = iter(()) if signal is None or (signal.late and not late) else iter((signal.expr,))
    else:
        below = children(expr)
    for child in below:
        yield from walk(child, signals, late)


_CLOCKED = (
    ir.Const, ir.ParamRef, ir.ClockRef, ir.Depth, ir.Table, ir.Polynomial, ir.Kept, ir.Before, ir.Cumulative,
    ir.Apply, ir.Stairs, ir.SpectralWeight, ir.SignalRef,
)  # fmt: skip


def is_clocked(number: ir.Expr, signals: Mapping[str, ir.Signal]) -> bool:
    """Whether the clock, the parameters and the steps that were computed settle a number."""
    return all(isinstance(e, _CLOCKED) for e in walk(number, signals))


def measured_leaves(number: ir.Expr, signals: Mapping[str, ir.Signal]) -> Iterator[ir.Expr]:
    """The signals in a number that the clock does not settle, and whatever else in it is measured."""
    if is_clocked(number, signals):
        return
    below = tuple(children(number))
    if isinstance(number, ir.Apply | ir.Polynomial) and below:
        for child in below:
            yield from measured_leaves(child, signals)
    else:
        yield number


def own_stand_ins(rule: ir.Rule) -> tuple[ir.Forecast, ...]:
    """What a rule itself says that stands in for kept results."""
    stand_ins = rule.stand_ins if isinstance(rule, ir.Reuse) else None
    return tuple(one for one in stand_ins or () if one is not None)


def cell_of(rule: ir.Rule) -> ir.Granularity:
    """What the rule decides about at once: all chunks of a step, a chunk, a frame, a token."""
    match rule:
        case ir.Reuse(granularity=granularity):
            return granularity
        case ir.Top():
            return ir.Granularity.TOKEN
        case _:
            return ir.Granularity.STEP


def whole_region(regions: Iterable[ir.Region]) -> ir.Region | None:
    """The region that keeps the output of the whole model; None where there is none."""
    return next((r for r in regions if isinstance(r.where, ir.WholeModel) and r.keep is not None), None)


def merges(regions: Iterable[ir.Region]) -> bool:
    """Whether tokens that are not computed take from those that are, in all of the kept regions among these."""
    kept = [region for region in regions if region.keep is not None]
    return bool(kept) and all(region.nearest is not None for region in kept)


def rule_in(phase: ir.Phase, branch: str | None, region: str | None) -> ir.Rule:
    """What regions of a name do in a phase, in the calls of a branch. None: those without rules of their own."""
    of: ir.Phase | ir.BranchRule = next((one for one in phase.branches or () if one.branch == branch), phase)
    return next((one.rule for one in of.regions or () if one.region == region), of.rule)


def of_bands(bands: ir.Bands) -> tuple[ir.Forecast, ir.Forecast]:
    """The weight of the low frequencies of a kept result, and that of the high ones, each as a sum of its own."""
    low, high = (ir.Forecast(((weight,),), at=bands.at) for weight in (bands.low, bands.high))
    return low, high


def forecasts_of(policy: ir.PolicyIR) -> tuple[ir.Forecast, ...]:
    """All that stands in for kept results under a policy: what layers say, then what rules say."""
    said = (one for rule in all_rules(policy) for one in own_stand_ins(rule))
    return tuple(dict.fromkeys((*said_by_layers(policy.regions), *said)))


def said_by_layers(regions: Iterable[ir.Region]) -> tuple[ir.Forecast, ...]:
    """What layers say that stands in for kept results: the weights of whole results, then those of frequencies."""
    every = tuple(regions)
    said = (region.forecast for region in every if region.forecast is not None)
    return (*said, *(one for region in every if region.bands is not None for one in of_bands(region.bands)))


def weights_in(forecast: ir.Forecast) -> Iterator[ir.Expr]:
    """All weights of what stands in for a kept result."""
    return (weight for row in (*forecast.weights, *(forecast.passed or ())) for weight in row)


def weights_after(rows: tuple[tuple[ir.Expr, ...], ...], computed: int) -> tuple[ir.Expr, ...]:
    """Those that hold after so many computations, at least one. rows: by how many results are kept (ir.Forecast)."""
    return rows[min(computed, len(rows)) - 1]


def weighing_signals(policy: ir.PolicyIR) -> tuple[ir.SignalRef, ...]:
    """The measured signals by which stand-ins of kept results are weighed, in order of first use."""
    signals = {s.name: s for s in policy.signals}
    numbers = (weight for forecast in forecasts_of(policy) for weight in weights_in(forecast))
    found = (leaf for number in numbers for leaf in measured_leaves(number, signals))
    return tuple(dict.fromkeys(leaf for leaf in found if isinstance(leaf, ir.SignalRef)))


def block_read(policy: ir.PolicyIR) -> ir.BlockRef | None:
    """The block whose results rules look at: one at most."""
    signals = {s.name: s for s in policy.signals}
    found = (e.block for rule in all_rules(policy) for e in walk_rule(rule, signals) if isinstance(e, ir.SourceRef))
    weighed = (e.block for top in weighing_signals(policy) for e in walk(top, signals) if isinstance(e, ir.SourceRef))
    return next((block for block in (*found, *weighed) if block is not None), None)


def deciding(condition: ir.Expr, signals: Mapping[str, ir.Signal]) -> Iterator[ir.Expr]:
    """What a condition rests on: changes of sources, and both sides of every comparison."""
    for e in walk(condition, signals, late=False):
        if isinstance(e, ir.Change):
            yield e
        elif isinstance(e, ir.Apply) and e.op in ("lt", "le", "gt", "ge"):
            yield from e.args


def rule_expressions(rule: ir.Rule) -> tuple[ir.Expr, ...]:
    """The expressions that a rule evaluates, its condition first."""
    match rule:
        case ir.Compute() | ir.StepMask():
            return ()
        case ir.Reuse():
            guards = (rule.vote, rule.hold_below, rule.all_above, rule.max_consecutive, rule.max_total)
            return (rule.condition, *_given(*guards, rule.max_reused, _every(rule.all_at)))
        case ir.Every(n):
            return (n,)
        case ir.Top(share, by):
            return (share, by, *_given(rule.max_consecutive, rule.max_total, _every(rule.all_at)))
        case _:
            assert_never(rule)


def walk_rule(rule: ir.Rule, signals: Mapping[str, ir.Signal], late: bool = True) -> Iterator[ir.Expr]:
    """Every expression that a rule evaluates, with those inside of it; see `walk`."""
    return (e for read in rule_expressions(rule) for e in walk(read, signals, late))


def rules_of(phase: ir.Phase) -> tuple[ir.Rule, ...]:
    """The rules of a phase: that of the regions without a rule of their own, those of named regions and of branches."""
    branches = (rule for of in phase.branches or () for rule in (of.rule, *(one.rule for one in of.regions or ())))
    return (phase.rule, *(one.rule for one in phase.regions or ()), *branches)


def all_rules(policy: ir.PolicyIR) -> tuple[ir.Rule, ...]:
    """The rules of all phases, in order."""
    return tuple(rule for phase in policy.phases for rule in rules_of(phase))


def _every(all_at: ir.AllAt | None) -> ir.Expr | None:
    return None if all_at is None else all_at.every


def _given(*expressions: ir.Expr | None) -> tuple[ir.Expr, ...]:
    return tuple(e for e in expressions if e is not None)
