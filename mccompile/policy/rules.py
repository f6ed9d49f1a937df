"""Rules folded at one step: what a rule decides for a whole chunk where everything it reads is static."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from mccompile import ir
from mccompile.language.walk import rule_expressions, walk
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import ZERO, Grid, Moment, Value, evaluate, is_static
from mccompile.policy.phases import ChunkState, current, phase_step


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a run can be before a step. None = data decides it.

    account: of the chunk. streak: its reuses in a row. total: its reuses in the run.
    """

    state: ChunkState
    account: np.float32 | None
    streak: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class Decision:
    """compute: True, False (reuse) or None (data decides). account: after the step, if it is reused."""

    phase: int
    compute: bool | None
    account: np.float32 | None


@dataclass(frozen=True, slots=True)
class Folder:
    """Decides steps for a bound policy on a grid. fold=False: only `compute` phases and forced steps."""

    bound: BoundPolicy
    grid: Grid
    tables: Mapping[ir.Change, tuple[float, ...]]
    static_sources: frozenset[str]
    fold: bool

    def decide(self, at: Situation) -> Decision:
        """The rule of the phase in force, then what is forced: the first step, refreshes of the K/V."""
        phase = current(self.bound, at.state, self.grid)
        compute, account = self._rule(self.bound.ir.phases[phase].rule, at)
        cache = self.bound.ir.cache
        last = at.state.step == self.grid.steps - 1
        if compute or at.state.step == 0 or (cache.refresh_last and last):
            return Decision(phase, True, ZERO)
        if cache.refresh_every is not None:
            if at.streak is None:
                return Decision(phase, None, None)
            if at.streak + 1 >= cache.refresh_every:
                return Decision(phase, True, ZERO)
        return Decision(phase, compute, account)

    def _rule(self, rule: ir.Rule, at: Situation) -> tuple[bool | None, np.float32 | None]:
        if isinstance(rule, ir.Compute):
            return True, ZERO
        if not self.fold or at.state.step == 0:
            return None, None
        match rule:
            case ir.Reuse():
                return self._reuse(rule, at)
            case ir.Every(n):
                due = phase_step(self.bound, at.state, self.grid) % self.bound.whole(n) == 0
                return due, at.account
            case ir.StepMask(compute):
                return compute[at.state.step], at.account
            case ir.Top():
                return None, None
            case _:
                assert_never(rule)

    def _reuse(self, rule: ir.Reuse, at: Situation) -> tuple[bool | None, np.float32 | None]:
        """The condition on one cell that stands for the chunk, then the guards in the order of ir.Reuse."""
        policy = self.bound.ir
        if not all(is_static(e, policy, self.static_sources) for e in rule_expressions(rule)):
            return None, None
        signals = {s.name: s for s in policy.signals}
        sums = [e for e in walk(rule.condition, signals) if isinstance(e, ir.Accumulate)]
        if sums and at.account is None:
            return None, None
        compute = not self._value(rule.condition, at)
        grown = at.account if not sums else np.float32(self._value(sums[0], at))
        compute = self._shares(rule, at, compute)
        for limit, count in ((rule.max_consecutive, at.streak), (rule.max_total, at.total)):
            if limit is not None and not compute:
                if count is None:
                    return None, None
                compute = bool(np.float32(count) >= self._value(limit, at))
        if rule.max_reused is not None and not compute and self._value(rule.max_reused, at) < 1:
            return None, None  # some tokens must be computed: not a decision for the whole chunk
        return compute, grown

    def _shares(self, rule: ir.Reuse, at: Situation, compute: bool) -> bool:
        """The guards on shares, where the share is 1 or 0."""
        if rule.vote is not None:
            compute = compute and bool(self._value(rule.vote, at) < 1)
        if rule.hold_below is not None:
            compute = compute and not self._value(rule.hold_below, at) > 1
        return compute or (rule.all_above is not None and bool(self._value(rule.all_above, at) < 0))

    def _value(self, expr: ir.Expr, at: Situation) -> Value:
        step = at.state.step
        return evaluate(
            expr,
            Moment(
                params={name: np.float32(v) for name, v in self.bound.values.items()},
                signals={s.name: s for s in self.bound.ir.signals},
                grid=self.grid,
                step=step,
                changes={c: np.float32(t[step]) for c, t in self.tables.items()},
                account=at.account,
            ),
        )
