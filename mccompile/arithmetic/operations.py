"""The table of operations: what each one means on float32 numbers, its bounds, its units, and where it has no value.

Checker, planner and readers look an operation up here. `lowering/operations.py` has the meaning on tensors. Both
meanings round each operation to float32, so a folded plan decides as the compiled graph does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mccompile.arithmetic import interval
from mccompile.arithmetic.interval import ANY, Interval, corners, times

Operator = Literal[
    "neg", "abs", "sqrt", "exp", "add", "sub", "mul", "div", "remainder", "pow", "min", "max",
    "lt", "le", "gt", "ge", "and", "or", "not",
]  # fmt: skip
StaticValue = np.float32 | bool
LARGEST_POWER = 64
LARGEST_EXPONENT = 88
"""Of e: the power is still a float32."""



@dataclass(frozen=True, slots=True)
class KnownOperand:
    """What is known of an operand before any run.

    within: its values. constant: parameters and literals alone decide it. whole: it is an integer.
    """

    within: Interval
    constant: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table.

    operands: their names, in order. value: the result on float32 numbers or truth values. bounds: those of the
    result from those of the operands. units: the operands must have one unit (`alike`); or a percentage scales the
    other operand (`scaled`); or two units cancel (`free`). truth: the result is a condition. whole: the result is an
    integer if all operands are. undefined: why there is no value for some operands, "" where there is one. duty: what
    the function of this name does; "" where the language writes the operation with a sign.
    """

    operands: tuple[str, ...]
    value: Callable[..., StaticValue]
    bounds: Callable[..., Interval]
    units: Literal["alike", "scaled", "free"] = "alike"
    truth: bool = False
    whole: bool = True
    undefined: Callable[..., str] = lambda *_: ""
    duty: str = ""


# ---- on float32 numbers ------------------------------------------------------------------------------------
def _rounded(fn: Callable[..., object]) -> Callable[..., np.float32]:
    """`fn` on float32 operands, its result rounded to float32."""
    return lambda *args: np.float32(fn(*map(np.float32, args)))  # type: ignore[arg-type]


def _true(fn: Callable[..., object]) -> Callable[..., bool]:
    return lambda *args: bool(fn(*args))


def power(a: np.float32, b: np.float32) -> np.float32:
    """a ** b, computed in float64 and rounded once, as in the graph."""
    return np.float32(np.power(np.float64(a), np.float64(b)))


def remainder(a: np.float32, b: np.float32) -> np.float32:
    """What division leaves, with the divisor's sign, in float64 and rounded once, as in the graph. 0 has no sign."""
    return np.float32(np.remainder(np.float64(a), np.float64(b)) + 0.0)


# ---- where there is no value -------------------------------------------------------------------------------
def _no_quotient(_: KnownOperand, divisor: KnownOperand) -> str:
    b = divisor.within
    if not b.low <= 0 <= b.high or not (divisor.constant or b.low == b.high):
        return ""
    return "divides by 0" if b.low == b.high else f"may divide by 0: the divisor is {b.low:g} to {b.high:g}"


def _no_power(base: KnownOperand, exponent: KnownOperand) -> str:
    a, b = base.within, exponent.within
    if exponent.constant and max(abs(b.low), abs(b.high)) > LARGEST_POWER:
        return f"the exponent lies between -{LARGEST_POWER} and {LARGEST_POWER}"
    if base.constant and a.low <= 0 and b.low < 0:
        return "divides by 0"
    negative = (base.constant or a.high < 0) and a.low < 0
    if negative and not (exponent.constant and exponent.whole):
        return "a negative number has no such power"
    return ""


def _no_root(of: KnownOperand) -> str:
    negative = of.within.high < 0 or (of.constant and of.within.low < 0)
    return "a negative number has no root" if negative else ""


def _no_exponential(of: KnownOperand) -> str:
    return "a number is at most 3.4e38 large" if of.constant and of.within.high > LARGEST_EXPONENT else ""


# ---- the table ---------------------------------------------------------------------------------------------
_OF, _TWO, _SIDES = ("of",), ("of", "other"), ("left", "right")

OPERATIONS: Mapping[str, Operation] = {
    "add": Operation(_SIDES, _rounded(np.add), lambda a, b: Interval(a.low + b.low, a.high + b.high)),
    "sub": Operation(_SIDES, _rounded(np.subtract), lambda a, b: Interval(a.low - b.high, a.high - b.low)),
    "mul": Operation(_SIDES, _rounded(np.multiply), lambda a, b: corners(a, b, times), "scaled"),
    "div": Operation(
        _SIDES,
        _rounded(np.divide),
        lambda a, b: ANY if b.low <= 0 <= b.high else corners(a, b, operator.truediv),
        "free",
        whole=False,
        undefined=_no_quotient,
    ),
    "remainder": Operation(
        _TWO, remainder, interval.remainder, undefined=_no_quotient, duty="what division by a number leaves"
    ),
    "pow": Operation(_SIDES, _rounded(power), interval.power, "free", whole=False, undefined=_no_power),
    "max": Operation(_TWO, lambda a, b: a if a > b else b, interval.larger, duty="the larger of two"),
    "min": Operation(_TWO, lambda a, b: a if a < b else b, interval.smaller, duty="the smaller of two"),
    "neg": Operation(_OF, _rounded(np.negative), lambda a: Interval(-a.high, -a.low)),
    "abs": Operation(_OF, _rounded(np.abs), interval.size, duty="without its sign"),
    "sqrt": Operation(
        _OF, lambda a: power(a, np.float32(0.5)), interval.root, whole=False, undefined=_no_root, duty="the square root"
    ),
    "exp": Operation(
        _OF, _rounded(lambda a: np.exp(np.float64(a))), interval.exponential, whole=False, undefined=_no_exponential,
        duty="e to this power",
    ),
    "lt": Operation(_SIDES, _true(operator.lt), interval.below, truth=True),
    "le": Operation(_SIDES, _true(operator.le), interval.at_most, truth=True),
    "gt": Operation(_SIDES, _true(operator.gt), lambda a, b: interval.below(b, a), truth=True),
    "ge": Operation(_SIDES, _true(operator.ge), lambda a, b: interval.at_most(b, a), truth=True),
    "and": Operation(_SIDES, lambda a, b: bool(a) and bool(b), interval.smaller, truth=True),
    "or": Operation(_SIDES, lambda a, b: bool(a) or bool(b), interval.larger, truth=True),
    "not": Operation(_OF, operator.not_, lambda a: Interval(1.0 - a.high, 1.0 - a.low), truth=True),
}
