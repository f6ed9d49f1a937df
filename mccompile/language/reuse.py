"""Turns `reuse ... while` into IR: one condition, or several in order, each with what stands in under it."""

from __future__ import annotations

from collections.abc import Sequence

from mccompile import ir
from mccompile.diagnostics.diagnostic import nearest, words
from mccompile.ir import Granularity
from mccompile.language import ast
from mccompile.language.decided import decided, decided_parts
from mccompile.language.errors import layers, phases, values
from mccompile.language.errors.syntax import UnexpectedWord
from mccompile.language.expressions import Elaborator
from mccompile.language.forecast import elaborate_forecast
from mccompile.language.guards import elaborate_guards
from mccompile.language.nearest import asks_nearest, refuse_nearest
from mccompile.language.types import GRANULARITIES, POISON, Poison, TypedCondition, TypedNumber, place, word
from mccompile.language.walk import walk
from mccompile.language.ways import never_acts


def elaborate_reuse(
    rule: ast.ReuseRule | ast.ReuseInOrder, kept: Sequence[ast.LayersDecl], within: Elaborator
) -> ir.Reuse | None:
    """The rule; None after an error in it. kept: the layers whose results it reuses."""
    ways = rule.ways if isinstance(rule, ast.ReuseInOrder) else (rule,)
    granularity = _granularity(ways, within)
    if granularity is None:
        for expr in (e for way in ways for e in (way.condition, way.stand_in) if e is not None):
            within.mention(expr)
        return None
    conditions = [_condition(way, granularity, within, len(ways) == 1) for way in ways]
    stand_ins = [_stand_in(way, kept, within) for way in ways]
    whole: TypedCondition | Poison = conditions[0]
    for way, condition in zip(ways[1:], conditions[1:], strict=True):
        whole = within.either((whole, condition), ways[0].condition.span.to(way.condition.span))
    guards = elaborate_guards(ways[-1], granularity, whole, within)
    if isinstance(whole, Poison):
        return None
    check_accounts(whole.expr, within)
    found = tuple(one for one in stand_ins if not isinstance(one, Poison))
    if len(ways) > 1 and len(found) == len(ways):
        _check_order(ways, [c.expr for c in conditions if isinstance(c, TypedCondition)], found, whole, within)
    if len(found) < len(ways):
        return None
    return ir.Reuse(
        granularity, whole.expr, guards.number("vote"), guards.number("hold_below"), guards.number("all_above"),
        guards.number("max_consecutive"), guards.number("max_total"), guards.number("max_reused"), guards.all_at,
        None if found == (None,) else found, at=rule.span,
    )  # fmt: skip


def _granularity(ways: Sequence[ast.ReuseRule], within: Elaborator) -> Granularity | None:
    """What all alternatives decide about; reports where they do not fit together."""
    first = ways[0].granularity
    for way in ways:
        if way.granularity.text not in GRANULARITIES:
            name = way.granularity
            wanted = f"{words(GRANULARITIES)} or a whole number"
            within.report(UnexpectedWord(name.span, wanted, f"`{name.text}`", nearest(name.text, GRANULARITIES)))
            return None
        if way.granularity.text != first.text:
            why = f"the first one decides once per {first.text}, and all are about the same cells"
            within.report(phases.OddAlternative(way.granularity.span, why, f"write `reuse {first.text}`"))
            return None
    for way in ways[:-1]:
        for guard in way.guards:
            remedy = "write it behind the last `reuse`"
            within.report(phases.OddAlternative(guard.span, "a guard is about all alternatives", remedy))
    return GRANULARITIES[first.text]


def _condition(
    way: ast.ReuseRule, granularity: Granularity, within: Elaborator, alone: bool
) -> TypedCondition | Poison:
    """alone: the rule has no other alternative."""
    condition = within.condition(way.condition)
    refuse_late(condition, within)
    if isinstance(condition, TypedCondition):
        if condition.granularity > granularity:
            coarse, fine = word(granularity), word(condition.granularity)
            within.report(values.TooFine(way.condition.span, coarse, fine, way.granularity.span))
        elif condition.constant:
            which = "depends on parameters and numbers alone"
            within.report(phases.ConstantCondition(way.condition.span, which, "the rule would always reuse or never"))
        else:
            _check_parts(condition.expr, within, alone)
    return condition


def _check_parts(condition: ir.Expr, within: Elaborator, alone: bool) -> None:
    """The condition decides, and all of its parts have a part in it."""
    for part in decided_parts(condition, within.ranges):
        which = "holds at every step" if part.always else "holds at no step"
        then = "this part of the condition decides nothing"
        if part.expr is condition:
            then = "the rule would always reuse"
            if not part.always:
                then = "the rule would never reuse" if alone else "this alternative would never act"
        within.report(phases.ConstantCondition(part.expr.at, which, f"{then}, whatever is measured"))


def _stand_in(
    way: ast.ReuseRule, kept: Sequence[ast.LayersDecl], within: Elaborator
) -> ir.Forecast | Poison | None:
    """What the rule itself says that stands in; None where the layers say it."""
    if way.stand_in is None:
        return None
    names = dict.fromkeys(item.keep.text for item in kept if item.keep is not None)
    keep = next((item.keep for item in kept if item.keep is not None), None)
    if keep is None:
        within.mention(way.stand_in)
        return POISON
    if asks_nearest(way.stand_in):
        refuse_nearest(way.stand_in, "layers say it, for all of their rules", within)
        return POISON
    if len(names) > 1:
        why = f"these layers keep {words(tuple(names), 'and')}: give them names, and each its own rule"
        within.mention(way.stand_in)
        return within.report(layers.NotAStandIn(way.stand_in.span, why))
    whole = any(not isinstance(item.where, ast.BlockRange) for item in kept)
    another = any(item.stand_in is not None for item in kept)
    return elaborate_forecast(way.stand_in, keep, whole, within, plain=another) or POISON


def _check_order(
    ways: Sequence[ast.ReuseRule], conditions: Sequence[ir.Expr], stand_ins: Sequence[ir.Forecast | None],
    whole: TypedCondition, within: Elaborator,
) -> None:  # fmt: skip
    """Each alternative acts somewhere, and some step computes."""
    known = [decided(condition, within.ranges) for condition in conditions]
    for n, way in enumerate(ways[1:], 1):
        if stand_ins[n] == stand_ins[n - 1]:
            why = "what stands in is that of the alternative before it"
            within.report(phases.OddAlternative(way.span, why, "join both conditions with `or`"))
        elif known[n] is None and never_acts(tuple(conditions[: n + 1]), within.ranges):
            why = "wherever its condition holds, one before it holds"
            within.report(phases.NoEffect(way.condition.span, "reuse", why))
    if not whole.constant and known == [None] * len(known) and decided(whole.expr, within.ranges):
        then = "the rule would always reuse, whatever is measured"
        within.report(phases.ConstantCondition(ways[-1].condition.span, "holds wherever no one before it does", then))


def check_accounts(read: ir.Expr, within: Elaborator) -> None:
    """Each account that a rule reads sums one thing."""
    first: dict[str, ir.Accumulate] = {}
    for node in walk(read, within.ranges.signals):
        if isinstance(node, ir.Accumulate) and first.setdefault(node.into, node) != node:
            within.report(values.SecondAccount(node.at, node.into, place(first[node.into])))
            return


def refuse_late(found: TypedNumber | TypedCondition | Poison, within: Elaborator) -> None:
    """A rule reads a late value through the name of a signal only."""
    if not isinstance(found, Poison) and found.late:
        within.report(values.LateCondition(place(found.expr)))
