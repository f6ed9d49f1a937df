"""Checks of phases: when they hold, what their rule does, and whether every step of a run has one."""

from __future__ import annotations

from typing import assert_never

from mccompile.language import ast
from mccompile.language.builtins import CLOCKS
from mccompile.language.demands import constant, interval, reach_words, share, whole
from mccompile.language.errors import names, phases, values
from mccompile.language.expressions import Typing
from mccompile.language.masks import check_mask
from mccompile.language.types import (
    GRANULARITIES,
    ConditionType,
    Granularity,
    NumberType,
    Poison,
)

_CLOCK_BOUNDS = {"fraction": (0.0, 1.0), "timestep": (0.0, 1000.0), "sigma": (0.0, 1.0), "step": (0.0, 1e6)}
_TOKEN_SOURCES = ("latent", "embedded", "modulated_input", "block_output", "probe")


def check_phases(declared: list[ast.PhaseDecl], policy: ast.PolicyAst, typing: Typing) -> None:
    """All phases and their order; those with `while` and `last` interrupt the others wherever they stand."""
    if not declared:
        typing.report(phases.NoPhases(policy.name.span, policy.name.text))
        return
    for phase in declared:
        if phase.when is not None:
            _check_when(phase, phase.when, typing)
        _check_rule(phase.rule, typing)
    _check_order(declared, typing)


def _check_order(declared: list[ast.PhaseDecl], typing: Typing) -> None:
    in_turn = [phase for phase in declared if not isinstance(phase.when, ast.LastSteps | ast.While)]
    if in_turn and isinstance(in_turn[0].rule, ast.ComputeSteps | ast.ComputeBins):
        check_mask(in_turn[0].rule, typing.errors, begins_run=True)
    endless = next((phase for phase in in_turn if phase.when is None), None)
    if endless is None:
        last = declared[-1].name
        typing.report(phases.UncoveredRun(last.span, last.text))
        return
    for phase in in_turn[in_turn.index(endless) + 1 :]:
        name = phase.name
        error = phases.UnreachablePhase(name.span, name.text, endless.name.text, endless.name.span)
        typing.report(error)


def _check_when(phase: ast.PhaseDecl, when: ast.When, typing: Typing) -> None:
    match when:
        case ast.While():
            _check_clock(phase, when, typing)
        case ast.ForSteps(n=n) | ast.LastSteps(n=n) | ast.UntilRefreshes(n=n):
            what = "the number of refreshes" if isinstance(when, ast.UntilRefreshes) else "the number of steps"
            before = len(typing.errors)
            whole(typing, n, what, 0)
            reach = interval(typing, n)
            if len(typing.errors) == before and reach is not None and reach[1] == 0:
                typing.report(phases.EmptyPhase(n.span, phase.name.text, "no step at all"))
        case _:
            assert_never(when)


def _check_clock(phase: ast.PhaseDecl, when: ast.While, typing: Typing) -> None:
    parts = clock_range(when)
    if parts is None:
        why = "two-sided ranges are written `low <= clock < high`" if len(when.ops) > 1 else "no such range"
        typing.report(phases.NotAClockRange(when.span, why, CLOCKS))
        for operand in when.operands:
            typing.mention(operand)
        return
    clock, low, high = parts
    ends = [end for end in (low, high) if end is not None]
    before = len(typing.errors)
    for end in ends:
        _check_clock_bound(clock, end, typing)
    if len(typing.errors) > before:
        return
    reach = [interval(typing, end) for end in ends]
    if len(reach) == 2 and reach[0] and reach[1] and reach[0][0] >= reach[1][1]:
        why = f"no `{clock.name}` lies in this range"
        typing.report(phases.EmptyPhase(when.span, phase.name.text, why))


def _check_clock_bound(clock: ast.Ref, end: ast.Expr, typing: Typing) -> None:
    what = f"a bound of `{clock.name}`"
    found = constant(typing, end, what)
    if isinstance(found, Poison):
        return
    if found.unit == "frames" or (found.unit == "steps" and clock.name != "step"):
        typing.report(values.UnitMismatch(end.span, f"`{clock.name}`", f"a number of {found.unit}", clock.span))
        return
    low, high = _CLOCK_BOUNDS[clock.name]
    reach = interval(typing, end)
    if reach is not None and not low <= reach[0] <= reach[1] <= high:
        said = (f"{low:g}", f"{high:g}", reach_words(end, reach))
        typing.report(values.OutOfBounds(end.span, what, *said))


def clock_range(when: ast.While) -> tuple[ast.Ref, ast.Expr | None, ast.Expr | None] | None:
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


def _check_rule(rule: ast.Rule, typing: Typing) -> None:
    match rule:
        case ast.Compute():
            return
        case ast.ComputeEvery(n=n):
            whole(typing, n, "the number of steps", 1)
        case ast.ComputeSteps() | ast.ComputeBins():
            check_mask(rule, typing.errors, begins_run=False)
        case ast.ComputeTop(share=portion, by=by):
            share(typing, portion, "the share of `top`")
            found = typing.number(by)
            _refuse_late(found, by, typing)
            if isinstance(found, NumberType) and found.granularity is not Granularity.TOKEN:
                what = f"one value per {found.granularity.word}"
                typing.report(values.NotPerToken(by.span, "`compute top`", what, _TOKEN_SOURCES))
        case ast.Reuse():
            _check_reuse(rule, typing)
        case _:
            assert_never(rule)


def _check_reuse(rule: ast.Reuse, typing: Typing) -> None:
    found = typing.condition(rule.condition)
    _refuse_late(found, rule.condition, typing)
    granularity = GRANULARITIES[rule.granularity.text]
    if isinstance(found, ConditionType):
        if found.granularity > granularity:
            span, word = rule.condition.span, found.granularity.word
            error = values.TooFine(span, granularity.word, word, rule.granularity.span)
            typing.report(error)
        elif found.constant:
            typing.report(phases.ConstantCondition(rule.condition.span))
    seen: dict[str, ast.Guard] = {}
    for guard in rule.guards:
        _check_guard(guard, rule, typing)
        first = seen.setdefault(guard_words(guard), guard)
        if first is not guard:
            typing.report(names.DefinedTwice(guard.span, "guard", guard_words(guard), first.span))


def _refuse_late(found: NumberType | ConditionType | Poison, expr: ast.Expr, typing: Typing) -> None:
    if not isinstance(found, Poison) and found.late:
        typing.report(values.LateCondition(expr.span))


def _check_guard(guard: ast.Guard, rule: ast.Reuse, typing: Typing) -> None:
    granularity = GRANULARITIES[rule.granularity.text]
    why = ""
    match guard:
        case ast.Vote(share=portion):
            share(typing, portion, "the share of `vote`")
            if granularity is not Granularity.TOKEN:
                why = "one place in several frames needs a decision per token"
        case ast.HoldWhen(below=portion) | ast.ComputeAllWhen(above=portion):
            share(typing, portion, "the selected share")
            if granularity < Granularity.FRAME:
                why = "the selected share of a chunk is 0% or 100%"
        case ast.AtMost(n=portion, of="tokens"):
            share(typing, portion, "the share of tokens")
            if granularity < Granularity.FRAME:
                why = "the reused share of a chunk is 0% or 100%"
        case ast.AtMost(n=n):
            whole(typing, n, "the number of reuses", 1)
        case _:
            assert_never(guard)
    if why:
        written, span = guard_words(guard), rule.granularity.span
        typing.report(phases.MeaninglessGuard(guard.span, written, granularity.word, why, span))


def guard_words(guard: ast.Guard) -> str:
    """The guard's keyword as messages name it."""
    match guard:
        case ast.Vote():
            return "vote"
        case ast.HoldWhen():
            return "hold"
        case ast.ComputeAllWhen():
            return "compute all"
        case ast.AtMost(of="row"):
            return "at most ... in a row"
        case ast.AtMost(of="total"):
            return "at most ... in total"
        case ast.AtMost():
            return "at most ... of tokens"
