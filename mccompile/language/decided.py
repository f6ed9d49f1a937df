"""Conditions that hold at every step or at none, whatever is measured: they decide nothing.

A condition is a formula over comparisons. Every comparison is turned into a variable with the few values that matter:
for `x < 0.1` the places of x around 0.1 within its interval; for `x < y` which of the two is larger. Comparisons of the
same expressions share their variable, so that `x < t and x > t` is seen to hold never.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

from mccompile import ir
from mccompile.arithmetic.interval import Interval
from mccompile.language.intervals import Ranges, reach

_MOST = 4096  # assignments that are tried; a larger formula is taken to decide something
_SIGNS = {"lt": (-1,), "le": (-1, 0), "gt": (1,), "ge": (0, 1)}
_MIRRORED: dict[str, str] = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
Variable = tuple[ir.Expr, ...]  # an expression against numbers, or two against each other


@dataclass(frozen=True, slots=True)
class DecidedPart:
    """A part of a condition that is `always` true or never."""

    expr: ir.Expr
    always: bool


def decided_parts(condition: ir.Expr, ranges: Ranges) -> Iterator[DecidedPart]:
    """The largest parts of a condition that are the same at every step."""
    found = decided(condition, ranges)
    if found is not None:
        yield DecidedPart(condition, found)
    elif isinstance(condition, ir.Apply) and condition.op in ("and", "or", "not"):
        for arg in condition.args:
            yield from decided_parts(arg, ranges)


def decided(condition: ir.Expr, ranges: Ranges) -> bool | None:
    """Whether it always (True) or never (False) holds; None where that depends on the step."""
    domains: dict[Variable, list[float]] = {}
    for left, right, _ in _comparisons(condition):
        variable, number = _variable(left, right, ranges)
        points = domains.setdefault(variable, [])
        if number is not None:
            points.append(number)
    for variable, points in domains.items():
        domains[variable] = _around(reach(variable[0], ranges), points) if points else _signs(variable, ranges)
    if math.prod(len(points) for points in domains.values()) > _MOST:
        return None
    names = tuple(domains)
    found = {_holds(condition, dict(zip(names, v, strict=True)), ranges) for v in product(*domains.values())}
    return found.pop() if len(found) == 1 else None


def _comparisons(condition: ir.Expr) -> Iterator[tuple[ir.Expr, ir.Expr, str]]:
    assert isinstance(condition, ir.Apply)
    if condition.op in _SIGNS:
        yield condition.args[0], condition.args[1], condition.op
    else:
        for arg in condition.args:
            yield from _comparisons(arg)


def _number(expr: ir.Expr, ranges: Ranges) -> float | None:
    within = reach(expr, ranges)
    return within.low if within.low == within.high else None


def _variable(left: ir.Expr, right: ir.Expr, ranges: Ranges) -> tuple[Variable, float | None]:
    """What a comparison is about: an expression and the number that it is compared with, or a pair of expressions."""
    for one, other in ((left, right), (right, left)):
        number = _number(other, ranges)
        if number is not None:
            return (one,), number
    return (left, right) if repr(left) <= repr(right) else (right, left), None


def _around(within: Interval, points: list[float]) -> list[float]:
    """The points and places between and beyond them, as far as they lie within the interval."""
    ordered = sorted(set(points))
    between = [(a + b) / 2 for a, b in pairwise(ordered)]
    beyond = [ordered[0] - 1.0, ordered[-1] + 1.0, within.low, within.high]
    return [x for x in {*ordered, *between, *beyond} if within.low <= x <= within.high]


def _signs(pair: Variable, ranges: Ranges) -> list[float]:
    """Which of less (-1), equal (0) and greater (1) the first can be than the second."""
    a, b = pair
    if a == b:
        return [0.0]
    one, other = reach(a, ranges), reach(b, ranges)
    less, more = one.low < other.high, one.high > other.low
    equal = one.low <= other.high and one.high >= other.low
    return [sign for sign, can in ((-1.0, less), (0.0, equal), (1.0, more)) if can]


def _holds(condition: ir.Expr, at: Mapping[Variable, float], ranges: Ranges) -> bool:
    assert isinstance(condition, ir.Apply)
    match condition.op:
        case "and":
            return all(_holds(arg, at, ranges) for arg in condition.args)
        case "or":
            return any(_holds(arg, at, ranges) for arg in condition.args)
        case "not":
            return not _holds(condition.args[0], at, ranges)
        case op:
            left, right = condition.args
            variable, number = _variable(left, right, ranges)
            mirrored = variable[0] != left
            value = at[variable] if number is None else at[variable] - number
            sign = (value > 0) - (value < 0)
            return sign in _SIGNS[_MIRRORED[op] if mirrored else op]
