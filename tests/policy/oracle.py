"""A slow simulation of one chunk, written apart from the package: four tokens, two frames of two positions.

It knows all data, so it decides each step; the planner, which knows the static part, must never contradict it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mccompile import ir
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import Grid

TOKENS = 4
F32 = np.float32


@dataclass
class Done:
    """What happened at one step."""

    phase: str
    account: np.ndarray  # [TOKENS], before the step
    computed: np.ndarray  # [TOKENS] bool


@dataclass
class Chunk:
    """The state of the chunk. data[change][step] is a number per token, or one for all."""

    bound: BoundPolicy
    grid: Grid
    data: Mapping[ir.Change, np.ndarray]
    account: np.ndarray = field(default_factory=lambda: np.zeros(TOKENS, F32))
    streak: np.ndarray = field(default_factory=lambda: np.zeros(TOKENS, int))
    total: np.ndarray = field(default_factory=lambda: np.zeros(TOKENS, int))
    full: int = 0  # the last step that computed everything
    used: dict[str, int] = field(default_factory=dict)  # steps of each phase
    refreshed: dict[str, int] = field(default_factory=dict)

    def run(self) -> list[Done]:
        return [self.step(i) for i in range(self.grid.steps)]

    def value(self, expr: ir.Expr, step: int) -> np.ndarray:
        """One number per token."""
        ones = np.ones(TOKENS, F32)
        match expr:
            case ir.Const(value):
                return ones * F32(value)
            case ir.ParamRef(name):
                return ones * F32(self.bound.values[name])
            case ir.Change():
                return ones * self.data[expr][step]
            case ir.ClockRef("step"):
                return ones * F32(step)
            case ir.Accumulate(of):
                return self.account + self.value(of, step)
            case ir.Apply(op, (a, b)):
                table: dict[str, Callable[..., np.ndarray]] = {
                    "lt": np.less, "add": np.add, "mul": np.multiply, "ge": np.greater_equal, "or": np.logical_or
                }  # fmt: skip
                return table[op](self.value(a, step), self.value(b, step))
            case _:
                raise NotImplementedError(expr)

    def one(self, expr: ir.Expr | None, step: int) -> float | None:
        return None if expr is None else float(self.value(expr, step)[0])

    def phase(self, step: int) -> ir.Phase:
        for p in self.bound.ir.phases:
            if isinstance(p.span, ir.LastSteps) and self.grid.steps - step <= self.one(p.span.n, step):
                return p
        for p in self.bound.ir.phases:
            if isinstance(p.span, ir.Between):
                assert p.span.clock == ir.ClockRef("step")
                if self.one(p.span.low, step) <= step < self.one(p.span.high, step):
                    return p
        for p in self.bound.ir.phases:
            if isinstance(p.span, ir.ForSteps) and self.used.get(p.name, 0) < self.one(p.span.n, step):
                return p
            if isinstance(p.span, ir.UntilRefreshes) and self.refreshed.get(p.name, 0) < self.one(p.span.n, step):
                return p
            if isinstance(p.span, ir.Rest):
                return p
        raise AssertionError("no phase")

    def step(self, step: int) -> Done:
        phase, before = self.phase(step), self.account.copy()
        fired, grown = self.rule(phase, step)
        cache = self.bound.ir.cache
        late = cache.refresh_every is not None and step - self.full >= cache.refresh_every
        if all_due(phase, self.used.get(phase.name, 0), step):
            fired = np.ones(TOKENS, bool)
        if step == 0 or late or (cache.refresh_last and step == self.grid.steps - 1):
            fired = np.ones(TOKENS, bool)
        self.account = np.where(fired, F32(0), grown)
        self.streak = np.where(fired, 0, self.streak + 1)
        self.total = np.where(fired, self.total, self.total + 1)
        self.full = step if fired.all() else self.full
        self.used[phase.name] = self.used.get(phase.name, 0) + 1
        self.refreshed[phase.name] = self.refreshed.get(phase.name, 0) + int(fired.any())
        return Done(phase.name, before, fired)

    def rule(self, phase: ir.Phase, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens to compute, accounts if they are not)."""
        rule = phase.rule
        nothing, everything = np.zeros(TOKENS, bool), np.ones(TOKENS, bool)
        match rule:
            case ir.Compute():
                return everything, self.account
            case ir.Every(n):
                due = self.used.get(phase.name, 0) % self.one(n, step) == 0
                return everything if due else nothing, self.account
            case ir.StepMask(compute):
                return everything if compute[step] else nothing, self.account
            case ir.Top(share, by):
                order = np.argsort(-self.value(by, step), kind="stable")
                top = nothing.copy()
                top[order[: int(np.ceil(self.one(share, step) * TOKENS))]] = True
                return top, self.account
            case ir.Reuse():
                return self.reuse(rule, step)

    def reuse(self, rule: ir.Reuse, step: int) -> tuple[np.ndarray, np.ndarray]:
        if rule.granularity <= ir.Granularity.CHUNK:
            self.account = np.full(TOKENS, self.account.max())
        fired = ~self.value(rule.condition, step)
        grown = self.account + next((self.value(e.of, step) for e in sums(rule.condition)), F32(0))
        if rule.vote is not None:
            share = fired.reshape(2, 2).mean(0)  # over the two frames
            fired = np.tile(share > self.one(rule.vote, step), 2)
        if rule.hold_below is not None and 0 < fired.mean() < self.one(rule.hold_below, step):
            fired = np.zeros(TOKENS, bool)
        if rule.all_above is not None and fired.mean() > self.one(rule.all_above, step):
            fired = np.ones(TOKENS, bool)
        if rule.max_consecutive is not None:
            fired = fired | (self.streak >= self.one(rule.max_consecutive, step))
        if rule.max_total is not None:
            fired = fired | (self.total >= self.one(rule.max_total, step))
        if rule.max_reused is not None:
            most = int(self.one(rule.max_reused, step) * TOKENS)
            for token in np.argsort(-grown, kind="stable"):
                if (~fired).sum() > most and not fired[token]:
                    fired = fired.copy()
                    fired[token] = True
        return fired, grown


def all_due(phase: ir.Phase, steps: int, step: int) -> bool:
    """Whether a guard computes everything at this step; steps: of the phase so far."""
    all_at = phase.rule.all_at if isinstance(phase.rule, ir.Reuse | ir.Top) else None
    if all_at is None:
        return False
    return step in all_at.steps or (isinstance(all_at.every, ir.Const) and steps % all_at.every.value == 0)


def sums(expr: ir.Expr) -> list[ir.Accumulate]:
    if isinstance(expr, ir.Accumulate):
        return [expr]
    return [s for a in expr.args for s in sums(a)] if isinstance(expr, ir.Apply) else []
