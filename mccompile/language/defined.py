"""Operations that have no value for a number that can stand there: a division by zero, a root of a negative number.

What parameters and literals alone decide is judged by their values. Of what is measured only the certain is judged: a
measured divisor that happens to be 0 gives infinity, and a comparison with an undefined number does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from mccompile import ir
from mccompile.arithmetic.interval import Interval
from mccompile.arithmetic.operations import OPERATIONS, KnownOperand, Operator
from mccompile.language.intervals import Ranges, reach
from mccompile.language.types import Poison, TypedNumber

_LARGEST = 3.4e38  # of float32


def no_value(op: Operator, operands: Sequence[TypedNumber], ranges: Ranges) -> str:
    """Why an operation has no value; "" where it has one."""
    known = [KnownOperand(_values(number, ranges), number.constant, number.whole) for number in operands]
    return OPERATIONS[op].undefined(*known) or _too_large(op, operands, ranges)


def no_clamp(low: TypedNumber | Poison, high: TypedNumber | Poison, ranges: Ranges) -> str:
    """Why `clamp` has no value; "" where it has one."""
    if isinstance(low, Poison) or isinstance(high, Poison):
        return ""
    return "the lower bound lies above the upper one" if _values(low, ranges).low > _values(high, ranges).high else ""


def _too_large(op: Operator, operands: Sequence[TypedNumber], ranges: Ranges) -> str:
    if not all(number.constant for number in operands):
        return ""
    found = reach(ir.Apply(op, tuple(number.expr for number in operands)), ranges.at_defaults())
    return "" if found.low >= -_LARGEST and found.high <= _LARGEST else "a number is at most 3.4e38 large"


def _values(number: TypedNumber, ranges: Ranges) -> Interval:
    """The values of a literal, a parameter or something measured; of parameters in an expression their defaults'."""
    alone = isinstance(number.expr, ir.Const | ir.ParamRef) or not number.constant
    return reach(number.expr, ranges if alone else ranges.at_defaults())
