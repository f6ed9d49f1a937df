"""Types of expressions: names, calls, units and granularities; every error is kept, none is repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import assert_never

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language import ast
from mccompile.language.builtins import CLOCKS, SOURCES
from mccompile.language.calls import CallTyping
from mccompile.language.errors import names, values
from mccompile.language.types import (
    POISON,
    ConditionType,
    Granularity,
    NumberType,
    Poison,
    SourceType,
    Type,
    described,
)

ASK_HOW_FAR = (
    "a tensor is not a number: measure how far it moved with `rel_l1(...)`, or its motion with `frame_diff(...)`"
)
_CLOCK_TYPES = {
    "step": NumberType(Granularity.CHUNK, unit="steps", whole=True),
    "fraction": NumberType(Granularity.CHUNK),
    "timestep": NumberType(Granularity.CHUNK),
    "sigma": NumberType(Granularity.CHUNK),
}


class Typing:
    """Infers types under the parameters and signals of one policy.

    `used` collects the names that were asked for; `order` the signals in the order in which they can be
    computed. `errors` is the list that all checks of one policy share.
    """

    def __init__(
        self,
        params: Mapping[str, NumberType | Poison],
        ranges: Mapping[str, tuple[float, float]],
        signals: Mapping[str, ast.SignalDecl],
        errors: list[Diagnostic],
    ) -> None:
        self.params = params
        self.ranges = ranges
        self.signals = signals
        self.errors = errors
        self.used: set[str] = set()
        self.order: dict[str, Type] = {}
        self.probes: list[ast.Ref] = []
        self._open: list[str] = []
        self._calls = CallTyping(self)

    def report(self, error: Diagnostic) -> Poison:
        self.errors.append(error)
        return POISON

    def mention(self, expr: ast.Expr) -> None:
        """Counts the names in an expression that was refused as used, so that no follow-up error arises."""
        for name in ast.names_in(expr):
            if name in self.signals and name not in self.used and name not in self._open:
                self.signal(name)
            self.used.add(name)

    # ---- what a place demands ----
    def number(self, expr: ast.Expr) -> NumberType | Poison:
        """The type of an expression that must be a number."""
        found = self.infer(expr)
        if isinstance(found, NumberType | Poison):
            return found
        advice = ASK_HOW_FAR if isinstance(found, SourceType) else ""
        return self.report(values.WrongType(expr.span, "a number", described(found), advice))

    def condition(self, expr: ast.Expr) -> ConditionType | Poison:
        """The type of a rule's condition, in which comparisons may accumulate."""
        match expr:
            case ast.Logic(left=left, right=right):
                return self._both(self.condition(left), self.condition(right))
            case ast.Not(of=of):
                return self.condition(of)
            case ast.Compare():
                return self._compare(expr, self._account)
            case _:
                found = self.infer(expr)
                if isinstance(found, ConditionType | Poison):
                    return found
                advice = "compare it: `accumulate(x) < threshold`"
                return self.report(values.WrongType(expr.span, "a condition", described(found), advice))

    def signal(self, name: str) -> Type:
        """The type of a declared signal, inferred once."""
        if name in self.order:
            return self.order[name]
        declaration = self.signals[name]
        if name in self._open:
            path = (*self._open[self._open.index(name) :], name)
            return self.report(values.SignalCycle(declaration.name.span, name, path))
        self._open.append(name)
        found = self.infer(declaration.expr)
        self._open.pop()
        if isinstance(found, SourceType | ConditionType):
            advice = ASK_HOW_FAR if isinstance(found, SourceType) else "a condition is allowed only in a rule"
            error = values.WrongType(declaration.expr.span, "a number", described(found), advice)
            found = self.report(error)
        self.order[name] = found
        return found

    # ---- inference ----
    def infer(self, expr: ast.Expr) -> Type:
        match expr:
            case ast.Number(value=value, unit=unit):
                return NumberType(unit=unit, whole=value.is_integer() and unit != "%", constant=True)
            case ast.Ref():
                return self._ref(expr)
            case ast.Call() | ast.Pipe():
                return self._calls.infer(expr)
            case ast.Negative(of=of):
                return self.number(of)
            case ast.Arithmetic():
                return self._arithmetic(expr)
            case ast.Compare():
                return self._compare(expr, self.number)
            case ast.Logic(left=left, right=right):
                return self._both(self._logical(left), self._logical(right))
            case ast.Not(of=of):
                return self._logical(of)
            case ast.Text() | ast.NumberList():
                found = "a string" if isinstance(expr, ast.Text) else "a list"
                advice = "only `polynomial(...)` and `table(...)` take one"
                return self.report(values.WrongType(expr.span, "a number", found, advice))
            case _:
                assert_never(expr)

    def _ref(self, ref: ast.Ref) -> Type:
        self.used.add(ref.name)
        if ref.name in self.params:
            return self.params[ref.name]
        if ref.name in self.signals:
            found = self.signal(ref.name)
            # A rule or another signal reads what the step before left of a late signal.
            return dataclasses.replace(found, late=False) if isinstance(found, NumberType) else found
        if ref.name in SOURCES:
            if ref.name == "probe":
                self.probes.append(ref)
            return SOURCES[ref.name]
        if ref.name in _CLOCK_TYPES:
            return _CLOCK_TYPES[ref.name]
        known = (*self.params, *self.signals, *SOURCES, *CLOCKS)
        return self.report(names.UnknownName(ref.span, ref.name, known))

    def _logical(self, expr: ast.Expr) -> ConditionType | Poison:
        found = self.infer(expr)
        if isinstance(found, ConditionType | Poison):
            return found
        return self.report(values.WrongType(expr.span, "a condition", described(found), "compare it with `<`"))

    def _account(self, expr: ast.Expr) -> NumberType | Poison:
        """An operand of a rule's comparison: the one place of `accumulate`."""
        return self._calls.accumulated(expr) or self.number(expr)

    def _arithmetic(self, expr: ast.Arithmetic) -> Type:
        left, right = self.number(expr.left), self.number(expr.right)
        if isinstance(left, Poison) or isinstance(right, Poison):
            return POISON
        return self.combined(expr.left, left, expr.right, right, same_unit=expr.op in ("+", "-"), op=expr.op)

    def combined(
        self, a: ast.Expr, left: NumberType, b: ast.Expr, right: NumberType, same_unit: bool, op: str = ""
    ) -> NumberType | Poison:
        """The type of two numbers under one operation; reports units or times that do not fit."""
        if left.unit and right.unit and left.unit != right.unit and same_unit:
            return self.report(values.UnitMismatch(b.span, described(left), described(right), a.span))
        if self._mixes_times(a, left, b, right):
            return POISON
        unit = left.unit or right.unit
        if not same_unit and left.unit and right.unit:
            unit = "" if op != "*" or "%" not in (left.unit, right.unit) else unit
        return NumberType(
            max(left.granularity, right.granularity),
            unit=unit,
            whole=left.whole and right.whole and op in ("", "+", "-", "*"),
            constant=left.constant and right.constant,
            late=left.late or right.late,
        )

    def _mixes_times(self, a: ast.Expr, left: NumberType, b: ast.Expr, right: NumberType) -> bool:
        if left.late == right.late or left.constant or right.constant:
            return False
        late, other = (a, b) if left.late else (b, a)
        self.report(values.LateMixture(other.span, f"known before, while `{late.span.text}` is known after"))
        return True

    def _compare(
        self, expr: ast.Compare, operand: Callable[[ast.Expr], NumberType | Poison]
    ) -> ConditionType | Poison:
        left, right = operand(expr.left), operand(expr.right)
        if isinstance(left, Poison) or isinstance(right, Poison):
            return POISON
        found = self.combined(expr.left, left, expr.right, right, same_unit=True)
        if isinstance(found, Poison):
            return POISON
        return ConditionType(found.granularity, constant=found.constant, late=found.late)

    @staticmethod
    def _both(left: ConditionType | Poison, right: ConditionType | Poison) -> ConditionType | Poison:
        if isinstance(left, Poison) or isinstance(right, Poison):
            return POISON
        return ConditionType(
            max(left.granularity, right.granularity),
            constant=left.constant and right.constant,
            late=left.late or right.late,
        )
