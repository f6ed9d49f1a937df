"""What operators make of numbers and conditions: they check units and times, and give granularity and IR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from mccompile import ir
from mccompile.arithmetic.operations import OPERATIONS, Operator
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.defined import no_value
from mccompile.language.errors import values
from mccompile.language.intervals import Ranges
from mccompile.language.types import POISON, Poison, TypedCondition, TypedNumber, described, place

ARITHMETIC: dict[ast.ArithOp, Operator] = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow"}
COMPARISONS: dict[ast.CompareOp, Operator] = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


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

    def arithmetic(self, op: Operator, operands: Sequence[TypedNumber | Poison], at: Span) -> TypedNumber | Poison:
        """Numbers under one operator or function; reports units or times that do not fit."""
        sound = [operand for operand in operands if isinstance(operand, TypedNumber)]
        if len(sound) < len(operands) or not self._fit(op, sound):
            return POISON
        if not self.defined(no_value(op, sound, self._ranges), at):
            return POISON
        row = OPERATIONS[op]
        units = [operand.unit for operand in sound if operand.unit]
        if row.units == "scaled":
            units.sort(key="%".__eq__)  # a percentage leaves the other unit as it is, on whichever side it stands
        cancel = row.units != "alike" and len(units) > 1 and not (row.units == "scaled" and "%" in units)
        return TypedNumber(
            ir.Apply(op, tuple(operand.expr for operand in sound), at=at),
            max(operand.granularity for operand in sound),
            unit="" if cancel or not units else units[0],
            whole=row.whole and all(operand.whole for operand in sound),
            constant=all(operand.constant for operand in sound),
            late=any(operand.late for operand in sound),
            measured=any(operand.measured for operand in sound),
        )

    def defined(self, why: str, at: Span) -> bool:
        """Reports an operation that has no value, for the reason `why`; "" is none."""
        if why:
            self._report(values.UndefinedValue(at, why))
        return not why

    def comparison(
        self, op: Operator, left: TypedNumber | Poison, right: TypedNumber | Poison, at: Span
    ) -> TypedCondition | Poison:
        """`a < b` and its like."""
        found = self.arithmetic(op, (left, right), at)
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

    def _fit(self, op: Operator, operands: Sequence[TypedNumber]) -> bool:
        row, units = OPERATIONS[op], {operand.unit for operand in operands}
        plain = any(operand.measured and not operand.unit for operand in operands)
        counted = row.truth and plain and units & {"steps", "frames"}
        if (row.units == "alike" and len(units - {""}) > 1) or counted:
            left, *others = operands
            right = next(operand for operand in others if operand.unit != left.unit)
            error = values.UnitMismatch(place(right.expr), described(left), described(right), place(left.expr))
            self._report(error)
            return False
        late = [operand for operand in operands if operand.late and not operand.constant]
        early = [operand for operand in operands if not operand.late and not operand.constant]
        if not late or not early:
            return True
        which = f"known before, while `{place(late[0].expr).text}` is known after"
        self._report(values.LateMixture(place(early[0].expr), which))
        return False
