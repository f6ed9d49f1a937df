"""Types of calls: what each built-in function demands and yields."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mccompile.language import ast
from mccompile.language.arguments import BoundCall, as_call, bind
from mccompile.language.builtins import DISTANCES, REDUCTIONS, SOURCES, Parameter
from mccompile.language.coefficients import set_names
from mccompile.language.demands import constant, share
from mccompile.language.errors import names, values
from mccompile.language.types import (
    GRANULARITIES,
    POISON,
    Granularity,
    NumberType,
    Poison,
    SourceType,
    Type,
    described,
)

if TYPE_CHECKING:
    from mccompile.language.expressions import Typing

_WITH_TOKENS = tuple(source.name for source in SOURCES.values() if source.per_token)


class CallTyping:
    """The part of `Typing` that knows the functions."""

    def __init__(self, typing: Typing) -> None:
        self._typing = typing

    def infer(self, expr: ast.Call | ast.Pipe) -> Type:
        call = self._bound(expr)
        if call is None or not call.complete:
            self._typing.mention(expr)
            return POISON
        if call.function.name == "accumulate":
            self._typing.mention(expr)
            return self._typing.report(values.MisplacedAccumulate(expr.span))
        return self._result(call)

    def accumulated(self, expr: ast.Expr) -> NumberType | Poison | None:
        """The type of `accumulate(x)` where it may stand; None if `expr` is another expression."""
        found = as_call(expr)
        if found is None or found[0].function.text != "accumulate":
            return None
        call = self._bound(expr)
        if call is None or not call.complete:
            self._typing.mention(expr)
            return POISON
        of = self._typing.number(call.values["of"])
        return of if isinstance(of, Poison) else dataclasses.replace(of, constant=False, account=True)

    def _bound(self, expr: ast.Expr) -> BoundCall | None:
        found = as_call(expr)
        assert found is not None
        call, piped = found
        bound = bind(call, piped, expr.span, self._typing.errors)
        if bound is None and piped is not None:
            self._typing.infer(piped)
        return bound

    def _result(self, call: BoundCall) -> Type:
        before = len(self._typing.errors)
        for parameter in call.function.parameters:
            self._check_option(call, parameter)
        if len(self._typing.errors) > before:
            if "of" in call.values:
                self._typing.infer(call.values["of"])
            return POISON
        name = call.function.name
        if name in DISTANCES:
            return self._change(call)
        if name == "frame_diff":
            return self._motion(call)
        if name == "table":
            return NumberType(Granularity.CHUNK)
        of = self._typing.number(call.values["of"])
        if isinstance(of, Poison):
            return POISON
        if name in ("normalise", "min_max"):
            return self._per_frame(call, of)
        if name in REDUCTIONS:
            return self._reduced(call, of)
        if name in ("max", "min", "clamp"):
            return self._limited(call, of)
        if name == "polynomial":
            return dataclasses.replace(of, unit="", whole=False)
        return dataclasses.replace(of, whole=of.whole and name == "abs")

    def _check_option(self, call: BoundCall, parameter: Parameter) -> None:
        value = call.values[parameter.name]
        choices = ("yes", "no") if parameter.kind == "flag" else parameter.words
        if choices and call.word(parameter.name) not in choices:
            found = value.span.text
            self._typing.report(names.InvalidWord(value.span, parameter.name, found, choices))
        elif parameter.kind == "share":
            share(self._typing, value, f"`{parameter.name}` of `{call.function.name}`")
        elif parameter.kind in ("polynomial", "table"):
            self._numbers(value, "polynomial" if parameter.kind == "polynomial" else "table")

    def _numbers(self, value: ast.Expr, kind: str) -> None:
        known = set_names("polynomial" if kind == "polynomial" else "table")
        match value:
            case ast.Text(value=name) if name not in known:
                self._typing.report(names.UnknownSet(value.span, kind, name, known))
            case ast.Text():
                return
            case ast.NumberList(items=items):
                if not items:
                    advice = "a list holds at least one number: `[1.5, -0.2]`"
                    self._typing.report(values.WrongType(value.span, "numbers", "an empty list", advice))
                for item in items:
                    if item.unit:
                        found = described(NumberType(unit=item.unit))
                        self._typing.report(values.WrongType(item.span, "a plain number", found, ""))
            case _:
                advice = 'write the numbers, `[1.5, -0.2]`, or the name of a shipped set, `"flux"`'
                found = described(self._typing.infer(value))
                self._typing.report(values.WrongType(value.span, "a list of numbers", found, advice))

    def _source(self, call: BoundCall) -> SourceType | Poison:
        value = call.values["of"]
        found = self._typing.infer(value)
        if isinstance(found, SourceType | Poison):
            return found
        advice = f"`{call.function.name}` compares tensors: `latent`, `modulation`, ..."
        return self._typing.report(values.WrongType(value.span, "a tensor", described(found), advice))

    def _change(self, call: BoundCall) -> Type:
        source = self._source(call)
        if isinstance(source, Poison):
            return POISON
        over = GRANULARITIES[call.word("over")]
        if over > Granularity.CHUNK and not source.per_token:
            needs = f"`over = {over.word}`"
            return self._typing.report(self._no_tokens(call, needs))
        if source.late and call.word("since") == "compute":
            span = call.values["since"].span
            why = "a block output differs from that of its last computation only while it is not computed"
            return self._typing.report(names.InvalidWord(span, "since", "compute", ("step",), why))
        return NumberType(over, late=source.late)

    def _motion(self, call: BoundCall) -> Type:
        source = self._source(call)
        if isinstance(source, Poison):
            return POISON
        if not source.per_token:
            return self._typing.report(self._no_tokens(call, "`frame_diff`"))
        return NumberType(Granularity.TOKEN, late=source.late)

    def _no_tokens(self, call: BoundCall, needs: str) -> values.NotPerToken:
        value = call.values["of"]
        return values.NotPerToken(value.span, needs, f"`{value.span.text}` has no tokens", _WITH_TOKENS)

    def _per_frame(self, call: BoundCall, of: NumberType) -> Type:
        if of.granularity is not Granularity.TOKEN:
            span, found = call.values["of"].span, f"one value per {of.granularity.word}"
            needs = f"`{call.function.name}`"
            return self._typing.report(values.NotPerToken(span, needs, found, _WITH_TOKENS))
        if call.function.name == "min_max":
            power = constant(self._typing, call.values["power"], "`power` of `min_max`")
            if isinstance(power, Poison):
                return POISON
        return dataclasses.replace(of, unit="", whole=False)

    def _reduced(self, call: BoundCall, of: NumberType) -> Type:
        to = GRANULARITIES[call.word("to")]
        if of.granularity <= to:
            found = of.granularity.word
            return self._typing.report(values.ReduceToFiner(call.values["of"].span, found, to.word))
        return dataclasses.replace(of, granularity=to, whole=False)

    def _limited(self, call: BoundCall, of: NumberType) -> Type:
        found: NumberType | Poison = of
        for name in ("other", "low", "high"):
            if name in call.values and isinstance(found, NumberType):
                other = self._typing.number(call.values[name])
                if isinstance(other, Poison):
                    return POISON
                first, second = call.values["of"], call.values[name]
                found = self._typing.combined(first, found, second, other, same_unit=True)
        return found
