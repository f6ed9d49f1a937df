"""Which values an expression can take, known before any run: interval arithmetic over the IR.

The bounds are safe but not tight: an expression never takes a value outside of them. A value that may be undefined
(NaN) is neither inside nor outside.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from mccompile import ir
from mccompile.arithmetic.interval import ANY, AT_LEAST_0, INFINITE, TRUTH, Interval, corners, times
from mccompile.arithmetic.operations import OPERATIONS

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
    """What names can be worth: parameters in their ranges, signals as their expressions say, clocks where they are."""

    params: Mapping[str, ir.Param]
    signals: Mapping[str, ir.Signal]
    defaults: bool = False
    clocks: Mapping[ir.ClockName, Interval] = field(default_factory=lambda: CLOCKS)
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
        case ir.ClockRef(what):
            return ranges.clocks[what]
        case ir.Table(numbers):
            return Interval(min(numbers), max(numbers))
        case ir.Change(distance):
            return Interval(0.0, 2.0) if distance == "cosine" else AT_LEAST_0
        case ir.FrameDiff():
            return AT_LEAST_0
        case ir.Similarity():
            return Interval(-1.0, 1.0)
        case ir.Normalise(norm, of, floor, _):
            if norm == "min_max":
                return Interval(min(reach(floor, ranges).low, 1.0), 1.0)
            return AT_LEAST_0 if reach(of, ranges).low >= 0 else ANY
        case ir.Polynomial(of, coefficients):
            return _horner(reach(of, ranges), coefficients)
        case ir.Accumulate(of):
            one = reach(of, ranges)
            return Interval(one.low if one.low >= 0 else -INFINITE, one.high if one.high <= 0 else INFINITE)
        case ir.Kept(of, _) | ir.Before(of):
            return reach(of, ranges)
        case ir.Cumulative(how, of):
            return _cumulative(how, reach(of, ranges))
        case ir.Reduce(_, of, _) | ir.Average(of, _) | ir.Smooth(of, _) | ir.Around(_, of, _):
            return reach(of, ranges)
        case ir.Stairs(of, limits, values):
            within = reach(of, ranges)
            found = values[bisect_right(limits, within.low) : bisect_right(limits, within.high) + 1]
            return Interval(min(found), max(found))
        case ir.Area() | ir.Depth():
            return TRUTH
        case ir.Apply(op, args):
            return OPERATIONS[op].bounds(*(reach(arg, ranges) for arg in args))
        case ir.SourceRef() | ir.SpectralWeight():
            return ANY
        case ir.Frequency():
            return Interval(0.0, 0.5)
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
        grown = corners(value, x, times)
        value = Interval(grown.low + c, grown.high + c)
    return value
