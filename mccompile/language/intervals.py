"""Which values an expression can take, known before any run: interval arithmetic over the IR.

The bounds are safe but not tight: an expression never takes a value outside of them. A value that may be undefined
(NaN) is neither inside nor outside. `undefined` says where a value is undefined, whatever is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from operator import truediv
from typing import Literal, assert_never

from mccompile import ir

INFINITE = math.inf


@dataclass(frozen=True, slots=True)
class Interval:
    """All values from low to high, both included."""

    low: float
    high: float


ANY = Interval(-INFINITE, INFINITE)
_AT_LEAST_0 = Interval(0.0, INFINITE)
_TRUTH = Interval(0.0, 1.0)
MOST_STEPS = 1000
"""The most steps that a run has: a schedule takes each of the 1000 training timesteps once at most."""

CLOCKS: dict[ir.ClockName, Interval] = {
    "step": Interval(0.0, MOST_STEPS - 1.0),
    "fraction": Interval(0.0, 1.0 - 1.0 / MOST_STEPS),
    "timestep": Interval(0.0, 1000.0),
    "sigma": Interval(0.0, 1.0),
}


@dataclass(slots=True)
class Ranges:
    """What names can be worth: parameters in their ranges, signals as their expressions say."""

    params: Mapping[str, ir.Param]
    signals: Mapping[str, ir.Signal]
    defaults: bool = False
    known: dict[str, Interval] = field(default_factory=dict)

    def at_defaults(self) -> Ranges:
        """The same names, every parameter at its default alone."""
        return replace(self, defaults=True, known={})

    def of(self, name: str) -> Interval:
        """Every value of a parameter or a signal; anything for a name that has an error of its own."""
        if name not in self.known:
            param, signal = self.params.get(name), self.signals.get(name)
            if param is not None:
                self.known[name] = Interval(param.low, param.high)
                if self.defaults:
                    self.known[name] = Interval(param.default, param.default)
            else:
                self.known[name] = ANY if signal is None else reach(signal.expr, self)
        return self.known[name]


def reach(expr: ir.Expr, ranges: Ranges) -> Interval:
    """The values that `expr` can take; of a condition 0..1, or only one of them where it always or never holds."""
    match expr:
        case ir.Const(value):
            return Interval(value, value)
        case ir.ParamRef(name) | ir.SignalRef(name):
            return ranges.of(name)
        case ir.Clock(what):
            return CLOCKS[what]
        case ir.Table(numbers):
            return Interval(min(numbers), max(numbers))
        case ir.Change(distance):
            return Interval(0.0, 2.0) if distance == "cosine" else _AT_LEAST_0
        case ir.FrameDiff():
            return _AT_LEAST_0
        case ir.Normalise(norm, of, floor, _):
            if norm == "min_max":
                return Interval(min(reach(floor, ranges).low, 1.0), 1.0)
            return _AT_LEAST_0 if reach(of, ranges).low >= 0 else ANY
        case ir.Polynomial(of, coefficients):
            return _horner(reach(of, ranges), coefficients)
        case ir.Accumulate(of):
            one = reach(of, ranges)
            return Interval(one.low if one.low >= 0 else -INFINITE, one.high if one.high <= 0 else INFINITE)
        case ir.Kept(of, _) | ir.Before(of):
            return reach(of, ranges)
        case ir.Cumulative(how, of):
            return _cumulative(how, reach(of, ranges))
        case ir.Reduce(_, of, _):
            return reach(of, ranges)
        case ir.Apply(op, args):
            return _apply(op, [reach(arg, ranges) for arg in args])
        case ir.Source():
            return ANY
        case _:
            assert_never(expr)


def _cumulative(how: Literal["sum", "product"], one: Interval) -> Interval:
    """Bounds of a running sum or product of values within `one`, at least one of them."""
    if how == "sum":
        return Interval(one.low if one.low >= 0 else -INFINITE, one.high if one.high <= 0 else INFINITE)
    return ANY if one.low < 0 else Interval(one.low if one.low >= 1 else 0.0, one.high if one.high <= 1 else INFINITE)


def _horner(x: Interval, coefficients: tuple[float, ...]) -> Interval:
    value = Interval(coefficients[0], coefficients[0])
    for c in coefficients[1:]:
        grown = _corners(value, x, _times)
        value = Interval(grown.low + c, grown.high + c)
    return value


def _corners(a: Interval, b: Interval, fn: Callable[[float, float], float]) -> Interval:
    """Bounds of an operation that is monotone in each operand; anything where a corner is undefined."""
    try:
        found = [fn(x, y) for x, y in product((a.low, a.high), (b.low, b.high))]
    except (ZeroDivisionError, OverflowError, ValueError):
        return ANY
    return ANY if any(math.isnan(value) for value in found) else Interval(min(found), max(found))


def _times(x: float, y: float) -> float:
    """The product; a bound of 0 is one that is reached, an infinite bound is not, so that theirs is 0."""
    return 0.0 if 0.0 in (x, y) else x * y


def _power_of(x: float, y: float) -> float:
    return float(x**y)


def _apply(op: ir.Unary | ir.Binary, args: list[Interval]) -> Interval:
    a = args[0]
    match op:
        case "neg":
            return Interval(-a.high, -a.low)
        case "abs":
            return Interval(0.0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high)), max(abs(a.low), abs(a.high)))
        case "sqrt":
            return Interval(math.sqrt(max(a.low, 0.0)), math.sqrt(max(a.high, 0.0)))
        case "not":
            return Interval(1.0 - a.high, 1.0 - a.low)
        case _:
            return _binary(op, a, args[1])


def _binary(op: ir.Binary, a: Interval, b: Interval) -> Interval:
    match op:
        case "add":
            return Interval(a.low + b.low, a.high + b.high)
        case "sub":
            return Interval(a.low - b.high, a.high - b.low)
        case "mul":
            return _corners(a, b, _times)
        case "div":
            return ANY if b.low <= 0 <= b.high else _corners(a, b, truediv)
        case "pow":
            return _power(a, b)
        case "min":
            return Interval(min(a.low, b.low), min(a.high, b.high))
        case "max":
            return Interval(max(a.low, b.low), max(a.high, b.high))
        case "lt" | "le" | "gt" | "ge":
            return _compared(op, a, b)
        case "and":
            return Interval(min(a.low, b.low), min(a.high, b.high))
        case "or":
            return Interval(max(a.low, b.low), max(a.high, b.high))
        case _:
            assert_never(op)


def _power(a: Interval, b: Interval) -> Interval:
    if a.low >= 0 and (a.low > 0 or b.low >= 0):
        return _corners(a, b, _power_of)
    whole = b.low == b.high and float(b.low).is_integer() and b.low >= 0
    if not whole:
        return ANY
    ends = _corners(a, b, _power_of)
    even = int(b.low) % 2 == 0
    return Interval(0.0, ends.high) if even and a.low <= 0 <= a.high else ends


def _compared(op: ir.Binary, a: Interval, b: Interval) -> Interval:
    if op in ("gt", "ge"):
        return _compared("lt" if op == "gt" else "le", b, a)
    holds = a.high < b.low if op == "lt" else a.high <= b.low
    fails = a.low >= b.high if op == "lt" else a.low > b.high
    return Interval(1.0, 1.0) if holds else Interval(0.0, 0.0) if fails else _TRUTH
