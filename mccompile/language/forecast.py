"""Turns what stands behind `reuse as` into weights of the last kept results."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import pairwise

from mccompile import ir
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.arguments import BoundCall, as_call
from mccompile.language.builtins import CLOCKS
from mccompile.language.errors import layers
from mccompile.language.expressions import Elaborator
from mccompile.language.nodes import names_in
from mccompile.language.types import POISON, Poison, TypedNumber, word
from mccompile.language.walk import measured_leaves

HIGHEST_ORDER = 4
"""Of a Taylor series: it takes one more kept result than its order, and higher differences are noise."""

FURTHEST = 4
"""How many steps ago the value of layers may be read: each is one more tensor for each stream."""

LEAST_RIDGE = 1e-6
"""Of a fit: without any, few results do not settle a series."""

_ONE = ir.Const(1.0)
WrittenWeights = Mapping[int, ir.Expr]
"""By how many computations ago, from 1, what the kept result is multiplied with; by -n, the value n steps ago."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Weights while 1, 2, ... results are kept, the last for all more. needs: with fewer it has no meaning."""

    needs: int
    by_count: tuple[WrittenWeights, ...]

    def at(self, count: int) -> WrittenWeights:
        return self.by_count[min(count, len(self.by_count)) - 1]


def elaborate_forecast(
    value: ast.WrittenExpr, keep: ast.Name, whole: bool, within: Elaborator, plain: bool = False
) -> ir.Forecast | None:
    """The weights of a stand-in. While fewer results are kept than it names, the kept result itself stands in.

    whole: the layers are the whole model, for which `bands.py` says more than a rule can. plain: the last kept result
    itself may be asked for.
    """
    if whole or keep.text not in ("residual", "output"):
        what = "an increment" if keep.text == "increment" else "the whole model"
        why = f"of {what} only the last one is kept"
        within.report(layers.NotAStandIn(value.span, why, of_model=keep.text != "increment"))
        within.mention(value)
        return None
    found = KeptSum(keep.text, within).sum(value)
    if isinstance(found, Poison):
        return None
    counts = range(1, len(found.by_count) + 1)
    made = [found.at(count) if count >= found.needs else {1: _ONE} for count in counts]
    if not plain and all(weights == {1: _ONE} for weights in made):
        within.report(layers.NotAStandIn(value.span, "the last kept result is reused anyway"))
        return None
    zero = ir.Const(0.0)
    rows = tuple(tuple(weights.get(n, zero) for n in range(1, max(1, *weights) + 1)) for weights in made)
    passed = tuple(tuple(weights.get(-n, zero) for n in range(1, 1 - min(0, *weights))) for weights in made)
    return ir.Forecast(rows, passed if any(passed) else None, at=value.span)


class KeptSum:
    """One stand-in of what is kept under the name `kept`."""

    def __init__(self, kept: str, within: Elaborator) -> None:
        self._kept = kept
        self._within = within

    def sum(self, expr: ast.WrittenExpr) -> WeightedSum | Poison:
        """The weighted sum that an expression of kept results is."""
        match expr:
            case ast.Call() | ast.Pipe():
                return self.call(expr)
            case ast.Negative(of=of):
                return self._scaled(of, lambda w: _negated(w, expr.span))
            case ast.Arithmetic(op="+" | "-" as sign, left=left, right=right):
                return self._added(self.sum(left), self.sum(right), sign == "-", expr.span)
            case ast.Arithmetic(op="*", left=left, right=right) if not (self._has(left) and self._has(right)):
                of, by = (left, right) if self._has(left) else (right, left)
                return self._times(of, by, expr.span)
            case ast.Arithmetic(op="/", left=left, right=right) if not self._has(right):
                return self._times(left, right, expr.span, divide=True)
            case ast.Ref(name=name) if name == self._kept:
                return self.refuse(expr, f"say which one: `kept({name})` is the last one")
            case _ if self._has(expr):
                return self.refuse(expr, "kept results can be added, and multiplied with numbers")
            case _:
                return self.refuse(expr, f"no kept result: these layers keep `{self._kept}`")

    def refuse(self, expr: ast.WrittenExpr, why: str) -> Poison:
        self._within.mention(expr)
        return self._within.report(layers.NotAStandIn(expr.span, why))

    def _has(self, expr: ast.WrittenExpr) -> bool:
        return self._kept in names_in(expr)

    def bound(self, expr: ast.Call | ast.Pipe, known: Container[str], why: str) -> BoundCall | Poison:
        """A call of one of the known functions with its arguments; any other is refused."""
        found = as_call(expr)
        assert found is not None
        if found[0].function.text not in known:
            return self.refuse(expr, why)
        call = self._within.options(expr)
        if call is None:
            self._within.mention(expr)
        return call or POISON

    def call(self, expr: ast.Call | ast.Pipe) -> WeightedSum | Poison:
        """`kept(residual, n)`, `before(residual)` or `taylor(residual, ...)`."""
        known = "kept", "before", "taylor", "chebyshev"
        call = self.bound(expr, known, "kept results are named by `kept`, `before`, `taylor` and `chebyshev`")
        if isinstance(call, Poison):
            return POISON
        of = call.values["of"]
        if call.function.name == "before":
            return self._passed(of)
        if not isinstance(of, ast.Ref) or of.name != self._kept:
            return self.refuse(of, f"these layers keep `{self._kept}`")
        if call.function.name == "taylor":
            clock = ir.ClockRef(CLOCKS[call.word("along")], at=call.span)
            if call.count("order") > HIGHEST_ORDER:
                return self.refuse(call.values["order"], f"an order is at most {HIGHEST_ORDER}")
            orders = range(call.count("order") + 1)
            return WeightedSum(1, tuple(_taylor(order, clock, call.span) for order in orders))
        if call.function.name == "chebyshev":
            return self._fitted(call)
        n = call.count("n")
        return WeightedSum(n, ({n: _ONE},) * n)

    def _passed(self, of: ast.WrittenExpr) -> WeightedSum | Poison:
        """`before(residual)`, `before(before(residual))`, ...: with fewer results than steps ago, the last one."""
        back = 1
        while isinstance(of, ast.Call | ast.Pipe):
            found = as_call(of)
            if found is None or found[0].function.text != "before":
                break
            call = self._within.options(of)
            if call is None:
                return POISON
            of, back = call.values["of"], back + 1
        if not isinstance(of, ast.Ref) or of.name != self._kept:
            return self.refuse(of, f"these layers keep `{self._kept}`")
        if back > FURTHEST:
            return self.refuse(of, f"`before` reaches back {FURTHEST} steps at most")
        return WeightedSum(back, ({-back: _ONE},) * back)

    def _fitted(self, call: BoundCall) -> WeightedSum | Poison:
        """`chebyshev(residual, degree = 4, ridge = 0.1, over = 8)`: with one result, that one."""
        what, demands = "`ridge` of `chebyshev`", self._within.demands
        ridge = demands.constant(self._within.number(call.values["ridge"]), what)
        if isinstance(ridge, TypedNumber):
            ridge = demands.bounded(ridge, what, LEAST_RIDGE, 1e6, (f"{LEAST_RIDGE:g}", "1e6"))
        if isinstance(ridge, Poison):
            return POISON
        degree, over, number = call.count("degree"), call.count("over"), ridge.expr
        if over == 1:
            return self.refuse(call.values["over"], "a series is fitted to more than one result")
        nodes = {n: ir.SpectralWeight(n, degree, over, number, at=call.span) for n in range(1, over + 1)}
        more: list[WrittenWeights] = [{n: nodes[n] for n in range(1, count + 1)} for count in range(2, over + 1)]
        return WeightedSum(1, ({1: _ONE}, *more))

    def _scaled(self, of: ast.WrittenExpr, scale: Callable[[ir.Expr], ir.Expr]) -> WeightedSum | Poison:
        found = self.sum(of)
        if isinstance(found, Poison):
            return found
        return WeightedSum(found.needs, tuple({n: scale(w) for n, w in weights.items()} for weights in found.by_count))

    def _times(self, of: ast.WrittenExpr, by: ast.WrittenExpr, at: Span, divide: bool = False) -> WeightedSum | Poison:
        factor = self._within.number(by)
        why = _unknown(factor.expr, self._within) if isinstance(factor, TypedNumber) else ""
        if why:
            factor = self._within.report(layers.NotAStandIn(by.span, why))
        if isinstance(factor, Poison):
            self._within.mention(of)
            return factor
        number = factor.expr
        if divide and not self._within.divides(factor, at):
            return POISON
        if divide:
            return self._scaled(of, lambda w: ir.Apply("div", (w, number), at=at))
        return self._scaled(of, lambda w: number if w == _ONE else ir.Apply("mul", (w, number), at=at))

    def _added(
        self, one: WeightedSum | Poison, two: WeightedSum | Poison, minus: bool, at: Span
    ) -> WeightedSum | Poison:
        if isinstance(one, Poison) or isinstance(two, Poison):
            return POISON
        most = max(len(one.by_count), len(two.by_count))
        pairs = ((one.at(count), two.at(count)) for count in range(1, most + 1))
        return WeightedSum(max(one.needs, two.needs), tuple(_sum_of(a, b, minus, at) for a, b in pairs))


def _unknown(number: ir.Expr, within: Elaborator) -> str:
    """Why the runtime does not know a weight before the layers are reused; "" where it does.

    The decision tells it the signals that have one value per chunk, under their names.
    """
    signals = within.ranges.signals
    for leaf in measured_leaves(number, signals):
        if not isinstance(leaf, ir.SignalRef):
            return "what is measured in a weight is a signal: give it a name"
        signal = signals[leaf.name]
        if signal.late:
            return f"`{leaf.name}` is known only after the step"
        if signal.granularity > ir.Granularity.CHUNK:
            return f"a weight holds for a whole chunk, and `{leaf.name}` has one value per {word(signal.granularity)}"
    return ""


def _sum_of(one: WrittenWeights, two: WrittenWeights, minus: bool, at: Span) -> WrittenWeights:
    found = dict(one)
    for n, w in two.items():
        if n in found:
            found[n] = ir.Apply("sub" if minus else "add", (found[n], w), at=at)
        else:
            found[n] = _negated(w, at) if minus else w
    return found


def _negated(number: ir.Expr, at: Span) -> ir.Expr:
    return ir.Const(-number.value, at=at) if isinstance(number, ir.Const) else ir.Apply("neg", (number,), at=at)


def _taylor(order: int, clock: ir.ClockRef, at: Span) -> WrittenWeights:
    """Finite differences at the last computations, and their Taylor series from there to the step now (TaylorSeer)."""
    times = [ir.Kept(clock, n + 1, at=at) for n in range(order + 1)]
    ahead = ir.Apply("sub", (clock, times[0]), at=at)
    differences: list[WrittenWeights] = [{n + 1: _ONE} for n in range(order + 1)]
    total, factor = differences[0], None
    for k in range(1, order + 1):
        gaps = [ir.Apply("sub", (times[n], times[n + 1]), at=at) for n in range(len(differences) - 1)]
        differences = [
            {m: ir.Apply("div", (w, gap), at=at) for m, w in _sum_of(later, earlier, True, at).items()}
            for (later, earlier), gap in zip(pairwise(differences), gaps, strict=True)
        ]
        power: ir.Expr = ahead if factor is None else ir.Apply("mul", (factor, ahead), at=at)
        factor = ir.Apply("div", (power, ir.Const(float(k), at=at)), at=at) if k > 1 else power
        term = {m: ir.Apply("mul", (w, factor), at=at) for m, w in differences[0].items()}
        total = _sum_of(total, term, False, at)
    return total
