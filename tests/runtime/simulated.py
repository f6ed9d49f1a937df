"""A slow simulation of the chunks of a run, written apart from the package: it sees the sources alone.

It knows what a policy's words mean, one chunk of one sample at a time, and nothing of plans, graphs or stores.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mccompile import ir
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import Grid

F32 = np.float32
SAMPLES, CHUNKS, FRAMES, PLACES = 2, 2, 2, 2


@dataclass(frozen=True)
class Run:
    """A policy, how many steps, by how many the second chunk lags, and the sources at every row."""

    bound: BoundPolicy
    steps: int
    lag: int
    latent: np.ndarray  # [rows, B, G, F, P, C]
    late: np.ndarray  # [rows, B, G, F, P]
    drift: np.ndarray  # [steps, C], the same for all

    @property
    def grid(self) -> Grid:
        sigmas = tuple(1 - i / self.steps for i in range(self.steps))
        return Grid(self.steps, tuple(1000 * s for s in sigmas), sigmas)

    def step_of(self, chunk: int, row: int) -> int:
        return row - chunk * self.lag


@dataclass
class Simulated:
    """One chunk of one sample, by itself: the sources, and what it has done so far."""

    run: Run
    sample: int
    chunk: int
    accounts: dict[str, np.ndarray] = field(default_factory=dict)
    streak: np.ndarray = field(default_factory=lambda: np.zeros((FRAMES, PLACES), int))
    total: np.ndarray = field(default_factory=lambda: np.zeros((FRAMES, PLACES), int))
    full: int = 0  # the last own step that computed all tokens
    touched: int = 0  # the last own step that computed some token
    steps: Counter[str] = field(default_factory=Counter)  # of each phase
    refreshed: Counter[str] = field(default_factory=Counter)
    done: list[np.ndarray] = field(default_factory=list)  # what each step computed
    cell: ir.Granularity = ir.Granularity.TOKEN  # of the rule in force

    def masks(self) -> list[np.ndarray]:
        """What it computes at each of its own steps."""
        return [self.step(k) for k in range(self.run.steps)]

    def source(self, step: int, chunk: int | None = None) -> np.ndarray:
        """The latent [F, P, C] when this chunk was at its own step; of another chunk at the same time."""
        row = step + self.chunk * self.run.lag
        return self.run.latent[row, self.sample, self.chunk if chunk is None else chunk]

    def value(self, e: ir.Expr, step: int) -> np.ndarray:
        ones = np.ones((FRAMES, PLACES), F32)
        match e:
            case ir.Const(number):
                return ones * F32(number)
            case ir.Change(_, ir.SourceRef("modulation")):
                return ones * np.abs(self.run.drift[step] - self.run.drift[step - 1]).mean()
            case ir.Change(_, ir.SourceRef("latent"), since, over):
                if over == ir.Granularity.STEP:
                    whole = self.run.latent[:, self.sample]
                    return ones * np.abs(whole[step] - whole[step - 1]).mean()
                before = step - 1 if since == "step" else self.touched
                moved = np.abs(self.source(step) - self.source(before)).mean(2)
                axes = {ir.Granularity.CHUNK: (0, 1), ir.Granularity.FRAME: (1,), ir.Granularity.TOKEN: ()}[over]
                return ones * (moved.mean(axes, keepdims=True) if axes else moved)
            case ir.FrameDiff():
                return self.motion(step)
            case ir.SignalRef("late"):
                return self.run.late[step + self.chunk * self.run.lag, self.sample, self.chunk]
            case ir.Apply("mul", (a, b)):
                return self.value(a, step) * self.value(b, step)
            case ir.Before(of):
                return self.value(of, step - 1) if step > 1 else ones * 0  # nothing moved into the first step
            case ir.Kept(of, n):
                return self.kept(of, n)
            case ir.Average(of, n):
                last = [self.measured(of, s) for s in range(step, max(step - n, -1), -1)]
                return sum(last[1:], last[0]) / F32(len(last))
            case ir.Smooth(of, ir.Const(by)):
                found = self.measured(of, 0)
                for s in range(1, step + 1):
                    found = F32(by) * found + (F32(1) - F32(by)) * self.measured(of, s)
                return found
            case ir.Stairs(of, limits, values):
                return np.array(values, F32)[np.searchsorted(np.array(limits, F32), self.value(of, step), "right")]
            case ir.Accumulate(of, into):
                return self.account(into) + self.value(of, step)
            case ir.Apply("add", (a, b)):
                return self.value(a, step) + self.value(b, step)
            case _:
                raise NotImplementedError(e)

    def measured(self, of: ir.Expr, step: int) -> np.ndarray:
        """The number at a step; nothing moved into the first one, and no block has run before it."""
        if step == 0 and not isinstance(of, ir.SignalRef | ir.ClockRef):
            return np.zeros((FRAMES, PLACES), F32)
        return self.value(of, step)

    def kept(self, of: ir.Expr, n: int) -> np.ndarray:
        """The number at the n-th last step that computed something of each cell."""
        found = np.zeros((FRAMES, PLACES), F32)
        for place in np.ndindex(FRAMES, PLACES):
            wide = place[: {ir.Granularity.TOKEN: 2, ir.Granularity.FRAME: 1}.get(self.cell, 0)]
            steps = [s for s, mask in enumerate(self.done) if mask[wide].any()]
            at = steps[-min(n, len(steps))]
            found[place] = 0 if at == 0 else self.value(of, at)[place]
        return found

    def account(self, name: str) -> np.ndarray:
        return self.accounts.get(name, np.zeros((FRAMES, PLACES), F32))

    def grown(self, read: ir.Expr, step: int) -> dict[str, np.ndarray]:
        """The accounts with what a rule adds to those that it reads."""
        match read:
            case ir.Accumulate(of, into):
                return {**self.accounts, into: self.account(into) + self.value(of, step)}
            case ir.Apply(_, args):
                found = dict(self.accounts)
                for arg in args:
                    found |= {n: v for n, v in self.grown(arg, step).items() if v is not self.accounts.get(n)}
                return found
            case _:
                return self.accounts

    def holds(self, e: ir.Expr, step: int) -> np.ndarray:
        assert isinstance(e, ir.Apply)
        one, two = e.args
        match e.op:
            case "and":
                return self.holds(one, step) & self.holds(two, step)
            case "or":
                return self.holds(one, step) | self.holds(two, step)
            case _:
                return self.value(one, step) < self.value(two, step)

    def motion(self, step: int) -> np.ndarray:
        """Each frame against the one before it; the first frame of the video has no motion to weigh by."""
        now = self.source(step)
        moved = np.ones((FRAMES, PLACES), F32)
        moved[1:] = np.abs(now[1:] - now[:-1]).mean(2)
        if self.chunk > 0:
            row = min(step + self.chunk * self.run.lag, self.run.steps - 1)  # the chunk before stays as it ended
            ahead = self.run.latent[row, self.sample, self.chunk - 1]
            moved[0] = np.abs(now[0] - ahead[-1]).mean(1)
        return moved

    def number(self, e: ir.Expr | None, step: int) -> Any:
        return None if e is None else self.value(e, step)[0, 0]

    def phase(self, step: int) -> ir.Phase:
        phases, left = self.run.bound.ir.phases, self.run.steps - step
        for p in phases:
            if isinstance(p.span, ir.LastSteps) and left <= self.number(p.span.n, step):
                return p
        for p in phases:
            if isinstance(p.span, ir.Between) and self.number(p.span.low, 0) <= step < self.number(p.span.high, 0):
                return p
        for p in phases:
            match p.span:
                case ir.ForSteps(n) if self.steps[p.name] < self.number(n, step):
                    return p
                case ir.UntilRefreshes(n) if self.refreshed[p.name] < self.number(n, step):
                    return p
                case ir.Rest():
                    return p
        raise AssertionError("no phase")

    def step(self, step: int) -> np.ndarray:
        phase = self.phase(step)
        cache = self.run.bound.ir.cache
        due = cache.refresh_every is not None and step - self.full >= cache.refresh_every
        all_at = phase.rule.all_at if isinstance(phase.rule, ir.Reuse | ir.Top) else None
        if all_at is not None:
            every = all_at.every is not None and self.steps[phase.name] % self.number(all_at.every, step) == 0
            due = due or every or step in all_at.steps
        if step == 0 or due or (cache.refresh_last and step == self.run.steps - 1):
            fired, grown = np.ones((FRAMES, PLACES), bool), self.accounts
        else:
            fired, grown = self.rule(phase, step)
        self.accounts = {n: np.where(fired, F32(0), v).astype(F32) for n, v in grown.items()}
        self.streak = np.where(fired, 0, self.streak + 1)
        self.total = np.where(fired, self.total, self.total + 1)
        self.full = step if fired.all() else self.full
        self.touched = step if fired.any() else self.touched
        self.done.append(fired)
        self.steps[phase.name] += 1
        self.refreshed[phase.name] += int(fired.any())
        return fired

    def rule(self, phase: ir.Phase, step: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(tokens to compute, accounts of those that are not)."""
        everything, nothing = np.ones((FRAMES, PLACES), bool), np.zeros((FRAMES, PLACES), bool)
        match phase.rule:
            case ir.Compute():
                return everything, self.accounts
            case ir.Every(n):
                return everything if self.steps[phase.name] % self.number(n, step) == 0 else nothing, self.accounts
            case ir.StepMask(compute):
                return everything if compute[step] else nothing, self.accounts
            case ir.Top(share, by):
                top = F32(self.number(share, step)) * F32(FRAMES * PLACES)
                chosen = first_of(self.value(by, step), np.ceil(top), nothing)
                return self.limited(chosen, phase.rule, step), self.grown(by, step)
            case ir.Reuse():
                return self.reuse(phase.rule, step)
            case _:
                raise NotImplementedError(phase.rule)

    def limited(self, fired: np.ndarray, rule: ir.Reuse | ir.Top, step: int) -> np.ndarray:
        if rule.max_consecutive is not None:
            fired = fired | (self.streak >= self.number(rule.max_consecutive, step))
        if rule.max_total is not None:
            fired = fired | (self.total >= self.number(rule.max_total, step))
        return fired

    def reuse(self, rule: ir.Reuse, step: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        self.cell = rule.granularity
        if rule.granularity <= ir.Granularity.CHUNK:
            self.accounts = {n: np.full((FRAMES, PLACES), v.max()) for n, v in self.accounts.items()}
        fired = ~self.holds(rule.condition, step)
        grown = self.grown(rule.condition, step)
        if rule.vote is not None:
            fired = np.tile(fired.mean(0, keepdims=True) > self.number(rule.vote, step), (FRAMES, 1))
        if rule.hold_below is not None and 0 < fired.mean() < self.number(rule.hold_below, step):
            fired = np.zeros_like(fired)
        if rule.all_above is not None and fired.mean() > self.number(rule.all_above, step):
            fired = np.ones_like(fired)
        fired = self.limited(fired, rule, step)
        if rule.max_reused is not None:
            wanted = (F32(1) - self.number(rule.max_reused, step)) * F32(FRAMES * PLACES)
            fired = first_of(grown.get(account_of(rule.condition), self.account("account")), np.ceil(wanted), fired)
        return fired, grown


def account_of(e: ir.Expr) -> str:
    """The account that a condition reads first."""
    if isinstance(e, ir.Accumulate):
        return e.into
    names = [account_of(arg) for arg in e.args] if isinstance(e, ir.Apply) else []
    return next(filter(None, names), "")


def first_of(score: np.ndarray, wanted: float, chosen: np.ndarray) -> np.ndarray:
    """`chosen`, and as many more of the highest score, first places first, as make `wanted`."""
    found = chosen.flatten()
    for token in np.argsort(-score.flatten(), kind="stable"):
        if found.sum() < wanted:
            found[token] = True
    return found.reshape(score.shape)
