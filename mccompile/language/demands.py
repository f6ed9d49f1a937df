"""What places in a rule or a call demand of a number: known before the run, a share, whole, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mccompile.language import ast
from mccompile.language.errors import values
from mccompile.language.types import NumberType, Poison, described

if TYPE_CHECKING:
    from mccompile.language.expressions import Typing

_MANY = 1_000_000


def constant(typing: Typing, expr: ast.Expr, what: str) -> NumberType | Poison:
    """A number that parameters and literals alone decide."""
    found = typing.number(expr)
    if isinstance(found, NumberType) and not found.constant:
        return typing.report(values.NotConstant(expr.span, what))
    return found


def share(typing: Typing, expr: ast.Expr, what: str) -> None:
    """A percentage between 0% and 100%."""
    found = constant(typing, expr, what)
    if isinstance(found, Poison):
        return
    if found.unit != "%":
        proposal = f"{expr.value * 100:g}%" if isinstance(expr, ast.Number) and expr.value <= 1 else None
        if isinstance(expr, ast.Number) and expr.value > 1:
            proposal = f"{expr.spelling}%"
        typing.report(values.NotAShare(expr.span, what, described(found), proposal))
    else:
        _bounded(typing, expr, what, 0.0, 1.0, ("0%", "100%"))


def whole(typing: Typing, expr: ast.Expr, what: str, least: int) -> None:
    """A whole number of steps, at least `least`."""
    found = constant(typing, expr, what)
    if isinstance(found, Poison):
        return
    if found.unit not in ("", "steps"):
        typing.report(values.WrongType(expr.span, "a count", described(found), ""))
    elif not found.whole:
        typing.report(values.NotWhole(expr.span, what, literal=isinstance(expr, ast.Number)))
    else:
        _bounded(typing, expr, what, least, _MANY, (str(least), f"{_MANY:,}"))


def interval(typing: Typing, expr: ast.Expr) -> tuple[float, float] | None:
    """The values that a literal or a parameter can take; None for any other expression."""
    match expr:
        case ast.Number(value=value):
            return value, value
        case ast.Ref(name=name):
            return typing.ranges.get(name)
        case _:
            return None


def reach_words(expr: ast.Expr, reach: tuple[float, float]) -> str:
    """What a value out of bounds is: a literal, or a parameter whose range is too wide."""
    return "outside" if isinstance(expr, ast.Number) else f"may be {reach[0]:g} to {reach[1]:g}"


def _bounded(
    typing: Typing, expr: ast.Expr, what: str, low: float, high: float, said: tuple[str, str]
) -> None:
    reach = interval(typing, expr)
    if reach is not None and not low <= reach[0] <= reach[1] <= high:
        typing.report(values.OutOfBounds(expr.span, what, *said, reach_words(expr, reach)))
