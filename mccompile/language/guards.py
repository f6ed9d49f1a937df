"""Turns the guards of a rule into IR. Each must have a meaning under the rule, and an effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from mccompile import ir
from mccompile.ir import Granularity
from mccompile.language import ast
from mccompile.language.effects import guard_without_effect
from mccompile.language.errors import names, phases
from mccompile.language.expressions import Elaborator
from mccompile.language.intervals import reach
from mccompile.language.masks import check_steps, steps_of
from mccompile.language.types import Poison, TypedCondition, TypedNumber, word
from mccompile.language.walk import walk

_SHARES = ("vote", "hold_below", "all_above", "max_reused")


@dataclass(slots=True)
class Guards:
    """The guards of one rule. numbers: by the field of ir.Reuse that each sets; None for one with an error."""

    numbers: dict[str, ir.Expr] = field(default_factory=dict)
    all_at: ir.AllAt | None = None

    def number(self, name: str) -> ir.Expr | None:
        return self.numbers.get(name)


def elaborate_guards(
    rule: ast.ReuseRule | ast.ComputeTop, granularity: Granularity, decides: TypedCondition | TypedNumber | Poison,
    within: Elaborator,
) -> Guards:
    """The guards of a rule that decides by a condition, or by the number that ranks tokens."""  # fmt: skip
    made = Guards()
    seen: dict[str, ast.Guard] = {}
    for guard in rule.guards:
        if isinstance(guard, ast.ComputeAllEvery | ast.ComputeAllSteps):
            name, at = "all_at", _all_at(guard, within)
            made.all_at = at or made.all_at
        else:
            name, number = _guard(guard, rule, granularity, decides, within)
            if not isinstance(number, Poison):
                made.numbers[name] = number.expr
        first = seen.setdefault(name, guard)
        if first is not guard:
            within.report(names.DefinedTwice(guard.span, "guard", guard_words(guard), first.span))
    _check_limits(made, seen, within)
    return made


def _check_limits(made: Guards, seen: Mapping[str, ast.Guard], within: Elaborator) -> None:
    """As many reuses in a row as in total, or more, are never reached."""
    row, total = made.number("max_consecutive"), made.number("max_total")
    if row is None or total is None or reach(row, within.ranges).low < reach(total, within.ranges).high:
        return
    if guard_without_effect("max_consecutive", row, within.ranges):
        return  # it is told already
    guard = seen["max_consecutive"]
    within.report(phases.NoEffect(guard.span, guard_words(guard), "a cell is not reused more often in the whole run"))


def _all_at(guard: ast.ComputeAllEvery | ast.ComputeAllSteps, within: Elaborator) -> ir.AllAt | None:
    if isinstance(guard, ast.ComputeAllSteps):
        before = len(within.errors)
        check_steps(guard.ranges, within.errors)
        return None if len(within.errors) > before else ir.AllAt(None, steps_of(guard.ranges), at=guard.span)
    count = within.demands.whole(within.number(guard.n), "the number of steps", 1)
    if isinstance(count, Poison):
        return None
    idle = guard_without_effect("all_at", count.expr, within.ranges)
    if idle:
        within.report(phases.NoEffect(guard.span, guard_words(guard), idle))
    return ir.AllAt(count.expr, (), at=guard.span)


_Plain = ast.Vote | ast.HoldWhen | ast.ComputeAllWhen | ast.AtMost


def _guard(
    guard: _Plain, rule: ast.ReuseRule | ast.ComputeTop, granularity: Granularity,
    decides: TypedCondition | TypedNumber | Poison, within: Elaborator,
) -> tuple[str, TypedNumber | Poison]:
    """The field of ir.Reuse that the guard sets, and its number."""  # fmt: skip
    name, found = _number(guard, within)
    why = _meaningless(name, rule, granularity, decides, within)
    if why:
        written = guard_words(guard)
        if isinstance(rule, ast.ComputeTop):
            kind, label, at = "compute top", "computes this share", rule.share.span
        else:
            kind, label = f"reuse {word(granularity)}", f"decides once per {word(granularity)}"
            at = rule.granularity.span
        within.report(phases.MeaninglessGuard(guard.span, written, kind, label, why, at))
    elif not isinstance(found, Poison):
        idle = guard_without_effect(name, found.expr, within.ranges)
        if idle:
            within.report(phases.NoEffect(guard.span, guard_words(guard), idle))
    return name, found


def _number(guard: _Plain, within: Elaborator) -> tuple[str, TypedNumber | Poison]:
    match guard:
        case ast.Vote(share=share):
            return "vote", within.demands.share(within.number(share), "the share of `vote`", share.span)
        case ast.HoldWhen(below=share) | ast.ComputeAllWhen(above=share):
            name = "hold_below" if isinstance(guard, ast.HoldWhen) else "all_above"
            return name, within.demands.share(within.number(share), "the selected share", share.span)
        case ast.AtMost(n=share, of="tokens"):
            return "max_reused", within.demands.share(within.number(share), "the share of tokens", share.span)
        case ast.AtMost(n=n, of=of):
            name = "max_consecutive" if of == "row" else "max_total"
            return name, within.demands.whole(within.number(n), "the number of reuses", 1)
        case _:
            assert_never(guard)


def _meaningless(
    name: str, rule: ast.ReuseRule | ast.ComputeTop, granularity: Granularity,
    decides: TypedCondition | TypedNumber | Poison, within: Elaborator,
) -> str:
    """Why a guard has no meaning under a rule; "" where it has one."""  # fmt: skip
    if isinstance(rule, ast.ComputeTop):
        return "the share of the tokens is what the rule says" if name in _SHARES else ""
    if name == "vote" and granularity is not Granularity.TOKEN:
        return "one place in several frames needs a decision per token"
    if name in _SHARES and granularity < Granularity.FRAME:
        return f"the {'reused' if name == 'max_reused' else 'selected'} share of a chunk is 0% or 100%"
    if not isinstance(decides, TypedCondition):
        return ""
    read = walk(decides.expr, within.ranges.signals)
    sums = {node.into for node in read if isinstance(node, ir.Accumulate)}
    if name == "max_reused" and len(sums) > 1:
        return "the tokens with the highest accounts are computed, and the condition keeps more than one"
    if name == "max_reused" and not sums:
        return "the tokens with the highest accounts are computed, and the condition keeps no account"
    if name in _SHARES and decides.granularity < Granularity.FRAME:
        return f"the condition has one value per {word(decides.granularity)}, for all tokens of a chunk alike"
    return ""


def guard_words(guard: ast.Guard) -> str:
    """The guard's keyword as messages name it."""
    match guard:
        case ast.Vote():
            return "vote"
        case ast.HoldWhen():
            return "hold"
        case ast.ComputeAllWhen():
            return "compute all"
        case ast.ComputeAllEvery():
            return "compute all every"
        case ast.ComputeAllSteps():
            return "compute all steps"
        case ast.AtMost(of="row"):
            return "at most ... in a row"
        case ast.AtMost(of="total"):
            return "at most ... in total"
        case ast.AtMost():
            return "at most ... of tokens"
