"""Measures of keys, and sums of them: what `keys: top N chunks by SIGNAL` may be by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language.arguments import BoundCall
from mccompile.language.combine import Combining
from mccompile.language.demands import Demands
from mccompile.language.errors import layers
from mccompile.language.intervals import reach
from mccompile.language.types import POISON, Poison, Typed, TypedKeys, TypedNumber, described, place

MEASURES: Mapping[str, ir.KeyMeasure] = {"attention": "attention", "redundancy": "redundancy"}
WHAT = "what a measure of keys is multiplied by"
SUMS_ALONE = "measures are added, and multiplied by numbers that parameters decide: a sum picks, and nothing else"
_ONE = ir.Const(1.0)


class KeyRules:
    """Sums of measures under the parameters of one policy."""

    def __init__(self, demands: Demands, combining: Combining, report: Callable[[Diagnostic], Poison]) -> None:
        self._demands = demands
        self._combining = combining
        self._report = report

    def measure(self, call: BoundCall) -> TypedKeys:
        """`attention(key)` or `redundancy(key)`."""
        one = TypedNumber(ir.Const(1.0, at=call.span), constant=True)
        return TypedKeys((((MEASURES[call.function.name], 0), one),), call.span)

    def dilated(self, call: BoundCall, of: TypedKeys) -> TypedKeys | Poison:
        """`attention(key) | dilate(by = 3)`: of the key and of its neighbours in the order of the tokens, the largest.

        Of a sum it is no sum, and neither is it of the negative of a measure. Redundancy is a share of all candidates.
        """
        ((measure, around), factor), *others = of.factors
        if others or measure == "redundancy" or around or factor.expr != _ONE:
            why = "`dilate` takes `attention(key)` itself, and once: what it gives can be added and multiplied"
            return self._report(layers.KeysNotChosen(of.at, why))
        return TypedKeys((((measure, call.count("by")), factor),), call.span)

    def negative(self, of: TypedKeys, at: Span) -> TypedKeys | Poison:
        """`-relevance`."""
        return self._each(of, at, lambda factor: self._combining.negative(factor, at))

    def arithmetic(self, op: str, left: Typed, right: Typed, at: Span) -> TypedKeys | Poison:
        """Two sides, one of which at least is of keys."""
        if isinstance(left, Poison) or isinstance(right, Poison):
            return POISON
        match op, left, right:
            case "+" | "-", TypedKeys(), TypedKeys():
                return self._added(left, right if op == "+" else self.negative(right, right.at), at)
            case "*", TypedNumber(), TypedKeys():
                return self._scaled("mul", right, left, at)
            case "*", TypedKeys(), TypedNumber():
                return self._scaled("mul", left, right, at)
            case "/", TypedKeys(), TypedNumber():
                return self._scaled("div", left, right, at)
            case "+" | "-", _, _:
                other = right if isinstance(left, TypedKeys) else left
                why = f"{described(other)} is added to every key alike, so the same keys are picked without it"
                return self._report(layers.KeysNotChosen(at, why))
            case _:
                return self._report(layers.KeysNotChosen(at, SUMS_ALONE))

    def _scaled(self, op: str, keys: TypedKeys, number: TypedNumber, at: Span) -> TypedKeys | Poison:
        found = self._demands.constant(number, WHAT)
        if isinstance(found, Poison):
            return POISON

        def scaled(factor: TypedNumber) -> TypedNumber | Poison:
            if op == "mul" and factor.expr == _ONE:
                return found
            return self._combining.arithmetic("mul" if op == "mul" else "div", (factor, found), at)

        return self._each(keys, at, scaled)

    def _each(
        self, keys: TypedKeys, at: Span, change: Callable[[TypedNumber], TypedNumber | Poison]
    ) -> TypedKeys | Poison:
        """The sum with every factor changed."""
        made = []
        for key, factor in keys.factors:
            found = change(factor)
            if isinstance(found, Poison):
                return POISON
            made.append((key, found))
        return TypedKeys(tuple(made), at)

    def _added(self, left: TypedKeys, right: TypedKeys | Poison, at: Span) -> TypedKeys | Poison:
        """A measure that both have counts by the sum of its factors."""
        if isinstance(right, Poison):
            return POISON
        found = dict(left.factors)
        for key, factor in right.factors:
            both = self._combining.arithmetic("add", (found[key], factor), at) if key in found else factor
            if isinstance(both, Poison):
                return POISON
            found[key] = both
        return TypedKeys(tuple(found.items()), at)

    def chosen(self, of: Typed, written: Span) -> ir.KeySum | Poison:
        """What keys are picked by. written: where it stands."""
        if isinstance(of, Poison):
            return POISON
        if not isinstance(of, TypedKeys):
            why = f"expected a measure of keys, found {described(of)}"
            return self._report(layers.KeysNotChosen(written, why))
        terms = []
        for (measure, around), factor in of.factors:
            within = reach(factor.expr, self._demands.ranges)
            if within.low == within.high == 0:
                why = f"`{measure}(key)` counts 0 times, whatever the parameters are"
                return self._report(layers.KeysNotChosen(place(factor.expr), why))
            terms.append(ir.KeyTerm(measure, around, factor.expr, at=factor.expr.at))
        return ir.KeySum(tuple(terms), at=written)


def check_whole(cache: ir.Cache, regions: Iterable[ir.Region], errors: list[Diagnostic]) -> None:
    """Reports keys that are picked where chunks are not computed whole the first time."""
    taking = next((region for region in regions if region.nearest is not None), None)
    if cache.keys is not None and taking is not None:
        why = "of these layers some tokens of a chunk may never be computed, so there would be no pick"
        errors.append(layers.NeverWhole(cache.keys.at, why, taking.at))
