"""What each built-in function requires of its arguments, and the IR that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, cast

from mccompile import ir
from mccompile.arithmetic.fitted import Fitted
from mccompile.arithmetic.operations import LARGEST_POWER, Operator
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.ir import Granularity
from mccompile.language import ast
from mccompile.language.arguments import BoundCall
from mccompile.language.builtins import DISTANCES, REDUCTIONS, SOURCES, Parameter
from mccompile.language.coefficients import SetKind
from mccompile.language.combine import Combining
from mccompile.language.defined import no_clamp
from mccompile.language.demands import Demands
from mccompile.language.errors import layers, names, values
from mccompile.language.pasts import MOST_KEPT, clocked, no_past
from mccompile.language.sets import find_set
from mccompile.language.types import (
    GRANULARITIES,
    POISON,
    Poison,
    Typed,
    TypedNumber,
    TypedTensor,
    described,
    in_unit,
    place,
    word,
)

_WITH_TOKENS = tuple(source.name for source in SOURCES.values() if source.per_token)
_ZERO, _ONE = ir.Const(0.0), ir.Const(1.0)
_NO_EARLIER_OUTPUT = "no earlier block output is kept; `frame_diff(block_output)` measures its motion between frames"


class CallRules:
    """Calls under the parameters of one policy."""

    def __init__(self, demands: Demands, combining: Combining, report: Callable[[Diagnostic], Poison]) -> None:
        self._demands = demands
        self._combining = combining
        self._report = report

    def call(self, call: BoundCall, given: Mapping[str, Typed]) -> Typed:
        """A call of any function but `accumulate`. given: the arguments that are expressions."""
        sound = [self._option(call, parameter, given) for parameter in call.function.parameters]
        if not all(sound):
            return POISON
        name = call.function.name
        if name == "taylor":
            return self._report(layers.NotAStandIn(call.span, "a forecast stands behind `reuse as` only"))
        if name in DISTANCES:
            return self._change(call, given["of"], given.get("then"), DISTANCES[name])
        if name in ("kept", "before"):
            return self._past(call, given["of"])
        if name == "frame_diff":
            return self._motion(call, given["of"])
        if name == "table":
            table = ir.Table(_numbers(call, "table", "values")[0], at=call.span)
            return TypedNumber(table, Granularity.CHUNK, measured=True)
        numbers = {parameter: self._number(found) for parameter, found in given.items()}
        of = numbers["of"]
        if isinstance(of, Poison):
            return POISON
        if name in ("normalise", "min_max"):
            return self._per_frame(call, of, numbers)
        if name == "cumulative":
            return self._cumulative(call, of)
        if name in REDUCTIONS:
            return self._reduced(call, of, REDUCTIONS[name])
        if name == "clamp":
            if not self._combining.defined(no_clamp(numbers["low"], numbers["high"], self._demands.ranges), call.span):
                return POISON
            above = self._combining.arithmetic("max", (of, numbers["low"]), call.span)
            return self._combining.arithmetic("min", (above, numbers["high"]), call.span)
        if name == "polynomial":
            coefficients, origin = _numbers(call, "polynomial", "coefficients")
            fit = ir.Polynomial(of.expr, coefficients, origin=origin, at=call.span)
            return replace(of, expr=fit, unit="", whole=False)
        operands = [numbers[parameter.name] for parameter in call.function.parameters]
        return self._combining.arithmetic(cast(Operator, name), operands, call.span)

    def _number(self, found: Typed) -> TypedNumber | Poison:
        if isinstance(found, TypedNumber | Poison):
            return found
        advice = values.ASK_HOW_FAR if isinstance(found, TypedTensor) else ""
        return self._report(values.WrongType(place(found.expr), "a number", described(found), advice))

    # ---- options ----
    def options(self, call: BoundCall) -> bool:
        """Whether the words and counts of a call are sound."""
        plain = [p for p in call.function.parameters if p.kind in ("word", "flag", "count")]
        return all(self._option(call, p, {}) for p in plain)

    def _option(self, call: BoundCall, parameter: Parameter, given: Mapping[str, Typed]) -> bool:
        """Whether the argument is one of the words, or a share, or the numbers that its parameter asks for."""
        value = call.values.get(parameter.name)
        if value is None:
            return True
        choices = ("yes", "no") if parameter.kind == "flag" else parameter.words
        if choices and call.word(parameter.name) not in choices:
            self._report(names.InvalidWord(value.span, parameter.name, value.span.text, choices))
            return False
        if parameter.kind == "count":
            return self._count(call, parameter)
        if parameter.kind == "share":
            what = f"`{parameter.name}` of `{call.function.name}`"
            found = self._demands.share(self._number(given[parameter.name]), what, value.span)
            return not isinstance(found, Poison)
        if parameter.kind in ("polynomial", "table"):
            return self._list(call, parameter, given)
        return True

    def _count(self, call: BoundCall, parameter: Parameter) -> bool:
        """A literal: how much is kept is settled before any parameter has a value."""
        value, what = call.values[parameter.name], f"`{parameter.name}` of `{call.function.name}`"
        if not isinstance(value, ast.Number) or value.unit:
            self._report(values.WrongType(value.span, "a number that is written out", "another expression", ""))
            return False
        if not value.value.is_integer() or not 1 <= value.value <= MOST_KEPT:
            self._report(values.OutOfBounds(value.span, f"{what}, a whole number,", "1", str(MOST_KEPT)))
            return False
        return True

    def _list(self, call: BoundCall, parameter: Parameter, given: Mapping[str, Typed]) -> bool:
        value, kind = call.values[parameter.name], cast(SetKind, parameter.kind)
        match value:
            case ast.Text():
                found = find_set(kind, value)
                if isinstance(found, Diagnostic):
                    self._report(found)
                return not isinstance(found, Diagnostic)
            case ast.NumberList(items=items):
                if not items:
                    advice = "a list holds at least one number: `[1.5, -0.2]`"
                    self._report(values.WrongType(value.span, "numbers", "an empty list", advice))
                odd = [item for item in items if item.unit]
                for item in odd:
                    self._report(values.WrongType(item.span, "a plain number", in_unit(item.unit), ""))
                return bool(items) and not odd
            case _:
                advice = 'write the numbers, `[1.5, -0.2]`, or the name of a shipped set, `"flux"`'
                other = described(given[parameter.name])
                self._report(values.WrongType(value.span, "a list of numbers", other, advice))
                return False

    # ---- tensors ----
    def _source(self, call: BoundCall, found: Typed) -> TypedTensor | Poison:
        if isinstance(found, TypedTensor | Poison):
            return found
        advice = f"`{call.function.name}` compares tensors: `latent`, `modulation`, ..."
        return self._report(values.WrongType(place(found.expr), "a tensor", described(found), advice))

    def _past(self, call: BoundCall, of: Typed) -> Typed:
        """`kept` or `before`, of a tensor that a distance reads or of a number."""
        if isinstance(of, Poison):
            return POISON
        function = cast("Literal['kept', 'before']", call.function.name)
        n = call.count("n") if function == "kept" else 1
        if isinstance(of, TypedTensor):
            if of.since or n > 1:
                why = "of a tensor, one earlier value is kept: that of the last computation"
                return self._report(values.NoPast(call.span, function, why))
            if of.late and function == "kept":
                why = "a block output differs from that of its last computation only while it is not computed"
                return self._report(values.NoPast(call.span, function, why))
            return replace(of, since="step" if function == "before" else "compute")
        number = self._number(of)
        if isinstance(number, Poison):
            return POISON
        why = no_past(number, self._demands.ranges.signals)
        if why:
            return self._report(values.NoPast(call.span, function, why))
        expr = ir.Before(number.expr, at=call.span) if function == "before" else ir.Kept(number.expr, n, at=call.span)
        return replace(number, expr=expr)

    def _cumulative(self, call: BoundCall, of: TypedNumber) -> Typed:
        signal = self._demands.ranges.signals.get(of.expr.name) if isinstance(of.expr, ir.SignalRef) else None
        inner = of.expr if signal is None else signal.expr
        if not clocked(inner):
            return self._report(values.NotClocked(place(of.expr)))
        how = cast("Literal['sum', 'product']", call.word("by"))
        return replace(of, expr=ir.Cumulative(how, inner, at=call.span), whole=False)

    def _change(self, call: BoundCall, of: Typed, then: Typed | None, distance: ir.Distance) -> Typed:
        source = self._source(call, of)
        if isinstance(source, Poison) or isinstance(then, Poison):
            return POISON
        if source.since:
            return self._report(values.PastFirst(place(source.expr), call.function.name))
        if source.late:
            return self._report(values.NoPast(place(source.expr), call.function.name, _NO_EARLIER_OUTPUT))
        over = GRANULARITIES[call.word("over")]
        if over > Granularity.CHUNK and not source.per_token:
            return self._no_tokens(source, f"`over = {word(over)}`")
        since: Literal["step", "compute"] = "step"
        if then is not None:
            other = self._source(call, then)
            if isinstance(other, Poison):
                return POISON
            if not other.since or other.expr != source.expr:
                name = source.expr.name
                advice = " or ".join(f"`{call.function.name}({name}, {past}({name}))`" for past in ("kept", "before"))
                expected = f"an earlier `{name}`"
                return self._report(values.WrongType(call.values["then"].span, expected, described(other), advice))
            since = other.since
        change = ir.Change(distance, source.expr, since, over, at=call.span)
        return TypedNumber(change, over, late=source.late, measured=True)

    def _motion(self, call: BoundCall, of: Typed) -> Typed:
        source = self._source(call, of)
        if isinstance(source, Poison):
            return POISON
        if source.since:
            return self._report(values.PastFirst(place(source.expr), "frame_diff"))
        if not source.per_token:
            return self._no_tokens(source, "`frame_diff`")
        expr = ir.FrameDiff(source.expr, call.word("relative") == "yes", at=call.span)
        return TypedNumber(expr, Granularity.TOKEN, late=source.late, measured=True)

    def _no_tokens(self, source: TypedTensor, needs: str) -> Poison:
        found = f"`{source.expr.name}` has no tokens"
        return self._report(values.NotPerToken(source.expr.at, needs, found, _WITH_TOKENS))

    # ---- numbers ----
    def _per_frame(self, call: BoundCall, of: TypedNumber, numbers: Mapping[str, TypedNumber | Poison]) -> Typed:
        if of.granularity is not Granularity.TOKEN:
            found, needs = f"one value per {word(of.granularity)}", f"`{call.function.name}`"
            return self._report(values.NotPerToken(of.expr.at, needs, found, _WITH_TOKENS))
        if call.function.name == "normalise":
            by = cast("Literal['mean', 'max']", call.word("by"))
            return replace(of, expr=ir.Normalise(by, of.expr, _ZERO, _ONE, at=call.span), unit="", whole=False)
        what = "`power` of `min_max`"
        floor, power = numbers["floor"], self._demands.constant(numbers["power"], what)
        if isinstance(power, TypedNumber):
            power = self._demands.bounded(power, what, 0.01, LARGEST_POWER, ("0.01", str(LARGEST_POWER)))
        if isinstance(floor, Poison) or isinstance(power, Poison):
            return POISON
        expr = ir.Normalise("min_max", of.expr, floor.expr, power.expr, at=call.span)
        return replace(of, expr=expr, unit="", whole=False)

    def _reduced(self, call: BoundCall, of: TypedNumber, how: ir.Reduction) -> Typed:
        to = GRANULARITIES[call.word("to")]
        if of.granularity <= to:
            return self._report(values.ReduceToFiner(of.expr.at, word(of.granularity), word(to)))
        return replace(of, expr=ir.Reduce(how, of.expr, to, at=call.span), granularity=to, whole=False)


def _numbers(call: BoundCall, kind: SetKind, parameter: str) -> tuple[tuple[float, ...], Fitted | None]:
    """The numbers of a sound argument, and where a named set comes from."""
    value = call.values[parameter]
    found = find_set(kind, value) if isinstance(value, ast.Text) else None
    if found is None or isinstance(found, Diagnostic):
        return call.number_list(parameter) or (), None
    return found.values, found.known
