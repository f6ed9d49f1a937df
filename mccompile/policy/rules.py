"""What a policy's rules decide for a whole chunk in its next step: one meaning, for planner and run alike.

The planner asks with the tables of the static signals (`Static`) and may learn the answer before the run. A run asks
without them, of a chunk that it knows, and leaves to the decision graph what is then still open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from mccompile import ir
from mccompile.arithmetic.operations import StaticValue
from mccompile.language.walk import deciding, rule_expressions, walk, walk_rule
from mccompile.language.ways import ways_of
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import ZERO, Grid, StaticMoment, evaluate, is_static
from mccompile.policy.facts import account_names
from mccompile.policy.phases import ChunkState, current, phase_step

Accounts = tuple[np.float32, ...]
Why = Literal["nothing kept yet", "refresh", "phase"]


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a chunk is before a step, as far as it is known. None = data decides it.

    kept: something is kept of it. since: own steps since all of its tokens were computed. accounts: of the chunk, in
    the order of `account_names`. total: its reuses in the run. computed: its own steps that computed it, the latest
    first, as many as rules read.
    """

    state: ChunkState
    kept: bool
    since: int | None
    accounts: Accounts | None
    total: int | None
    computed: tuple[int, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Static:
    """What is known of signals before a run. tables: values of static changes at every own step of a chunk."""

    tables: Mapping[ir.Change, tuple[float, ...]]
    sources: frozenset[str]


@dataclass(frozen=True, slots=True)
class Decision:
    """compute: True, False (reuse) or None (data decides). accounts: after the step, where they are known.

    way: of a reuse, the number of the rule's alternative that says what stands in.
    """

    phase: int
    compute: bool | None
    accounts: Accounts | None
    why: Why
    way: int = 0


def no_accounts(policy: ir.PolicyIR) -> Accounts:
    """The accounts of a cell that was just computed."""
    return (ZERO,) * len(account_names(policy))


def looks_back(rule: ir.Rule, signals: Mapping[str, ir.Signal]) -> int:
    """How many of the cell's last computations the rule looks back at."""
    found = walk_rule(rule, signals)
    return max((e.n for e in found if isinstance(e, ir.Kept)), default=0)


def forced(bound: BoundPolicy, grid: Grid, at: Situation) -> Decision:
    """What holds whatever the signals are: nothing is kept yet, keys and values are due, or the phase computes."""
    phase = current(bound, at.state, grid)
    cache, cleared = bound.ir.cache, no_accounts(bound.ir)
    last = cache.refresh_last and at.state.step == grid.steps - 1
    if not at.kept and not bound.merges:  # merged tokens read nothing older than this step
        return Decision(phase, True, cleared, "nothing kept yet")
    if last or (cache.refresh_every is not None and at.since is not None and at.since + 1 >= cache.refresh_every):
        return Decision(phase, True, cleared, "refresh")
    rule = bound.ir.phases[phase].rule
    if isinstance(rule, ir.Compute) or (isinstance(rule, ir.Reuse | ir.Top) and _all_due(bound, grid, at, rule.all_at)):
        return Decision(phase, True, cleared, "phase")
    return Decision(phase, None, None, "phase")


def _all_due(bound: BoundPolicy, grid: Grid, at: Situation, all_at: ir.AllAt | None) -> bool:
    """Whether this is a step at which the rule computes everything."""
    if all_at is None:
        return False
    due = all_at.every is not None and phase_step(bound, at.state, grid) % bound.whole(all_at.every) == 0
    return due or at.state.step in all_at.steps


def decide(bound: BoundPolicy, grid: Grid, at: Situation, static: Static | None) -> Decision:
    """The rule of the phase in force, under what is forced. static None: rules that read signals are left open."""
    must = forced(bound, grid, at)
    if must.compute:
        return must
    compute, accounts, way = _rule(bound, grid, at, bound.ir.phases[must.phase].rule, static)
    if bound.merges and compute is False:
        compute = True  # a chunk of which nothing is computed has no token to take from
    if not compute and bound.ir.cache.refresh_every is not None and at.since is None:
        return must  # whether a refresh is due is not known
    return Decision(must.phase, compute, no_accounts(bound.ir) if compute else accounts, "phase", way)


def _rule(
    bound: BoundPolicy, grid: Grid, at: Situation, rule: ir.Rule, static: Static | None
) -> tuple[bool | None, Accounts | None, int]:
    match rule:
        case ir.Compute():
            return True, no_accounts(bound.ir), 0
        case ir.Every(n):
            return phase_step(bound, at.state, grid) % bound.whole(n) == 0, at.accounts, 0
        case ir.StepMask(compute):
            return compute[at.state.step], at.accounts, 0
        case ir.Reuse():
            folded = None if static is None else _Folded(bound, grid, at, static)
            decided, accounts = (None, None) if folded is None else folded.reuse(rule)
            return decided, accounts, folded.way(rule) if folded is not None and decided is False else 0
        case ir.Top():
            return None, None, 0
        case _:
            assert_never(rule)


@dataclass(frozen=True, slots=True)
class _Folded:
    """A `reuse` rule on one cell that stands for the chunk: all that it reads is the same in every cell."""

    bound: BoundPolicy
    grid: Grid
    at: Situation
    static: Static

    def reuse(self, rule: ir.Reuse) -> tuple[bool | None, Accounts | None]:
        """The condition, then the guards in the order of ir.Reuse."""
        policy, at = self.bound.ir, self.at
        if not all(is_static(e, policy, self.static.sources) for e in rule_expressions(rule)):
            return None, None
        signals = {s.name: s for s in policy.signals}
        sums = [e for e in walk(rule.condition, signals) if isinstance(e, ir.Accumulate)]
        if sums and at.accounts is None:
            return None, None
        if at.computed is None and looks_back(rule, signals):
            return None, None
        compute = not self._value(rule.condition)
        grown = self._grown(sums)
        rests_on = (*(grown or ()), *(self._value(e) for e in deciding(rule.condition, signals)))
        if not all(np.isfinite(v) for v in rests_on):
            return True, no_accounts(policy)  # whatever the condition and the guards say
        compute = self._shares(rule, compute)
        for limit, count in ((rule.max_consecutive, at.since), (rule.max_total, at.total)):
            if limit is not None and not compute:
                if count is None:
                    return None, None
                compute = bool(np.float32(count) >= self._value(limit))
        if rule.max_reused is not None and not compute and self._value(rule.max_reused) < 1:
            return None, None  # some tokens must be computed: not a decision for the whole chunk
        return compute, grown

    def way(self, rule: ir.Reuse) -> int:
        """The first alternative whose condition holds; the last one where a guard reuses though none holds."""
        ways = ways_of(rule)
        return next((n for n, way in enumerate(ways) if self._value(way.condition)), len(ways) - 1)

    def _grown(self, sums: list[ir.Accumulate]) -> Accounts | None:
        """The accounts after the step, where it computes nothing."""
        if self.at.accounts is None:
            return None
        added = {e.into: np.float32(self._value(e)) for e in sums}
        names = account_names(self.bound.ir)
        return tuple(added.get(name, before) for name, before in zip(names, self.at.accounts, strict=True))

    def _shares(self, rule: ir.Reuse, compute: bool) -> bool:
        """The guards on shares, where the share is 1 or 0."""
        if rule.vote is not None:
            compute = compute and bool(self._value(rule.vote) < 1)
        if rule.hold_below is not None:
            compute = compute and not self._value(rule.hold_below) > 1
        return compute or (rule.all_above is not None and bool(self._value(rule.all_above) < 0))

    def _value(self, expr: ir.Expr) -> StaticValue:
        return evaluate(expr, moment_of(self.bound, self.grid, self.at, self.static))


def moment_of(bound: BoundPolicy, grid: Grid, at: Situation, static: Static) -> StaticMoment:
    """What a static expression may look at in the step about to run."""
    step, accounts = at.state.step, at.accounts
    return StaticMoment(
        params={name: np.float32(v) for name, v in bound.values.items()},
        signals={s.name: s for s in bound.ir.signals},
        grid=grid,
        step=step,
        changes={c: np.float32(t[step]) for c, t in static.tables.items()},
        accounts=None if accounts is None else dict(zip(account_names(bound.ir), accounts, strict=True)),
        tables=static.tables,
        kept=at.computed,
        depth=bound.depth,
    )
