"""The alternatives of a `reuse` rule, in the order in which they are tried: a condition and what stands in under it."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile import ir
from mccompile.language.decided import decided
from mccompile.language.intervals import Ranges, reach


@dataclass(frozen=True, slots=True)
class ReuseWay:
    """One alternative. stand_in: for the kept result; None: what the layers say."""

    condition: ir.Expr
    stand_in: ir.Forecast | None


def ways_of(rule: ir.Reuse) -> tuple[ReuseWay, ...]:
    """The alternatives of a rule, in order; one where it has a single condition."""
    if rule.stand_ins is None:
        return (ReuseWay(rule.condition, None),)
    found: list[ReuseWay] = []
    rest = rule.condition
    for stand_in in reversed(rule.stand_ins[1:]):
        assert isinstance(rest, ir.Apply)
        rest, last = rest.args
        found.append(ReuseWay(last, stand_in))
    return (ReuseWay(rest, rule.stand_ins[0]), *reversed(found))


def never_acts(ways: tuple[ir.Expr, ...], ranges: Ranges) -> bool:
    """Whether the last of these conditions holds only where one before it holds, whatever the parameters are."""
    *before, last = ways
    left = _widest(last, ranges, grows=True)
    for one in before:
        left = ir.Apply("and", (left, ir.Apply("not", (_widest(one, ranges, grows=False),))))
    return decided(left, ranges) is False


def _widest(condition: ir.Expr, ranges: Ranges, grows: bool) -> ir.Expr:
    """The condition under the parameters with which it holds most often, or least often."""
    assert isinstance(condition, ir.Apply)
    match condition.op:
        case "not":
            return ir.Apply("not", (_widest(condition.args[0], ranges, not grows),))
        case "and" | "or":
            return ir.Apply(condition.op, tuple(_widest(arg, ranges, grows) for arg in condition.args))
        case op:
            left, right = condition.args
            less = op in ("lt", "le")
            return ir.Apply(op, (_end(left, ranges, grows != less), _end(right, ranges, grows == less)))


def _end(side: ir.Expr, ranges: Ranges, high: bool) -> ir.Expr:
    """The highest or the lowest value of a side that parameters alone settle; any other side as it is."""
    if not _settled(side):
        return side
    within = reach(side, ranges)
    return ir.Const(within.high if high else within.low)


def _settled(expr: ir.Expr) -> bool:
    if isinstance(expr, ir.Apply):
        return all(_settled(arg) for arg in expr.args)
    return isinstance(expr, ir.Const | ir.ParamRef)
