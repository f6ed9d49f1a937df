"""Which argument of a call goes to which parameter of the function."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.builtins import DISTANCES, FUNCTIONS, Function, Parameter
from mccompile.language.errors import names


@dataclass(frozen=True, slots=True)
class BoundCall:
    """A call with an expression for every parameter but a "past" that is left out.

    `complete` is False if errors left some out.
    """

    function: Function
    values: dict[str, ast.WrittenExpr]
    complete: bool
    span: Span

    def number_list(self, parameter: str) -> tuple[float, ...] | None:
        """The numbers of a list argument, None if it is not a list."""
        value = self.values[parameter]
        return tuple(item.value for item in value.items) if isinstance(value, ast.NumberList) else None

    def count(self, parameter: str) -> int:
        """The whole number that is written out as an argument."""
        value = self.values[parameter]
        assert isinstance(value, ast.Number)
        return int(value.value)

    def word(self, parameter: str) -> str:
        """The word given for an option; the empty string if something else stands there."""
        value = self.values.get(parameter)
        return value.name if isinstance(value, ast.Ref) else ""


def as_call(expr: ast.WrittenExpr) -> tuple[ast.Call, ast.WrittenExpr | None] | None:
    """`f(a)` as (f(a), None) and `x | f(a)` as (f(a), x)."""
    match expr:
        case ast.Call():
            return expr, None
        case ast.Pipe(value=value, call=call):
            return call, value
        case _:
            return None


def bind(
    call: ast.Call, piped: ast.WrittenExpr | None, span: Span, errors: list[Diagnostic], own: frozenset[str]
) -> BoundCall | None:
    """The call with its defaults filled in; None if the function is unknown. Appends what is wrong.

    own: the names of the policy's own functions, whose calls have been replaced.
    """
    function = FUNCTIONS.get(call.function.text)
    if function is None:
        errors.append(names.UnknownFunction(call.function.span, call.function.text, (*FUNCTIONS, *sorted(own))))
        return None
    before = len(errors)
    given = _positional(function, call, piped, errors)
    _by_name(function, call, given, errors)
    for parameter in function.parameters:
        if parameter.name in given:
            continue
        if parameter.kind == "past":
            continue  # left out, it is the value of the step before
        if parameter.default is None:
            missing = names.MissingArgument(span, function.name, parameter.name, function.signature())
            errors.append(missing)
        else:
            given[parameter.name] = _default(parameter, call.span)
    return BoundCall(function, given, len(errors) == before, span)


def _positional(
    function: Function, call: ast.Call, piped: ast.WrittenExpr | None, errors: list[Diagnostic]
) -> dict[str, ast.WrittenExpr]:
    values = [argument.value for argument in call.arguments if argument.name is None]
    values = values if piped is None else [piped, *values]
    for value in values[len(function.parameters) :]:
        errors.append(names.TooManyArguments(value.span, function.name, function.signature()))
    known = values[: len(function.parameters)]
    given = function.parameters[: len(known)]  # the others are given by name, or have their defaults
    return {parameter.name: value for parameter, value in zip(given, known, strict=True)}


def _by_name(
    function: Function, call: ast.Call, given: dict[str, ast.WrittenExpr], errors: list[Diagnostic]
) -> None:
    known = tuple(parameter.name for parameter in function.parameters)
    for argument in call.arguments:
        if argument.name is None:
            continue
        name = argument.name
        if name.text == "since" and function.name in DISTANCES:
            source = call.arguments[0].value.span.text if call.arguments[0].name is None else "x"
            errors.append(names.OldForm(argument.span, "since", f"kept({source})", f"before({source})"))
        elif name.text not in known:
            errors.append(names.UnknownOption(name.span, name.text, function.name, known))
        elif name.text in given:
            errors.append(names.DefinedTwice(name.span, "argument", name.text, given[name.text].span))
        else:
            given[name.text] = argument.value


def _default(parameter: Parameter, span: Span) -> ast.WrittenExpr:
    spelling = parameter.default or ""
    if parameter.kind in ("name", "word", "flag", "index"):
        return ast.Ref(spelling, span)
    if spelling.endswith("%"):
        return ast.Number(float(spelling[:-1]) / 100, "%", spelling, span)
    return ast.Number(float(spelling), "", spelling, span)
