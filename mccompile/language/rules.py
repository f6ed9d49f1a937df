"""Turns phases into IR: when they hold, and what their rule does. It checks that every step of a run has a phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from mccompile import ir
from mccompile.ir import Granularity
from mccompile.language import ast
from mccompile.language.builtins import CLOCKS
from mccompile.language.errors import phases, values
from mccompile.language.expressions import Elaborator
from mccompile.language.guards import elaborate_guards
from mccompile.language.in_phases import decided_in_phases
from mccompile.language.intervals import reach
from mccompile.language.libraries import is_library
from mccompile.language.masks import check_mask, mask_steps
from mccompile.language.reuse import check_accounts, elaborate_reuse, refuse_late
from mccompile.language.shadows import shadows
from mccompile.language.tensors import WITH_TOKENS
from mccompile.language.types import (
    Poison,
    TypedNumber,
    in_unit,
    place,
    word,
)

UNREACHED = 1e6
"""The upper bound of a phase with an open end: no step, timestep or sigma is as large."""

_CLOCK_BOUNDS = {"fraction": (0.0, 1.0), "timestep": (0.0, 1000.0), "sigma": (0.0, 1.0), "step": (0.0, 1e6)}


def elaborate_phases(
    declared: list[ast.PhaseDecl], layers: Sequence[ast.LayersDecl], policy: ast.PolicyAst, within: Elaborator
) -> tuple[ir.Phase | None, ...]:
    """All phases and their order, None for one with an error.

    Those with `while` and `last` interrupt the others wherever they stand.
    """
    if not declared:
        within.report(phases.NoPhases(policy.name.span, policy.name.text, is_library(policy)))
        return ()
    found = tuple(_phase(phase, layers, within) for phase in declared)
    _check_order(declared, within)
    if all(phase is not None for phase in found):
        for shadow in shadows(tuple(phase for phase in found if phase is not None), within.ranges):
            name, by = shadow.phase.name, shadow.by
            within.report(phases.UnreachablePhase(shadow.phase.at, name, by.name, place(by), shadow.how))
        for one in decided_in_phases(tuple(phase for phase in found if phase is not None), within.ranges):
            which = f"holds at {'every' if one.part.always else 'no'} step of the phase `{one.phase.name}`"
            then = f"{one.why}, so this part of the condition decides nothing"
            if one.whole:
                then = f"{one.why}, so the rule would {'always' if one.part.always else 'never'} reuse"
            within.report(phases.ConstantCondition(one.part.expr.at, which, then))
    return found


def _of(region: ast.Name, kept: Sequence[ast.LayersDecl]) -> list[ast.LayersDecl]:
    return [item for item in kept if item.name is not None and item.name.text == region.text]


def _phase(phase: ast.PhaseDecl, layers: Sequence[ast.LayersDecl], within: Elaborator) -> ir.Phase | None:
    name = phase.name
    span = ir.Rest(at=name.span) if phase.when is None else _when(phase, phase.when, within)
    kept = [item for item in layers if item.keep is not None]
    rule = _rule(phase.rule, kept, within)
    apart = [(one, _rule(one.rule, kept if one.region is None else _of(one.region, kept), within))
             for one in phase.regions]
    made = [(one, own) for one, own in apart if own is not None]
    if span is None or rule is None or len(made) < len(apart):
        return None
    branches = dict.fromkeys(one.branch.text for one, _ in made if one.branch is not None)
    of = tuple(_of_branch(branch, [(one, own) for one, own in made if one.branch and one.branch.text == branch])
               for branch in branches)
    named = _of_regions([(one, own) for one, own in made if one.branch is None])
    return ir.Phase(name.text, span, rule, named, of or None, at=name.span)


def _of_branch(branch: str, rules: Sequence[tuple[ast.NamedRule, ir.Rule]]) -> ir.BranchRule:
    """What a phase says for one branch; regions that it does not name are computed."""
    first = rules[0][0]
    whole = next((own for one, own in rules if one.region is None), ir.Compute(at=first.span))
    return ir.BranchRule(branch, whole, _of_regions(rules), at=first.span)


def _of_regions(rules: Sequence[tuple[ast.NamedRule, ir.Rule]]) -> tuple[ir.RegionRule, ...] | None:
    named = ((one.region, own, one.span) for one, own in rules)
    return tuple(ir.RegionRule(name.text, own, at=at) for name, own, at in named if name is not None) or None


def written_rules(phase: ast.PhaseDecl) -> tuple[ast.WrittenRule, ...]:
    """The rules that a phase is written with."""
    return tuple(one.rule for one in phase.regions) or (phase.rule,)


def _check_order(declared: list[ast.PhaseDecl], within: Elaborator) -> None:
    in_turn = [phase for phase in declared if not isinstance(phase.when, ast.WhenLastSteps | ast.While)]
    for rule in written_rules(in_turn[0]) if in_turn else ():
        if isinstance(rule, ast.ComputeSteps | ast.ComputeBins):
            check_mask(rule, within.errors, begins_run=True)
    endless = next((phase for phase in in_turn if phase.when is None), None)
    if endless is None:
        last = declared[-1].name
        within.report(phases.UncoveredRun(last.span, last.text))
        return
    for phase in in_turn[in_turn.index(endless) + 1 :]:
        name = phase.name
        within.report(phases.UnreachablePhase(name.span, name.text, endless.name.text, endless.name.span))


# ---- when --------------------------------------------------------------------------------------------------
def _when(phase: ast.PhaseDecl, when: ast.When, within: Elaborator) -> ir.PhaseSpan | None:
    match when:
        case ast.While():
            return _clock_range(phase, when, within)
        case ast.WhenForSteps(n=n) | ast.WhenLastSteps(n=n) | ast.WhenUntilRefreshes(n=n):
            what = "the number of refreshes" if isinstance(when, ast.WhenUntilRefreshes) else "the number of steps"
            count = within.demands.whole(within.number(n), what, 0)
            if isinstance(count, Poison):
                return None
            if reach(count.expr, within.ranges).high == 0:
                within.report(phases.EmptyPhase(n.span, phase.name.text, "no step at all"))
            if isinstance(when, ast.WhenUntilRefreshes):
                return ir.UntilRefreshes(count.expr, at=when.span)
            kind = ir.ForSteps if isinstance(when, ast.WhenForSteps) else ir.LastSteps
            return kind(count.expr, at=when.span)
        case _:
            assert_never(when)


def _clock_range(phase: ast.PhaseDecl, when: ast.While, within: Elaborator) -> ir.Between | None:
    parts = _range_parts(when)
    if parts is None:
        why = "two-sided ranges are written `low <= clock < high`" if len(when.ops) > 1 else "no such range"
        within.report(phases.NotAClockRange(when.span, why, tuple(CLOCKS)))
        for operand in when.operands:
            within.mention(operand)
        return None
    clock, low, high = parts
    name = CLOCKS[clock.name]
    ends = [None if end is None else _clock_bound(clock, end, within) for end in (low, high)]
    if any(isinstance(end, Poison) for end in ends):
        return None
    lower, upper = (end.expr if isinstance(end, TypedNumber) else None for end in ends)
    lowest, highest = lower or ir.Const(0.0), upper or ir.Const(UNREACHED)
    if reach(lowest, within.ranges).low >= reach(highest, within.ranges).high:
        within.report(phases.EmptyPhase(when.span, phase.name.text, f"no `{name}` lies in this range"))
    return ir.Between(ir.ClockRef(name, at=clock.span), lowest, highest, at=when.span)


def _clock_bound(clock: ast.Ref, end: ast.WrittenExpr, within: Elaborator) -> TypedNumber | Poison:
    what = f"a bound of `{clock.name}`"
    found = within.demands.constant(within.number(end), what)
    if isinstance(found, Poison):
        return found
    share = clock.name in ("fraction", "sigma")
    steps = found.unit == "steps" and clock.name != "step"
    if found.unit == "frames" or steps or (found.unit == "%" and not share):
        named = f"`{clock.name}`"
        return within.report(values.UnitMismatch(end.span, named, in_unit(found.unit), clock.span))
    low, high = _CLOCK_BOUNDS[clock.name]
    return within.demands.bounded(found, what, low, high, (f"{low:g}", f"{high:g}"))


def _range_parts(when: ast.While) -> tuple[ast.Ref, ast.WrittenExpr | None, ast.WrittenExpr | None] | None:
    """Clock, low and high of a `while`, None for an open end; None if it is no such range."""
    match when.operands, when.ops:
        case (low, ast.Ref() as clock, high), ("<=", "<") if clock.name in CLOCKS:
            return clock, low, high
        case (ast.Ref() as clock, high), ("<",) if clock.name in CLOCKS:
            return clock, None, high
        case (ast.Ref() as clock, low), (">=",) if clock.name in CLOCKS:
            return clock, low, None
        case _:
            return None


# ---- rules -------------------------------------------------------------------------------------------------
def _rule(rule: ast.WrittenRule, kept: Sequence[ast.LayersDecl], within: Elaborator) -> ir.Rule | None:
    """kept: the layers whose results the rule reuses."""
    match rule:
        case ast.ComputeRule():
            return ir.Compute(at=rule.span)
        case ast.ComputeEvery(n=n):
            count = within.demands.whole(within.number(n), "the number of steps", 1)
            return None if isinstance(count, Poison) else ir.Every(count.expr, at=rule.span)
        case ast.ComputeSteps() | ast.ComputeBins():
            before = len(within.errors)
            check_mask(rule, within.errors, begins_run=False)
            return None if len(within.errors) > before else ir.StepMask(mask_steps(rule), at=rule.span)
        case ast.ComputeTop():
            return _top(rule, within)
        case ast.ReuseRule() | ast.ReuseInOrder():
            return elaborate_reuse(rule, kept, within)
        case _:
            assert_never(rule)


def _top(rule: ast.ComputeTop, within: Elaborator) -> ir.Top | None:
    share = within.demands.share_by_the_clock(within.number(rule.share), "the share of `top`", rule.share.span)
    by = within.number(rule.by)
    refuse_late(by, within)
    if isinstance(by, TypedNumber) and by.granularity is not Granularity.TOKEN:
        what = f"one value per {word(by.granularity)}"
        by = within.report(values.NotPerToken(rule.by.span, "`compute top`", what, WITH_TOKENS))
    guards = elaborate_guards(rule, Granularity.TOKEN, by, within)
    if isinstance(share, Poison) or isinstance(by, Poison):
        return None
    if reach(share.expr, within.ranges).high <= 0:
        within.report(phases.NoEffect(rule.span, "compute top", "no token is computed"))
    check_accounts(by.expr, within)
    limits = guards.number("max_consecutive"), guards.number("max_total")
    return ir.Top(share.expr, by.expr, *limits, guards.all_at, at=rule.span)
