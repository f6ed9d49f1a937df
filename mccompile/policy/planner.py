"""The planner: folds everything that the step grid and the parameters decide into a table of cells.

It walks through the steps of a chunk with the set of all situations in which the run can be. While everything is
static, this set has one member. A dynamic decision splits it (something was computed, or nothing was) and forgets the
account. A step that computes everything restores the account. A cell says what all situations agree on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.language.intervals import Ranges
from mccompile.language.ways import never_acts, ways_of
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.cells import Cell, Plan, PlannedAction, predicted_share
from mccompile.policy.errors import MaskTooShort, RangeOutsideRun, StepsUncovered
from mccompile.policy.evaluate import Grid, clock_value, static_changes
from mccompile.policy.facts import account_names
from mccompile.policy.influence import static_notes
from mccompile.policy.phases import ChunkState, advance, overriding, start
from mccompile.policy.plan_text import diff_plans, read_plan, show_plan
from mccompile.policy.rules import Decision, Situation, Static, decide, forced, looks_back, no_accounts

__all__ = ["Cell", "Plan", "diff_plans", "plan", "predicted_share", "read_plan", "show_plan"]


def plan(
    bound: BoundPolicy,
    grid: Grid,
    tables: Mapping[ir.Change, tuple[float, ...]],
    static_sources: frozenset[str],
    fold: bool = True,
) -> Plan:
    """The plan of a bound policy on a step grid.

    tables: for each of `static_changes(policy, static_sources)` its value at every own step of a chunk against
    the step before (entry 0 is not read). fold=False leaves every rule but `compute` to the run; the first
    step, and the last under `refresh_last`, are computed in any case. bound: as one group of regions sees the policy
    (policy/groups.py).
    Raises PolicyError (MC0305 to MC0307), and ValueError for a table that is missing or short, or for a policy whose
    regions have rules of their own.
    """
    if any(phase.regions or phase.branches for phase in bound.ir.phases):
        raise ValueError(f"a plan is of one group of regions: ask for those of `bounds_of({bound.ir.name})`")
    problems = run_problems(bound, grid)
    if problems:
        raise PolicyError(problems)
    changes = static_changes(bound.ir, static_sources)
    for change in changes:
        if len(tables.get(change, ())) < grid.steps:
            raise ValueError(f"the table of the change of {change.of.name} must have {grid.steps} entries")
    static = Static({c: tables[c] for c in changes}, static_sources)
    cells: list[Cell] = []
    seen: list[frozenset[int]] = []
    for step, decided in enumerate(steps_of(bound, grid, static, fold)):
        values = tuple(float(np.float32(tables[c][step])) if step else 0.0 for c in changes)
        cells.append(_cell(step, decided, values))
        seen.append(frozenset(d.phase for d in decided.values()))
    return Plan(
        policy=bound.ir.name,
        grid=Grid(grid.steps, _float32(grid.timesteps), _float32(grid.sigmas)),
        phases=tuple(p.name for p in bound.ir.phases),
        changes=changes,
        cells=tuple(cells),
        accounts=account_names(bound.ir)[1:],
        notes=(*_notes(bound, cells, frozenset().union(*seen)), *static_notes(bound, grid, static, cells)),
    )


def steps_of(
    bound: BoundPolicy, grid: Grid, static: Static, fold: bool = True
) -> Iterator[Mapping[Situation, Decision]]:
    """For every step, the situations in which a chunk can then be, and what is decided in each of them."""
    situations = frozenset({first_situation(bound)})
    back = looks_back_most(bound)
    for step in range(grid.steps):
        decided = {s: decide(bound, grid, s, static) if fold else forced(bound, grid, s) for s in situations}
        yield decided
        if step + 1 < grid.steps:
            situations = frozenset(t for s, d in decided.items() for t in after(bound, grid, s, d, back))


def first_situation(bound: BoundPolicy) -> Situation:
    """That of a chunk that has done no step."""
    return Situation(start(bound), kept=False, since=0, accounts=no_accounts(bound.ir), total=0)


def looks_back_most(bound: BoundPolicy) -> int:
    """At how many of a cell's last computations some rule of the policy looks back."""
    signals = {s.name: s for s in bound.ir.signals}
    return max(looks_back(p.rule, signals) for p in bound.ir.phases)


def _float32(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(np.float32(v)) for v in values)


def _cell(step: int, decided: Mapping[Situation, Decision], values: tuple[float, ...]) -> Cell:
    phases = {d.phase for d in decided.values()}
    found = {None if s.accounts is None else tuple(map(float, s.accounts)) for s in decided}
    accounts = next(iter(found)) if len(found) == 1 else None
    account, others = (None, ()) if accounts is None else (accounts[0], accounts[1:])
    action, ways = _action(decided), {d.way for d in decided.values()}
    way = ways.pop() if action == "reuse" else 0
    return Cell(step, phases.pop() if len(phases) == 1 else None, action, values, account, others, way)


def _action(decided: Mapping[Situation, Decision]) -> PlannedAction:
    """What all situations agree on; a reuse also needs one phase and one account, which the run takes over."""
    decisions = set(decided.values())
    if all(d.compute for d in decisions):
        return "compute"
    agree = len(decisions) == 1 and next(iter(decisions)).compute is False
    return "reuse" if agree else "dynamic"


def after(bound: BoundPolicy, grid: Grid, before: Situation, decision: Decision, back: int) -> Iterable[Situation]:
    """The situations that can follow: first that in which nothing was computed, where data decides.

    back: how many of the last computations matter to some rule.
    """
    known = before.computed
    if decision.compute is None:
        for computed in (False, True):
            state = advance(bound, before.state, grid, computed)
            unknown = None if back else ()
            yield Situation(_forget(bound, state), kept=True, since=None, accounts=None, total=None, computed=unknown)
        return
    state = advance(bound, before.state, grid, decision.compute)
    if decision.compute:
        steps = (before.state.step, *(known or ()))[:back] if known is not None or back <= 1 else None
        yield Situation(state, kept=True, since=0, accounts=no_accounts(bound.ir), total=before.total, computed=steps)
    else:
        since, total = (None if n is None else n + 1 for n in (before.since, before.total))
        yield Situation(state, kept=True, since=since, accounts=decision.accounts, total=total, computed=known)


def _forget(bound: BoundPolicy, state: ChunkState) -> ChunkState:
    """The state without the counts that its phase does not read, so that alike situations are one."""
    if state.phase == len(bound.ir.phases):
        return replace(state, refreshes=0, phase_steps=0)
    phase = bound.ir.phases[state.phase]
    all_at = phase.rule.all_at if isinstance(phase.rule, ir.Reuse | ir.Top) else None
    counted = isinstance(phase.rule, ir.Every) or (all_at is not None and all_at.every is not None)
    steps = isinstance(phase.span, ir.ForSteps) or counted
    refreshes = isinstance(phase.span, ir.UntilRefreshes)
    return replace(
        state,
        refreshes=state.refreshes if refreshes else 0,
        phase_steps=state.phase_steps if steps else 0,
    )


# ---- refusals ----------------------------------------------------------------------------------------------
def run_problems(bound: BoundPolicy, grid: Grid) -> list[Diagnostic]:
    """Why the policy cannot run on this grid (MC0305 to MC0307); empty where it can."""
    return [*_mask_problems(bound, grid), *_range_problems(bound, grid), *_gaps(bound, grid)]


def _mask_problems(bound: BoundPolicy, grid: Grid) -> Iterable[Diagnostic]:
    for phase in bound.ir.phases:
        if isinstance(phase.rule, ir.StepMask) and len(phase.rule.compute) < grid.steps:
            yield MaskTooShort(phase.rule.at, bound.ir.name, phase.name, len(phase.rule.compute), grid.steps)


def _range_problems(bound: BoundPolicy, grid: Grid) -> Iterable[Diagnostic]:
    for phase in bound.ir.phases:
        if isinstance(phase.span, ir.Between):
            what = phase.span.clock.what
            low, high = bound.number(phase.span.low), bound.number(phase.span.high)
            clock = [clock_value(what, step, grid) for step in range(grid.steps)]
            if not any(low <= value < high for value in clock):
                ends = (float(low), float(high), float(min(clock)), float(max(clock)))
                yield RangeOutsideRun(phase.span.at, bound.ir.name, phase.name, what, *ends)


def _gaps(bound: BoundPolicy, grid: Grid) -> Iterable[Diagnostic]:
    """The first step without a phase when phases end as early as they can: everything is computed."""
    state = start(bound)
    for step in range(grid.steps):
        if overriding(bound, step, grid) is None and state.phase == len(bound.ir.phases):
            yield StepsUncovered(bound.ir.phases[-1].span.at, bound.ir.name, step, grid.steps)
            return
        state = advance(bound, state, grid, True)


# ---- notes -------------------------------------------------------------------------------------------------
def _notes(bound: BoundPolicy, cells: list[Cell], reached: frozenset[int]) -> Iterable[str]:
    for index, phase in enumerate(bound.ir.phases):
        if index not in reached:
            if not _empty(bound, phase.span):
                yield f"phase {phase.name} is never reached in {len(cells)} steps"
            continue
        all_at = phase.rule.all_at if isinstance(phase.rule, ir.Reuse | ir.Top) else None
        beyond = [step for step in all_at.steps if step >= len(cells)] if all_at is not None else []
        if beyond:
            yield f"phase {phase.name} computes all at step {beyond[0]}, and the run has {len(cells)} steps"
        within = [step for step in all_at.steps if step < len(cells)] if all_at is not None else []
        other = next((step for step in within if cells[step].phase not in (None, index)), None)
        if other is not None:
            yield f"phase {phase.name} computes all at step {other}, and another phase is in force there"
        actions = {c.action for c in cells if c.phase == index and c.step > 0}
        certain = all(c.phase is not None for c in cells)
        if isinstance(phase.rule, ir.Reuse) and certain and actions == {"compute"}:
            yield f"phase {phase.name} never reuses: its condition holds at none of its steps"
        if isinstance(phase.rule, ir.Reuse) and certain and actions == {"reuse"}:
            yield f"phase {phase.name} never computes: its condition holds at all of its steps"
        yield from _idle_ways(bound, phase)


def _idle_ways(bound: BoundPolicy, phase: ir.Phase) -> Iterable[str]:
    """Alternatives that reuse nothing with these parameters: those before them hold wherever they do."""
    if not isinstance(phase.rule, ir.Reuse):
        return
    params = {p.name: replace(p, low=bound.values[p.name], high=bound.values[p.name]) for p in bound.ir.params}
    ranges = Ranges(params, {s.name: s for s in bound.ir.signals})
    conditions = tuple(way.condition for way in ways_of(phase.rule))
    for n in range(1, len(conditions)):
        if never_acts(conditions[: n + 1], ranges):
            yield f"phase {phase.name}: `reuse` number {n + 1} never acts, for one before it holds wherever it does"


def _empty(bound: BoundPolicy, span: ir.PhaseSpan) -> bool:
    """Whether the span is meant to be empty with these parameters."""
    if isinstance(span, ir.ForSteps | ir.UntilRefreshes | ir.LastSteps):
        return bound.whole(span.n) == 0
    return False
