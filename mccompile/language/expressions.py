"""Turns expressions into IR, and checks names, units and granularities. Every error is reported once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic, words
from mccompile.diagnostics.source import Span
from mccompile.ir import Granularity
from mccompile.language import ast
from mccompile.language.arguments import BoundCall, as_call, bind
from mccompile.language.builtins import CLOCKS, DEPTH, FREQUENCY, FUNCTIONS, LISTED, NAMED, SOURCES
from mccompile.language.calls import CallRules
from mccompile.language.combine import ARITHMETIC, COMPARISONS, Combining
from mccompile.language.demands import Demands
from mccompile.language.errors import layers, names, tensors, values
from mccompile.language.intervals import Ranges
from mccompile.language.nodes import names_in
from mccompile.language.taps import block_source
from mccompile.language.types import (
    POISON,
    Poison,
    Typed,
    TypedCondition,
    TypedKeys,
    TypedNumber,
    TypedTensor,
    described,
    written_at,
)
from mccompile.language.walk import walk

_NAME_TAKERS = tuple(name for name, function in FUNCTIONS.items() if {p.kind for p in function.parameters} & NAMED)
_LIST_TAKERS = tuple(name for name, function in FUNCTIONS.items() if {p.kind for p in function.parameters} & LISTED)

_ONE = TypedNumber(ir.Const(1.0), constant=True)
BY_KEYS = "it picks keys: `cache { window: 2 chunks  keys: top 3 chunks by relevance }`"
TOLD = ""
"""The name in an expression that stands where an error was told of before."""


class Elaborator:
    """Turns expressions into IR under the parameters and signals of one policy.

    params: None for one with an error of its own. `used` collects the names that were asked for; `order` the signals
    in the order in which they can be computed, None for one with an error. `errors` is the list that all checks of one
    policy share. functions: names of the policy's own functions, whose calls have been replaced.
    """

    def __init__(
        self,
        params: Mapping[str, ir.Param | None],
        signals: Mapping[str, ast.SignalDecl],
        errors: list[Diagnostic],
        functions: frozenset[str] = frozenset(),
    ) -> None:
        self.params = params
        self.signals = signals
        self.errors = errors
        self._functions = functions
        self.used: set[str] = set()
        self.order: dict[str, ir.Signal | None] = {}
        self._open: list[str] = []
        self._in_gain = False
        self._looked_at: ir.SourceRef | None = None  # the block that the policy looks at
        self._made: dict[str, ir.Signal] = {}
        self._types: dict[str, TypedNumber] = {}
        self._of_keys: dict[str, TypedKeys] = {}  # signals that are a number per key
        sound = {name: param for name, param in params.items() if param is not None}
        self.ranges = Ranges(sound, self._made)
        self.demands = Demands(self.ranges, self.report)
        self._combining = Combining(self.ranges, self.report)
        self._calls = CallRules(self.demands, self._combining, self.report)

    def report(self, error: Diagnostic) -> Poison:
        self.errors.append(error)
        return POISON

    def mention(self, expr: ast.WrittenExpr) -> None:
        """Counts the names in an expression that was refused as used, so that no follow-up error arises."""
        for name in names_in(expr):
            if name in self.signals and name not in self.used and name not in self._open:
                self.signal(name)
            self.used.add(name)

    # ---- what a place demands ----
    def number(self, expr: ast.WrittenExpr) -> TypedNumber | Poison:
        """An expression that must be a number."""
        return self._as_number(self.infer(expr))

    def condition(self, expr: ast.WrittenExpr) -> TypedCondition | Poison:
        """A rule's condition, in which comparisons may accumulate."""
        return self._as_condition(self.infer(expr), "compare it: `accumulate(x) < threshold`")

    def divides(self, by: TypedNumber, at: Span) -> bool:
        """Reports a number that nothing can be divided by, at the words of the division."""
        return not isinstance(self._combining.arithmetic("div", (_ONE, by), at), Poison)

    def either(self, parts: tuple[TypedCondition | Poison, ...], at: Span) -> TypedCondition | Poison:
        """The condition that holds where one of two holds."""
        return self._combining.logic("or", parts, at)

    def signal(self, name: str) -> ir.Signal | None:
        """A declared signal, elaborated once; None after an error in it, and for one of keys."""
        if name in self.order or name in self._of_keys:
            return self.order.get(name)
        declaration = self.signals[name]
        if name in self._open:
            path = (*self._open[self._open.index(name) :], name)
            self.report(values.SignalCycle(declaration.name.span, name, path))
            return None
        self._open.append(name)
        outside, self._in_gain = self._in_gain, False
        found = self.infer(declaration.expr)
        self._in_gain = outside
        self._open.pop()
        made = None
        if isinstance(found, TypedKeys):
            self._of_keys[name] = found
            return None
        if isinstance(found, TypedNumber):
            self._types[name] = found
            made = ir.Signal(name, found.expr, found.granularity, found.late, at=declaration.name.span)
            self._made[name] = made
        elif not isinstance(found, Poison):
            tensor = isinstance(found, TypedTensor)
            advice = values.ASK_HOW_FAR if tensor else "put the condition into a rule: `reuse chunk while ...`"
            self.report(values.WrongType(declaration.expr.span, "a number", described(found), advice))
        self.order[name] = made
        return made

    def _as_number(self, found: Typed) -> TypedNumber | Poison:
        if isinstance(found, TypedNumber | Poison):
            return found
        advice = values.ASK_HOW_FAR if isinstance(found, TypedTensor) else ""
        advice = BY_KEYS if isinstance(found, TypedKeys) else advice
        return self.report(values.WrongType(written_at(found), "a number", described(found), advice))

    def _as_condition(self, found: Typed, advice: str = "compare it with `<`") -> TypedCondition | Poison:
        if isinstance(found, TypedCondition | Poison):
            return found
        advice = BY_KEYS if isinstance(found, TypedKeys) else advice
        return self.report(values.WrongType(written_at(found), "a condition", described(found), advice))

    def keys(self, by: ast.WrittenExpr) -> ir.KeySum | Poison:
        """What keys are picked by: a sum of their measures."""
        return self._calls.keys.chosen(self.infer(by), by.span)

    # ---- inference ----
    def infer(self, expr: ast.WrittenExpr) -> Typed:
        """The expression as IR, with its type."""
        match expr:
            case ast.Number(value=value, unit=unit):
                whole = value.is_integer() and unit != "%"
                return TypedNumber(ir.Const(value, at=expr.span), unit=unit, whole=whole, constant=True)
            case ast.Ref():
                return self._ref(expr)
            case ast.BlockResult():
                return self._block(expr)
            case ast.Call() | ast.Pipe():
                return self._call(expr)
            case ast.Negative(of=of):
                turned = self.infer(of)
                if isinstance(turned, TypedKeys):
                    return self._calls.keys.negative(turned, expr.span)
                return self._combining.negative(self._as_number(turned), expr.span)
            case ast.Arithmetic(op=op, left=left, right=right):
                sides = self.infer(left), self.infer(right)
                if any(isinstance(side, TypedKeys) for side in sides):
                    return self._calls.keys.arithmetic(op, *sides, expr.span)
                numbers = [self._as_number(side) for side in sides]
                return self._combining.arithmetic(ARITHMETIC[op], numbers, expr.span)
            case ast.Compare(op=op, left=left, right=right):
                return self._combining.comparison(COMPARISONS[op], self.number(left), self.number(right), expr.span)
            case ast.Logic(op=op, left=left, right=right):
                parts = (self._as_condition(self.infer(part)) for part in (left, right))
                return self._combining.logic(op, tuple(parts), expr.span)
            case ast.Not(of=of):
                return self._combining.logic("not", (self._as_condition(self.infer(of)),), expr.span)
            case ast.Text() | ast.NumberList():
                found = "a string" if isinstance(expr, ast.Text) else "a list"
                takers = _NAME_TAKERS if isinstance(expr, ast.Text) else _LIST_TAKERS
                advice = f"only {words(tuple(f'{name}(...)' for name in takers), 'and')} take one"
                return self.report(values.WrongType(expr.span, "a number", found, advice))
            case _:
                assert_never(expr)

    def _ref(self, ref: ast.Ref) -> Typed:
        name, at = ref.name, ref.span
        if name == TOLD:
            return POISON
        if name == FREQUENCY:
            return self._frequency(ref)
        if name == DEPTH:
            return self._depth(ref)
        self.used.add(name)
        if name in self.params:
            param = self.params[name]
            if param is None:
                return POISON
            return TypedNumber(ir.ParamRef(name, at=at), unit=param.unit, whole=param.whole, constant=True)
        if name in self.signals:
            signal = self.signal(name)
            if name in self._of_keys:
                return replace(self._of_keys[name], at=at)
            if signal is None:
                return POISON
            # A rule or another signal reads what the step before left of a late signal.
            return replace(self._types[name], expr=ir.SignalRef(name, at=at), late=False)
        if name in SOURCES:
            source = SOURCES[name]
            return TypedTensor(ir.SourceRef(source.name, at=at), source.per_token, source.late)
        if name in CLOCKS:
            step = name == "step"
            clock = ir.ClockRef(CLOCKS[name], at=at)
            return TypedNumber(clock, Granularity.CHUNK, unit="steps" if step else "", whole=step, measured=True)
        if name in tensors.ATTENTION_MAPS:
            return self.report(tensors.NoAttentionMap(at, name))
        known = (*self.params, *self.signals, *SOURCES, *CLOCKS, DEPTH)
        return self.report(names.UnknownName(at, name, known))

    def _block(self, written: ast.BlockResult) -> Typed:
        found = block_source(written, self._looked_at, self.report)
        if isinstance(found, TypedTensor):
            self._looked_at = found.expr
        return found

    def _frequency(self, ref: ast.Ref) -> Typed:
        if not self._in_gain:
            return self.report(tensors.InvalidGain(ref.span, "it has a value within `gain` only"))
        return TypedNumber(ir.Frequency(at=ref.span), measured=True)

    def _depth(self, ref: ast.Ref) -> Typed:
        if self._open:
            return self.report(layers.NoDepth(ref.span, "a signal is one for all layers"))
        return TypedNumber(ir.Depth(at=ref.span), measured=True)

    def _call(self, expr: ast.Call | ast.Pipe) -> Typed:
        call = self._bound(expr)
        if call is None or not call.complete:
            self.mention(expr)
            return POISON
        if call.function.name == "accumulate":
            return self._account(call)
        return self._calls.call(call, self._given(call))

    def _account(self, call: BoundCall) -> TypedNumber | Poison:
        """`accumulate(x, into = name)`. An account belongs to a cell, so it holds no account itself."""
        into, of = call.values["into"], self.number(call.values["of"])
        if not isinstance(into, ast.Ref):
            return self.report(values.WrongType(into.span, "the name of an account", "another expression", ""))
        if isinstance(of, Poison):
            return of
        if any(isinstance(e, ir.Accumulate) for e in walk(of.expr, self._made)):
            return self.report(values.MisplacedAccumulate(call.span))
        return replace(of, expr=ir.Accumulate(of.expr, into.name, at=call.span), constant=False)

    def options(self, expr: ast.Call | ast.Pipe) -> BoundCall | None:
        """A call whose arguments are words and counts, but for what it is a function of; None after an error."""
        call = self._bound(expr)
        if call is None or not call.complete or not self._calls.options(call):
            return None
        return call

    def _bound(self, expr: ast.WrittenExpr) -> BoundCall | None:
        found = as_call(expr)
        assert found is not None
        call, piped = found
        bound = bind(call, piped, expr.span, self.errors, self._functions)
        if bound is None and piped is not None:
            self.infer(piped)
        return bound

    def _given(self, call: BoundCall) -> dict[str, Typed]:
        """The arguments that are expressions, elaborated; words and lists of numbers are no expressions."""
        given: dict[str, Typed] = {}
        for parameter in call.function.parameters:
            value = call.values.get(parameter.name)
            if value is None or parameter.kind in ("count", "name", "result"):
                continue
            listed = isinstance(value, ast.Text | ast.NumberList) and parameter.kind in LISTED | NAMED
            if not listed and parameter.kind not in ("word", "flag"):
                outside, self._in_gain = self._in_gain, self._in_gain or parameter.kind == "gain"
                given[parameter.name] = self.infer(value)
                self._in_gain = outside
        return given
