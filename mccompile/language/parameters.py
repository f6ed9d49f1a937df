"""Checks of parameters: range, default, unit, name."""

from __future__ import annotations

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language import ast
from mccompile.language.errors import names, values
from mccompile.language.types import in_unit


def check_param(param: ast.ParamDecl, errors: list[Diagnostic]) -> ir.Param | None:
    """The parameter, or None after reporting what is wrong with it."""
    name, default, range_ = param.name.text, param.default, param.range
    if range_ is None:
        proposal = _proposal(default)
        errors.append(values.MissingRange(param.span, name, proposal))
        return None
    unit = _unit(default, range_, errors)
    if unit is None:
        return None
    low, high = range_.low, range_.high
    if low.value >= high.value:
        errors.append(values.EmptyRange(range_.span, name))
        return None
    if not low.value <= default.value <= high.value:
        error = values.DefaultOutsideRange(default.span, name, low.spelling, high.spelling, range_.span)
        errors.append(error)
        return None
    whole = unit != "%" and all(number.value.is_integer() for number in (default, low, high))
    if unit in ("steps", "frames") and not whole:
        errors.append(values.NotWhole(param.span, f"a number of {unit}", literal=False))
        return None
    return ir.Param(name, default.value, low.value, high.value, whole, unit, at=param.span)


def check_name(name: ast.Name, what: str, reserved: frozenset[str], errors: list[Diagnostic]) -> None:
    if name.text in reserved:
        errors.append(names.ReservedName(name.span, name.text, what))


def _unit(default: ast.Number, range_: ast.Range, errors: list[Diagnostic]) -> ast.Unit | None:
    """The one unit of default and range; the range need not repeat `steps` or `frames`, but a `%` it must."""
    for end in (range_.low, range_.high):
        said = {default.unit, end.unit}
        if len(said) == 1:
            continue
        if said == {"%", ""} or (end.unit and default.unit):
            left, right = in_unit(default.unit), in_unit(end.unit)
            errors.append(values.UnitMismatch(end.span, left, right, default.span))
            return None
    return default.unit or range_.high.unit or range_.low.unit


def _proposal(default: ast.Number) -> str:
    if default.unit == "%":
        return " in 0%..100%"
    whole = default.value.is_integer()
    far = 10 * default.value or 1.0
    low, high = min(0.0, far), max(0.0, far)
    return f" in {low:g}..{high:g}" if whole else f" in {low:.1f}..{high:.1f}"
