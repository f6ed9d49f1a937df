"""What may be searched: the declared parameters of policies, and points in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna

from mccompile import ir

DIGITS = 3  # significant digits of a searched number: what is written into a policy is what ran


@dataclass(frozen=True, slots=True)
class SearchedRange:
    """A searched parameter: low and high as its policy declares them, steps no further than the run has."""

    name: str
    low: float
    high: float
    whole: bool
    default: float


@dataclass(frozen=True, slots=True)
class Point:
    """A policy of the search and the values of its searched parameters."""

    policy: str
    values: Mapping[str, float]


def ranges_of(policy: ir.PolicyIR, fixed: Mapping[str, float], steps: int | None) -> tuple[SearchedRange, ...]:
    """The parameters that are searched: all but the fixed ones."""
    found = []
    for param in policy.params:
        if param.name in fixed:
            continue
        high = min(param.high, float(steps)) if param.unit == "steps" and steps is not None else param.high
        if param.low < high:
            found.append(SearchedRange(param.name, param.low, high, param.whole, min(param.default, high)))
    return tuple(found)


def default(policy: str, ranges: Sequence[SearchedRange]) -> Point:
    """The point of the declared defaults."""
    return Point(policy, {r.name: r.default for r in ranges})


def suggest(trial: optuna.Trial, spaces: Mapping[str, Sequence[SearchedRange]]) -> Point:
    """The point that a trial asks for."""
    policy = str(trial.suggest_categorical("policy", list(spaces)))
    values = {}
    for r in spaces[policy]:
        name = f"{policy}.{r.name}"
        if r.whole:
            values[r.name] = float(trial.suggest_int(name, int(r.low), int(r.high)))
        else:
            values[r.name] = rounded(trial.suggest_float(name, r.low, r.high), r)
    return Point(policy, values)


def asked(point: Point) -> dict[str, object]:
    """The point by the names of Optuna's parameters."""
    return {"policy": point.policy, **{f"{point.policy}.{k}": v for k, v in point.values.items()}}


def rounded(value: float, r: SearchedRange) -> float:
    """The value in three significant digits, within its range."""
    return min(max(float(f"{value:.{DIGITS}g}"), r.low), r.high)


def grid(spaces: Mapping[str, Sequence[SearchedRange]], each: int) -> Iterator[Point]:
    """Every combination of `each` evenly spaced values of each parameter, ends included, policy after policy."""
    for policy, ranges in spaces.items():
        axes = [_axis(r, each) for r in ranges]
        for values in itertools.product(*axes):
            yield Point(policy, {r.name: v for r, v in zip(ranges, values, strict=True)})


def _axis(r: SearchedRange, each: int) -> list[float]:
    steps = [r.low + (r.high - r.low) * i / max(1, each - 1) for i in range(each)]
    return list(dict.fromkeys(float(round(v)) if r.whole else rounded(v, r) for v in steps))
