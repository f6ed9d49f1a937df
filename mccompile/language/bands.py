"""Turns what stands behind `reuse as` of the whole model into weights of low and high frequencies.

before: `layers model { keep gap  reuse as low_pass(kept(gap)) + 1.1 * high_pass(kept(gap)) }`
after:  of the kept gap, the low frequencies once and the others 1.1 times
"""

from __future__ import annotations

from mccompile import ir
from mccompile.language import ast
from mccompile.language.arguments import as_call
from mccompile.language.errors import layers
from mccompile.language.expressions import Elaborator
from mccompile.language.forecast import KeptSum, WeightedSum
from mccompile.language.types import POISON, Poison
from mccompile.language.walk import is_clocked

WIDEST = 0.5
"""The largest radius, as a share of a frame's shorter side: an axis of n places holds no more than n / 2 waves."""

_ALL, _LOW, _HIGH = 1, 2, 3
"""What a weight is of: all that is kept, its low frequencies, its high ones."""
_PARTS = {"low_pass": _LOW, "high_pass": _HIGH}
_ONE, _ZERO = ir.Const(1.0), ir.Const(0.0)


def elaborate_bands(value: ast.WrittenExpr, keep: ast.Name, within: Elaborator) -> ir.Bands | None:
    """The weights of a stand-in for what is kept of the whole model; None after an error."""
    written = _OfModel(keep.text, within)
    found = written.sum(value)
    if isinstance(found, Poison):
        return None
    weights = found.at(1)
    low, high = (_both(weights.get(_ALL), weights.get(part)) for part in (_LOW, _HIGH))
    if low == high == _ONE:
        within.report(layers.NotAStandIn(value.span, "the last kept result is reused anyway", of_model=True))
        return None
    signals = within.ranges.signals
    if not all(is_clocked(weight, signals) for weight in (low, high)):
        why = "the clock and the parameters settle the weights of the whole model, and here something is measured"
        within.report(layers.NotAStandIn(value.span, why, of_model=True))
        return None
    return ir.Bands(low, high, written.radius or _ZERO, at=value.span)


def _both(every: ir.Expr | None, part: ir.Expr | None) -> ir.Expr:
    """The weight of a part: that of all, and its own."""
    if every is None or part is None:
        return every or part or _ZERO
    return ir.Apply("add", (every, part), at=part.at)


class _OfModel(KeptSum):
    """One stand-in of what is kept of the whole model. radius: up to which frequencies are low."""

    radius: ir.Expr | None = None

    def refuse(self, expr: ast.WrittenExpr, why: str) -> Poison:
        self._within.mention(expr)
        return self._within.report(layers.NotAStandIn(expr.span, why, of_model=True))

    def call(self, expr: ast.Call | ast.Pipe) -> WeightedSum | Poison:
        """`kept(gap)`, or its low or its high frequencies."""
        why = "of the whole model only the last result is kept: `kept`, `low_pass`, `high_pass`"
        call = self.bound(expr, ("kept", *_PARTS), why)
        if isinstance(call, Poison):
            return POISON
        of = call.values["of"]
        if call.function.name in _PARTS:
            radius = self._radius(call.values["radius"], call.function.name)
            if not isinstance(of, ast.Call | ast.Pipe) or self._is_part(of):
                return self.refuse(of, f"frequencies are those of `kept({self._kept})`")
            inner = self.sum(of)
            if isinstance(inner, Poison) or isinstance(radius, Poison):
                return POISON
            if self.radius is not None and self.radius != radius:
                return self.refuse(expr, "low and high frequencies of one sum have one radius")
            self.radius = radius
            return WeightedSum(1, ({_PARTS[call.function.name]: inner.at(1)[_ALL]},))
        if not isinstance(of, ast.Ref) or of.name != self._kept:
            return self.refuse(of, f"these layers keep `{self._kept}`")
        if call.count("n") != 1:
            return self.refuse(expr, "of the whole model only the last result is kept")
        return WeightedSum(1, ({_ALL: _ONE},))

    def _is_part(self, of: ast.Call | ast.Pipe) -> bool:
        found = as_call(of)
        return found is not None and found[0].function.text in _PARTS

    def _radius(self, value: ast.WrittenExpr, function: str) -> ir.Expr | Poison:
        what, demands = f"`radius` of `{function}`", self._within.demands
        found = demands.share(self._within.number(value), what, value.span)
        if isinstance(found, Poison):
            return found
        found = demands.bounded(found, what, 0.0, WIDEST, ("0%", "50%"))
        return found if isinstance(found, Poison) else found.expr
