"""What operators make of numbers and conditions: they check units and times, and give granularity and IR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.defined import no_value
from mccompile.language.errors import values
from mccompile.language.intervals import Ranges
from mccompile.language.types import POISON, Poison, TypedCondition, TypedNumber, described, place

ARITHMETIC: dict[ast.ArithOp, ir.Binary] = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow"}
COMPARISONS: dict[ast.CompareOp, ir.Binary] = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
COMPARED: frozenset[ir.Binary] = frozenset(COMPARISONS.values())
_ONE_UNIT: frozenset[ir.Binary] = frozenset({"add", "sub", "min", "max", "lt", "le", "gt", "ge"})


class Combining:
    """Operators under the parameters of one policy."""

    def __init__(self, ranges: Ranges, report: Callable[[Diagnostic], Poison]) -> None:
        self._ranges = ranges
        self._report = report

    def negative(self, of: TypedNumber | Poison, at: Span) -> TypedNumber | Poison:
        """`-x`; of a literal, the literal."""
        if isinstance(of, Poison):
            return of
        expr = ir.Const(-of.expr.value, at=at) if isinstance(of.expr, ir.Const) else ir.Apply("neg", (of.expr,), at=at)
        return replace(of, expr=expr)

    def arithmetic(
        self, op: ir.Binary, left: TypedNumber | Poison, right: TypedNumber | Poison, at: Span
    ) -> TypedNumber | Poison:
        """Two numbers under one operator or function; reports units or times that do not fit."""
        if isinstance(left, Poison) or isinstance(right, Poison) or not self._fit(op, left, right):
            return POISON
        if not self.defined(no_value(op, left, right, self._ranges), at):
            return POISON
        unit = left.unit or right.unit
        if op not in _ONE_UNIT and left.unit and right.unit:
            unit = "" if op != "mul" or "%" not in (left.unit, right.unit) else unit
        return TypedNumber(
            ir.Apply(op, (left.expr, right.expr), at=at),
            max(left.granularity, right.granularity),
            unit=unit,
            whole=left.whole and right.whole and op not in ("div", "pow"),
            constant=left.constant and right.constant,
            late=left.late or right.late,
            measured=left.measured or right.measured,
        )

    def defined(self, why: str, at: Span) -> bool:
        """Reports an operation that has no value, for the reason `why`; "" is none."""
        if why:
            self._report(values.UndefinedValue(at, why))
        return not why

    def comparison(
        self, op: ir.Binary, left: TypedNumber | Poison, right: TypedNumber | Poison, at: Span
    ) -> TypedCondition | Poison:
        """`a < b` and its like."""
        found = self.arithmetic(op, left, right, at)
        if isinstance(found, Poison):
            return found
        return TypedCondition(found.expr, found.granularity, constant=found.constant, late=found.late)

    def logic(
        self, op: Literal["and", "or", "not"], parts: tuple[TypedCondition | Poison, ...], at: Span
    ) -> TypedCondition | Poison:
        """Conditions joined, or one turned round."""
        sound = tuple(part for part in parts if isinstance(part, TypedCondition))
        if len(sound) < len(parts):
            return POISON
        return TypedCondition(
            ir.Apply(op, tuple(part.expr for part in sound), at=at),
            max(part.granularity for part in sound),
            constant=all(part.constant for part in sound),
            late=any(part.late for part in sound),
        )

    def _fit(self, op: ir.Binary, left: TypedNumber, right: TypedNumber) -> bool:
        units = {left.unit, right.unit}
        plain = any(side.measured and not side.unit for side in (left, right))
        if (len(units - {""}) == 2 and op in _ONE_UNIT) or (plain and units & {"steps", "frames"} and op in COMPARED):
            error = values.UnitMismatch(place(right.expr), described(left), described(right), place(left.expr))
            self._report(error)
            return False
        if left.late == right.late or left.constant or right.constant:
            return True
        late, other = (left, right) if left.late else (right, left)
        which = f"known before, while `{place(late.expr).text}` is known after"
        self._report(values.LateMixture(place(other.expr), which))
        return False
