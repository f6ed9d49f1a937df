"""What may be searched: the choices and the declared parameters of policies, and points in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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
    """A policy of the search, the values of its searched parameters, and the alternatives of its choices."""

    policy: str
    values: Mapping[str, float]
    picks: Mapping[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """The policy under its picks, by name: what is compiled once and serves all values of the parameters."""
        return variant(self.policy, self.picks)


def variant(policy: str, picks: Mapping[str, str]) -> str:
    """The name of a policy under picks: `example[cell=token]`, or its own name where it has no choice."""
    return f"{policy}[{','.join(f'{n}={w}' for n, w in picks.items())}]" if picks else policy


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched of a policy. choices: the alternatives of each. ranges: by variant, in the policy's order."""

    choices: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, Sequence[SearchedRange]]

    def ways(self) -> Iterator[dict[str, str]]:
        """Every combination of alternatives, the first of each first."""
        for words in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, words, strict=True))


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


def default(policy: str, space: Space) -> Point:
    """The point of the declared defaults and of the first alternatives."""
    picks = next(space.ways())
    return Point(policy, {r.name: r.default for r in space.ranges[variant(policy, picks)]}, picks)


def suggest(trial: optuna.Trial, spaces: Mapping[str, Space]) -> Point:
    """The point that a trial asks for."""
    policy = str(trial.suggest_categorical("policy", list(spaces)))
    space = spaces[policy]
    picks = {n: str(trial.suggest_categorical(f"{policy}.{n}", words)) for n, words in space.choices.items()}
    values = {}
    for r in space.ranges[variant(policy, picks)]:
        name = f"{policy}.{r.name}"
        if r.whole:
            values[r.name] = float(trial.suggest_int(name, int(r.low), int(r.high)))
        else:
            values[r.name] = rounded(trial.suggest_float(name, r.low, r.high), r)
    return Point(policy, values, picks)


def asked(point: Point) -> dict[str, object]:
    """The point by the names of Optuna's parameters."""
    own = {**point.picks, **point.values}
    return {"policy": point.policy, **{f"{point.policy}.{k}": v for k, v in own.items()}}


def rounded(value: float, r: SearchedRange) -> float:
    """The value in three significant digits, within its range."""
    return min(max(float(f"{value:.{DIGITS}g}"), r.low), r.high)


def grid(spaces: Mapping[str, Space], each: int) -> Iterator[Point]:
    """Every combination of alternatives and of `each` evenly spaced values of each parameter, ends included."""
    for policy, space in spaces.items():
        for picks in space.ways():
            ranges = space.ranges[variant(policy, picks)]
            for values in itertools.product(*(_axis(r, each) for r in ranges)):
                yield Point(policy, {r.name: v for r, v in zip(ranges, values, strict=True)}, picks)


def _axis(r: SearchedRange, each: int) -> list[float]:
    steps = [r.low + (r.high - r.low) * i / max(1, each - 1) for i in range(each)]
    return list(dict.fromkeys(float(round(v)) if r.whole else rounded(v, r) for v in steps))
