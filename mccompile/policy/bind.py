"""Binds a policy: each of its parameters gets a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.ir import Expr, Forecast, PolicyIR
from mccompile.language.walk import merges, rules_of
from mccompile.policy.errors import (
    CountInvalid,
    ParameterNotWhole,
    ParameterOutOfRange,
    ParameterUnit,
    UnknownParameter,
)
from mccompile.policy.evaluate import StaticMoment, evaluate


class Quantity(float):
    """A value as a person wrote it, with its unit: `20%`, `5 steps`. As a number, a percentage is a share."""

    written: str
    unit: str

    @classmethod
    def of(cls, number: float, unit: str, written: str) -> Quantity:
        """unit: "", "%", "steps" or "frames"."""
        made = cls(number / 100 if unit == "%" else number)
        made.written, made.unit = written, unit
        return made

    def fits(self, param: ir.Param) -> bool:
        """The units of the language: a percentage is written as one, and what counts something need not say what."""
        return self.unit == param.unit or (not self.unit and param.unit != "%")


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back attention reads: the keys of so many chunks, the token's own among them, and of the first `sink`.

    keys: of the chunks between, as many as so many chunks hold; 0: none. worth: the factors by which they are picked.
    """

    chunks: int
    sink: int
    keys: int = 0
    worth: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy and the values of all its parameters (in the order of their declaration, all in range).

    depth: as one group of regions sees the policy, where its block stands in the model (ir.Region). merges: in its
    regions, tokens that are not computed take from those that are (`reuse as nearest`). stand_ins: what its layers say
    that stands in for kept results.
    """

    ir: PolicyIR  # hides the module of this name in the class body
    values: Mapping[str, float] = field(hash=False)
    depth: float | None = None
    merges: bool = False
    stand_ins: tuple[Forecast, ...] = ()

    def number(self, expr: Expr) -> np.float32:
        """The value of an expression of parameters and constants. Raises ValueError for any other."""
        params = {name: np.float32(v) for name, v in self.values.items()}
        signals = {s.name: s for s in self.ir.signals}
        return np.float32(evaluate(expr, StaticMoment(params, signals, None, 0, {}, None)))

    def whole(self, expr: Expr) -> int:
        """A count: the value of an expression that `bind` has found to be whole."""
        return int(self.number(expr))

    @property
    def reach(self) -> Reach | None:
        """How far back attention reads; None where it reads all that it may."""
        window, keys = self.ir.cache.window, self.ir.cache.keys
        if window is None:
            return None
        near = Reach(self.whole(window.chunks), self.whole(window.sink))
        if keys is None:
            return near
        worth = tuple(float(self.number(term.factor)) for term in keys.by.terms)
        return replace(near, keys=self.whole(keys.chunks), worth=worth)


def parameters_of(
    policy: ir.PolicyIR, values: Mapping[str, float], policies: Sequence[ir.PolicyIR]
) -> dict[str, float]:
    """Those of the values that are of a policy, and those that none of the policies has (`bind` refuses them)."""
    own = {param.name for param in policy.params}
    known = {param.name for each in policies for param in each.params}
    return {name: value for name, value in values.items() if name in own or name not in known}


def bind(policy: ir.PolicyIR, overrides: Mapping[str, float]) -> BoundPolicy:
    """The policy with its default parameters, except `overrides`.

    Raises PolicyError with all of: unknown names (MC0301), values out of range (MC0302), fractions where whole
    numbers are due (MC0303), counts of steps or refreshes that are not counts (MC0304), units that are not the
    parameter's (MC0309); TypeError for a value
    that is no number.
    """
    known = tuple(p.name for p in policy.params)
    problems: list[Diagnostic] = [
        UnknownParameter(None, policy.name, name, known) for name in overrides if name not in known
    ]
    values: dict[str, float] = {}
    for param in policy.params:
        value = _real(policy, param.name, overrides.get(param.name, param.default))
        values[param.name] = value
        given = overrides.get(param.name)
        if isinstance(given, Quantity) and not given.fits(param):
            problems.append(ParameterUnit(param.at, policy.name, param.name, given.written, param.unit))
        elif not param.low <= value <= param.high:
            limits = (param.low, param.high, param.unit)
            problems.append(ParameterOutOfRange(param.at, policy.name, param.name, value, *limits))
        elif param.whole and not value.is_integer():
            problems.append(ParameterNotWhole(param.at, policy.name, param.name, value))
    bound = BoundPolicy(policy, values, merges=merges(policy.regions))
    if not problems:
        problems += _counts(bound)
    if problems:
        raise PolicyError(problems)
    return bound


def _real(policy: PolicyIR, name: str, value: float) -> float:
    if not isinstance(value, Real):  # callers in Python may pass anything
        raise TypeError(f"parameter `{name}` of policy `{policy.name}` must be a number, got {value!r}")
    return float(value)


def _counts(bound: BoundPolicy) -> list[Diagnostic]:
    problems: list[Diagnostic] = []
    window, keys = bound.ir.cache.window, bound.ir.cache.keys
    if window is not None:
        picked = [] if keys is None else [(keys.chunks, 1)]
        problems += _short(bound, "the cache", [(window.chunks, 1), (window.sink, 0), *picked])
    for phase in bound.ir.phases:
        wanted: list[tuple[ir.Expr, int]] = []
        if isinstance(phase.span, ir.ForSteps | ir.UntilRefreshes | ir.LastSteps):
            wanted.append((phase.span.n, 0))
        for rule in rules_of(phase):
            if isinstance(rule, ir.Every):
                wanted.append((rule.n, 1))
            all_at = rule.all_at if isinstance(rule, ir.Reuse | ir.Top) else None
            if all_at is not None and all_at.every is not None:
                wanted.append((all_at.every, 1))
        problems += _short(bound, f"phase `{phase.name}`", wanted)
    return problems


def _short(bound: BoundPolicy, place: str, wanted: Sequence[tuple[ir.Expr, int]]) -> list[Diagnostic]:
    """The counts that are no whole numbers, or less than they may be."""
    numbers = [(expr, float(bound.number(expr)), least) for expr, least in wanted]
    return [
        CountInvalid(expr.at, bound.ir.name, place, value, least)
        for expr, value, least in numbers
        if not (value.is_integer() and value >= least)
    ]
