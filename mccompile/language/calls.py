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
from mccompile.language.builtins import DISTANCES, LISTED, NAMED, REDUCTIONS, ArgumentKind, Parameter
from mccompile.language.coefficients import SetKind
from mccompile.language.combine import Combining
from mccompile.language.defined import no_clamp
from mccompile.language.demands import Demands
from mccompile.language.errors import layers, names, values
from mccompile.language.key_sums import MEASURES, KeyRules
from mccompile.language.pasts import clocked, no_past
from mccompile.language.sets import find_set
from mccompile.language.spread import SPREAD, SpreadRules, drawn_mask
from mccompile.language.tensors import WITH_TOKENS, TensorRules
from mccompile.language.types import (
    GRANULARITIES,
    POISON,
    Poison,
    Typed,
    TypedKeys,
    TypedNumber,
    TypedTensor,
    described,
    in_unit,
    place,
    word,
    written_at,
)

_NUMBERS_OR_SET = ("a list of numbers", 'write the numbers, `[1.5, -0.2]`, or the name of a shipped set, `"flux"`')
_FORMS: Mapping[ArgumentKind, tuple[str, str]] = {  # what an argument has to be, and how it is written
    "polynomial": _NUMBERS_OR_SET,
    "table": _NUMBERS_OR_SET,
    "list": ("a list of numbers", "write the numbers, `[1.5, -0.2]`"),
    "mask": ("the name of a mask", 'a mask is drawn in a file: `mask("masks.toml:face")`'),
}
_ZERO, _ONE = ir.Const(0.0), ir.Const(1.0)


class CallRules:
    """Calls under the parameters of one policy."""

    def __init__(self, demands: Demands, combining: Combining, report: Callable[[Diagnostic], Poison]) -> None:
        self._demands = demands
        self._combining = combining
        self._report = report
        self._tensors = TensorRules(demands, report)
        self._spread = SpreadRules(demands, combining, report)
        self.keys = KeyRules(demands, combining, report)

    def call(self, call: BoundCall, given: Mapping[str, Typed]) -> Typed:
        """A call of any function but `accumulate`. given: the arguments that are expressions."""
        sound = [self._option(call, parameter, given) for parameter in call.function.parameters]
        if not all(sound):
            return POISON
        name = call.function.name
        if name in ("low_pass", "high_pass"):
            why = "frequencies are split behind `reuse as` of `layers model` only; `filter` weighs those of a source"
            return self._report(layers.NotAStandIn(call.span, why, of_model=True))
        if name in ("taylor", "chebyshev"):
            return self._report(layers.NotAStandIn(call.span, "a forecast stands behind `reuse as` only"))
        if name == "nearest":
            return self._report(layers.NoNearest(call.span, "it stands behind `reuse as` of layers only"))
        if name in DISTANCES:
            return self._tensors.change(call, given["of"], given.get("then"), DISTANCES[name])
        if name == "magnitude":
            return self._tensors.magnitude(call, given["of"])
        if name == "filter":
            return self._tensors.filtered(call, given["of"], self._number(given["gain"]))
        if name in ("kept", "before"):
            return self._past(call, given["of"])
        if name == "frame_diff":
            return self._tensors.motion(call, given["of"])
        if name == "deviation":
            return self._tensors.deviation(call, given["of"])
        if name == "similarity":
            return self._tensors.similarity(call, given["of"])
        if name in MEASURES:
            return self.keys.measure(call)
        if name == "dilate" and isinstance(given["of"], TypedKeys):
            return self.keys.dilated(call, given["of"])
        numbers = {parameter: self._number(found) for parameter, found in given.items()}
        if name == "table":
            return self._table(call, numbers["at"])
        if name == "mask":
            return drawn_mask(_numbers(call, "mask", "drawn")[0], call.span)
        if name in SPREAD:
            return self._spread.call(call, numbers)
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
        return self._report(values.WrongType(written_at(found), "a number", described(found), advice))

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
        if parameter.kind in LISTED | NAMED:
            return self._list(call, parameter, given)
        return True

    def _count(self, call: BoundCall, parameter: Parameter) -> bool:
        """A literal: how much is kept is settled before any parameter has a value."""
        value, what = call.values[parameter.name], f"`{parameter.name}` of `{call.function.name}`"
        if not isinstance(value, ast.Number) or value.unit:
            self._report(values.WrongType(value.span, "a number that is written out", "another expression", ""))
            return False
        if not value.value.is_integer() or not 1 <= value.value <= parameter.most:
            self._report(values.OutOfBounds(value.span, f"{what}, a whole number,", "1", str(parameter.most)))
            return False
        return True

    def _list(self, call: BoundCall, parameter: Parameter, given: Mapping[str, Typed]) -> bool:
        value, kind = call.values[parameter.name], cast(SetKind, parameter.kind)
        match value:
            case ast.Text() if parameter.kind in NAMED:
                found = find_set(kind, value)
                if isinstance(found, Diagnostic):
                    self._report(found)
                return not isinstance(found, Diagnostic)
            case ast.NumberList(items=items) if parameter.kind in LISTED:
                if not items:
                    advice = "a list holds at least one number: `[1.5, -0.2]`"
                    self._report(values.WrongType(value.span, "numbers", "an empty list", advice))
                odd = [item for item in items if item.unit] if parameter.kind in NAMED else []
                for item in odd:
                    self._report(values.WrongType(item.span, "a plain number", in_unit(item.unit), ""))
                return bool(items) and not odd
            case _:
                expected, advice = _FORMS[parameter.kind]
                other = "a list" if isinstance(value, ast.NumberList) else "a string"
                other = described(given[parameter.name]) if parameter.name in given else other
                self._report(values.WrongType(value.span, expected, other, advice))
                return False

    def _past(self, call: BoundCall, of: Typed) -> Typed:
        """`kept` or `before`, of a tensor that a distance reads or of a number."""
        if isinstance(of, Poison):
            return POISON
        function = cast("Literal['kept', 'before']", call.function.name)
        n = call.count("n") if function == "kept" else 1
        if isinstance(of, TypedTensor):
            return self._tensors.past(call, of)
        number = self._number(of)
        if isinstance(number, Poison):
            return POISON
        why = no_past(number, self._demands.ranges.signals)
        if why:
            return self._report(values.NoPast(call.span, function, why))
        expr = ir.Before(number.expr, at=call.span) if function == "before" else ir.Kept(number.expr, n, at=call.span)
        return replace(number, expr=expr)

    def _table(self, call: BoundCall, at: TypedNumber | Poison) -> Typed:
        """The entry of the chunk's own step, or the one nearest to another number."""
        if isinstance(at, Poison):
            return POISON
        numbers = _numbers(call, "table", "values")[0]
        if isinstance(at.expr, ir.ClockRef) and at.expr.what == "step":
            return TypedNumber(ir.Table(numbers, at=call.span), Granularity.CHUNK, measured=True)
        return self._spread.at_index(call, numbers, at)

    def _cumulative(self, call: BoundCall, of: TypedNumber) -> Typed:
        signal = self._demands.ranges.signals.get(of.expr.name) if isinstance(of.expr, ir.SignalRef) else None
        inner = of.expr if signal is None else signal.expr
        if not clocked(inner):
            return self._report(values.NotClocked(place(of.expr)))
        how = cast("Literal['sum', 'product']", call.word("by"))
        return replace(of, expr=ir.Cumulative(how, inner, at=call.span), whole=False)

    # ---- numbers ----
    def _per_frame(self, call: BoundCall, of: TypedNumber, numbers: Mapping[str, TypedNumber | Poison]) -> Typed:
        if of.granularity is not Granularity.TOKEN:
            found, needs = f"one value per {word(of.granularity)}", f"`{call.function.name}`"
            return self._report(values.NotPerToken(of.expr.at, needs, found, WITH_TOKENS))
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
