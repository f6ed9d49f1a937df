"""Operations that have no value for a number that can stand there: a division by zero, a root of a negative number.

What parameters and literals alone decide is judged by their values. Of what is measured only the certain is judged: a
measured divisor that happens to be 0 gives infinity, and a comparison with an undefined number does not hold.
"""

from __future__ import annotations

from mccompile import ir
from mccompile.language.intervals import Interval, Ranges, reach
from mccompile.language.types import Poison, TypedNumber

LARGEST_POWER = 64
_LARGEST = 3.4e38  # of float32


def no_value(op: ir.Binary, left: TypedNumber, right: TypedNumber, ranges: Ranges) -> str:
    """Why an operator has no value; "" where it has one."""
    a, b = _values(left, ranges), _values(right, ranges)
    match op:
        case "div" if b.low <= 0 <= b.high and (right.constant or b.low == b.high):
            return "divides by 0" if b.low == b.high else f"may divide by 0: the divisor is {b.low:g} to {b.high:g}"
        case "pow" if right.constant and max(abs(b.low), abs(b.high)) > LARGEST_POWER:
            return f"the exponent lies between -{LARGEST_POWER} and {LARGEST_POWER}"
        case "pow" if left.constant and a.low <= 0 and b.low < 0:
            return "divides by 0"
        case "pow" if (left.constant or a.high < 0) and a.low < 0 and not (right.constant and right.whole):
            return "a negative number has no such power"
        case _:
            return _too_large(op, left, right, ranges)


def no_root(of: TypedNumber, ranges: Ranges) -> str:
    """Why `sqrt` has no value; "" where it has one."""
    within = _values(of, ranges)
    return "a negative number has no root" if within.high < 0 or (of.constant and within.low < 0) else ""


def no_clamp(low: TypedNumber | Poison, high: TypedNumber | Poison, ranges: Ranges) -> str:
    """Why `clamp` has no value; "" where it has one."""
    if isinstance(low, Poison) or isinstance(high, Poison):
        return ""
    return "the lower bound lies above the upper one" if _values(low, ranges).low > _values(high, ranges).high else ""


def _too_large(op: ir.Binary, left: TypedNumber, right: TypedNumber, ranges: Ranges) -> str:
    if not left.constant or not right.constant or op not in ("add", "sub", "mul", "div", "pow"):
        return ""
    found = reach(ir.Apply(op, (left.expr, right.expr)), ranges.at_defaults())
    return "" if found.low >= -_LARGEST and found.high <= _LARGEST else "a number is at most 3.4e38 large"


def _values(number: TypedNumber, ranges: Ranges) -> Interval:
    """The values of a literal, a parameter or something measured; of parameters in an expression their defaults'."""
    alone = isinstance(number.expr, ir.Const | ir.ParamRef) or not number.constant
    return reach(number.expr, ranges if alone else ranges.at_defaults())
