"""What functions over steps, around tokens and of lists require, and the IR that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.ir import Granularity
from mccompile.language import ast
from mccompile.language.arguments import BoundCall
from mccompile.language.combine import Combining
from mccompile.language.demands import Demands
from mccompile.language.errors import lists, values
from mccompile.language.pasts import no_mean
from mccompile.language.tensors import WITH_TOKENS
from mccompile.language.types import POISON, Poison, TypedNumber, place, word

MOST_LIMITS = 64
"""Of a step function: each limit is a comparison in the graph."""
MOST_SMOOTH = 0.99
"""A larger share of what was would follow nothing in any run."""
SPREAD = frozenset({"average", "smooth", "dilate", "blur", "pick", "roi"})
"""The functions of this file; `table` is among them where it is read at another number than the step."""


class SpreadRules:
    """These functions under the parameters of one policy."""

    def __init__(self, demands: Demands, combining: Combining, report: Callable[[Diagnostic], Poison]) -> None:
        self._demands = demands
        self._combining = combining
        self._report = report

    def call(self, call: BoundCall, numbers: Mapping[str, TypedNumber | Poison]) -> TypedNumber | Poison:
        """A call of one of `SPREAD`. numbers: its arguments that are numbers."""
        if call.function.name == "roi":
            return self._area(call)
        of = numbers["of"]
        if isinstance(of, Poison):
            return POISON
        match call.function.name:
            case "pick":
                return self._picked(call, of)
            case "average" | "smooth":
                return self._mean(call, of, numbers)
            case _:
                return self._around(call, of)

    # ---- over steps and around tokens ----
    def _mean(
        self, call: BoundCall, of: TypedNumber, numbers: Mapping[str, TypedNumber | Poison]
    ) -> TypedNumber | Poison:
        """`average(x, over = 4)` or `smooth(x, by = 80%)`."""
        why = no_mean(of, self._demands.ranges.signals)
        if why:
            return self._report(lists.UnreadableValue(call.span, call.function.name, why, named=of.late))
        if call.function.name == "average":
            n = call.count("over")
            if n == 1:
                return self._report(values.OutOfBounds(call.values["over"].span, "`over` of `average`", "2", "8"))
            return replace(of, expr=ir.Average(of.expr, n, at=call.span), whole=False)
        by = numbers["by"]
        if isinstance(by, TypedNumber):
            by = self._demands.bounded(by, "`by` of `smooth`", 0.0, MOST_SMOOTH, ("0%", "99%"))
        if isinstance(by, Poison):
            return POISON
        return replace(of, expr=ir.Smooth(of.expr, by.expr, at=call.span), whole=False)

    def _around(self, call: BoundCall, of: TypedNumber) -> TypedNumber | Poison:
        """`dilate(x, by = 1)` or `blur(x, by = 1)`."""
        name = call.function.name
        if of.granularity != Granularity.TOKEN:
            found = f"one value per {word(of.granularity)}"
            return self._report(values.NotPerToken(of.expr.at, f"`{name}`", found, WITH_TOKENS))
        if of.late:
            why = "what is read from `block_output` is known by the name of a signal"
            return self._report(lists.UnreadableValue(place(of.expr), name, why, named=True))
        by = call.count("by")
        if name == "dilate":
            return replace(of, expr=ir.Around("max", of.expr, by, at=call.span))
        return replace(of, expr=ir.Around("mean", of.expr, by, at=call.span), whole=False)

    # ---- of lists ----
    def at_index(self, call: BoundCall, table: tuple[float, ...], at: TypedNumber) -> TypedNumber | Poison:
        """`table(values, at = x)`: the entry nearest to x, the first or the last one beyond the ends."""
        if len(table) - 1 > MOST_LIMITS:
            why = f"a table read at another number than the step has at most {MOST_LIMITS + 1} entries"
            return self._report(lists.InvalidList(call.values["values"].span, "table", why))
        if len(table) == 1:
            why = "one entry is the same at every number"
            return self._report(lists.InvalidList(call.values["values"].span, "table", why))
        limits = tuple(i + 0.5 for i in range(len(table) - 1))
        return replace(at, expr=ir.Stairs(at.expr, limits, table, at=call.span), unit="", whole=False, measured=True)

    def _picked(self, call: BoundCall, of: TypedNumber) -> TypedNumber | Poison:
        limits, found = call.number_list("limits") or (), call.number_list("values") or ()
        unit = self._unit(call, "values")
        if isinstance(unit, Poison) or not self._limits_fit(call, of):
            return POISON
        why = ""
        if len(found) != len(limits) + 1:
            why = f"{len(limits)} limits part {len(limits) + 1} values, and here are {len(found)}"
        elif len(set(found)) == 1:
            why = "all values are the same"
        if why:
            return self._report(lists.InvalidList(call.values["values"].span, "pick", why))
        whole = all(value.is_integer() for value in found) and unit != "%"
        expr = ir.Stairs(of.expr, limits, found, at=call.span)
        return replace(of, expr=expr, unit=unit, whole=whole)

    def _limits_fit(self, call: BoundCall, of: TypedNumber) -> bool:
        """Whether the limits rise, are not too many, and are of the unit of what they part."""
        written = call.values["limits"]
        limits = call.number_list("limits") or ()
        why = ""
        if len(limits) > MOST_LIMITS:
            why = f"there are more than {MOST_LIMITS} limits"
        elif any(high <= low for low, high in pairwise(limits)):
            why = "limits rise: each is larger than the one before it"
        if why:
            self._report(lists.InvalidList(written.span, "pick", why))
            return False
        unit = self._unit(call, "limits")
        if isinstance(unit, Poison):
            return False
        one = TypedNumber(ir.Const(limits[0], at=written.span), unit=unit, constant=True)
        return not isinstance(self._combining.comparison("lt", of, one, call.span), Poison)

    def _unit(self, call: BoundCall, parameter: str) -> ast.Unit | Poison:
        """The unit that all numbers of a list have."""
        written = call.values[parameter]
        assert isinstance(written, ast.NumberList)
        units = {item.unit for item in written.items}
        if len(units) > 1:
            return self._report(lists.InvalidList(written.span, call.function.name, "its numbers have one unit"))
        return units.pop()

    def _area(self, call: BoundCall) -> TypedNumber | Poison:
        """`roi(rows = [20%, 60%], columns = [0%, 50%])`."""
        sound = True
        for name in ("rows", "columns"):
            ends = call.number_list(name) or ()
            unit = self._unit(call, name)
            why = ""
            if isinstance(unit, Poison):
                sound = False
            elif unit != "%" or len(ends) != 2:
                why = "it is from where to where, as shares of the frame's sides: `[20%, 60%]`"
            elif not 0 <= ends[0] < ends[1] <= 1:
                why = "it begins above where it ends, and both lie within the frame, 0% to 100%"
            if why:
                self._report(lists.InvalidList(call.values[name].span, "roi", why))
                sound = False
        rows, columns = (call.number_list(name) or () for name in ("rows", "columns"))
        if sound and (rows, columns) == ((0.0, 1.0), (0.0, 1.0)):
            return self._report(lists.InvalidList(call.span, "roi", "it is the whole frame: 1 everywhere"))
        if not sound:
            return POISON
        return TypedNumber(ir.Area(rows, columns, at=call.span), Granularity.TOKEN, measured=True)


def drawn_mask(ends: tuple[float, ...], at: Span) -> TypedNumber:
    """`mask("FILE.toml:NAME")`: the rectangles that it is made of. ends: four of each (language/drawn.py)."""
    corners = [ends[first : first + 4] for first in range(0, len(ends), 4)]
    found: list[ir.Expr] = [ir.Area(corner[:2], corner[2:], at=at) for corner in corners]
    while len(found) > 1:  # in pairs, so that nothing is nested deeply
        pairs = [found[first : first + 2] for first in range(0, len(found), 2)]
        found = [ir.Apply("max", tuple(pair), at=at) if len(pair) == 2 else pair[0] for pair in pairs]
    return TypedNumber(found[0], Granularity.TOKEN, measured=True)
