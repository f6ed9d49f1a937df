"""Why a chunk's step is computed or reused: the values that its rule compares, its accounts, and what settled it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from mccompile import ir
from mccompile.language.walk import deciding, walk_rule
from mccompile.language.ways import ways_of
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.cells import PlannedAction
from mccompile.policy.evaluate import Grid, evaluate
from mccompile.policy.facts import account_names
from mccompile.policy.planner import steps_of
from mccompile.policy.rules import Accounts, Decision, Situation, Static, forced, moment_of
from mccompile.policy.sexpr import write

SIGNS: Mapping[str, str] = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@dataclass(frozen=True, slots=True)
class Compared:
    """One comparison of a rule's condition: the words of its sides, their float32 values, and whether it holds."""

    left: str
    sign: str
    right: str
    value: float
    limit: float
    holds: bool


@dataclass(frozen=True, slots=True)
class StepReason:
    """One own step of a chunk. phase: None where data decides how long an earlier one lasts.

    compared: of a rule whose values are known before the run. before, after: the chunk's accounts by name, None where
    data decides them, empty where no rule keeps one.
    """

    step: int
    phase: str | None
    action: PlannedAction
    why: str
    compared: tuple[Compared, ...]
    before: tuple[tuple[str, float], ...] | None
    after: tuple[tuple[str, float], ...] | None


def reasons(bound: BoundPolicy, grid: Grid, static: Static) -> tuple[StepReason, ...]:
    """The reason of every step of a run on this grid; the policy must be able to run on it (`planner.run_problems`)."""
    return tuple(
        _step(bound, grid, step, decided, static) for step, decided in enumerate(steps_of(bound, grid, static))
    )


def _step(
    bound: BoundPolicy, grid: Grid, step: int, decided: Mapping[Situation, Decision], static: Static
) -> StepReason:
    found = {reason_of(bound, grid, at, decision, static) for at, decision in decided.items()}
    phases, actions = {r.phase for r in found}, {r.action for r in found}
    one = next(iter(found))
    if len(found) == 1:
        return one
    whys = dict.fromkeys(r.why for r in sorted(found, key=lambda r: str(r.phase)))
    agreed = actions == {"compute"} or (actions == {"reuse"} and len(phases) == 1)
    action: PlannedAction = one.action if agreed else "dynamic"
    return StepReason(step, one.phase if len(phases) == 1 else None, action, "; or ".join(whys), (), None, None)


def reason_of(bound: BoundPolicy, grid: Grid, at: Situation, decision: Decision, static: Static) -> StepReason:
    """The reason of one decision."""
    phase = bound.ir.phases[decision.phase]
    action: PlannedAction = {True: "compute", False: "reuse", None: "dynamic"}[decision.compute]  # type: ignore[assignment]
    compared: tuple[Compared, ...] = ()
    match decision.why:
        case "nothing kept yet":
            why = "nothing is kept yet"
        case "refresh":
            why = "keys and values are due"
        case "phase":
            due = forced(bound, grid, at).compute is True
            if isinstance(phase.rule, ir.Reuse) and decision.compute is not None and not due:
                compared = tuple(_compared(bound, grid, at, phase.rule, static))
            all_at = due and isinstance(phase.rule, ir.Reuse | ir.Top)
            why = "a step that computes all" if all_at else _because(bound, grid, at, decision, phase.rule, static)
        case _:
            assert_never(decision.why)
    accounts = (_named(bound, at.accounts), _named(bound, decision.accounts))
    return StepReason(at.state.step, phase.name, action, why, compared, *accounts)


def _named(bound: BoundPolicy, accounts: Accounts | None) -> tuple[tuple[str, float], ...] | None:
    signals = {s.name: s for s in bound.ir.signals}
    kept = any(isinstance(e, ir.Accumulate) for p in bound.ir.phases for e in walk_rule(p.rule, signals))
    if not kept:
        return ()
    if accounts is None:
        return None
    names = account_names(bound.ir)
    used = {e.into for p in bound.ir.phases for e in walk_rule(p.rule, signals) if isinstance(e, ir.Accumulate)}
    return tuple((name, float(value)) for name, value in zip(names, accounts, strict=True) if name in used)


def _compared(bound: BoundPolicy, grid: Grid, at: Situation, rule: ir.Reuse, static: Static) -> Iterator[Compared]:
    moment = moment_of(bound, grid, at, static)
    below: list[ir.Expr] = [rule.condition]
    while below:
        expr = below.pop(0)
        if not isinstance(expr, ir.Apply):
            continue
        if expr.op in SIGNS:
            left, right = expr.args
            value, limit = (float(np.float32(evaluate(side, moment))) for side in expr.args)
            yield Compared(words(left), SIGNS[expr.op], words(right), value, limit, bool(evaluate(expr, moment)))
        else:
            below += expr.args


def words(expr: ir.Expr) -> str:
    """The policy's own words for an expression; its text form where it was read from one."""
    return write(expr) if expr.at is None else " ".join(expr.at.text.split())


def stands_in(forecast: ir.Forecast | None) -> str:
    """What a rule itself says that stands in, as it follows a reason; "" where the layers say it."""
    if forecast is None:
        return ""
    return f", as {write(forecast) if forecast.at is None else ' '.join(forecast.at.text.split())}"


def _because(bound: BoundPolicy, grid: Grid, at: Situation, decision: Decision, rule: ir.Rule, static: Static) -> str:
    match rule:
        case ir.Compute():
            return "the phase computes"
        case ir.StepMask():
            return "the mask says so"
        case ir.Every(n):
            return f"every {bound.whole(n)} steps of the phase"
        case ir.Top(share, by):
            return f"measured: top {words(share)} by {words(by)}"
        case ir.Reuse():
            return _of_reuse(bound, grid, at, decision, rule, static)
        case _:
            assert_never(rule)


def _of_reuse(bound: BoundPolicy, grid: Grid, at: Situation, decision: Decision, rule: ir.Reuse, static: Static) -> str:
    ways = ways_of(rule)
    if decision.compute is None:
        return f"measured: {'; otherwise '.join(words(way.condition) for way in ways)}"
    moment = moment_of(bound, grid, at, static)
    signals = {s.name: s for s in bound.ir.signals}
    if bool(evaluate(rule.condition, moment)) != decision.compute:
        if decision.compute:
            return "the condition fails" if len(ways) == 1 else "no condition holds"
        holds = "the condition holds" if len(ways) == 1 else f"condition {decision.way + 1} of {len(ways)} holds"
        return holds + stands_in(ways[decision.way].stand_in)
    if bound.merges and decision.compute:
        return "the condition holds, and no token would be left to take from"
    if not decision.compute:
        held = "the condition fails, and a guard on shares holds the step back"
        return held + stands_in(ways[decision.way].stand_in)
    if not all(np.isfinite(evaluate(e, moment)) for e in deciding(rule.condition, signals)):
        return "a value is no finite number"
    for limit, count, what in (
        (rule.max_consecutive, at.since, "in a row"), (rule.max_total, at.total, "in total"),
    ):  # fmt: skip
        if limit is not None and count is not None and np.float32(count) >= np.float32(evaluate(limit, moment)):
            return f"the condition holds, and {count} reuses {what} are the most"
    return "the condition holds, and a guard on shares computes the step"
