"""Schedules that show that a claim about policies does not hold: measured values are drawn until both runs differ.

A drawn schedule is judged by the planner itself: tables of the drawn values take the place of what is measured, so that
the planner decides every step. All tokens of its chunk are alike, and a source has the same value in both runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.cells import Plan, PlannedAction
from mccompile.policy.evaluate import Grid
from mccompile.policy.planner import plan
from mccompile.policy.settled import remembered, with_tables
from mccompile.policy.together import measured

TRIES = 64
_SHARES = (0.0, 0.25, 0.34, 0.45, 0.55, 0.9, 1.1, 2.0)  # of a threshold: steps around it, and sums that pass it

Actions = Sequence[PlannedAction]  # one per policy
BreaksClaim = Callable[[Actions], bool]


@dataclass(frozen=True, slots=True)
class Witness:
    """A schedule at whose `step` the claim fails.

    values: of each measured expression at the steps up to that one; for a distance to the last computation, the source
    as one number. actions: of every policy, at the same steps.
    """

    steps: int
    step: int
    values: tuple[tuple[ir.Expr, tuple[float, ...]], ...]
    actions: tuple[tuple[PlannedAction, ...], ...]


def witness(policies: Sequence[BoundPolicy], grid: Grid, broken: BreaksClaim, within: range) -> Witness | None:
    """The first schedule of this grid found that breaks the claim at a step of `within`; None where none was found.

    policies: settled ones. The draws are the same in every process.
    """
    asked = tuple(dict.fromkeys(e for bound in policies for e in measured(bound.ir)))
    if any(isinstance(e, ir.Similarity) for e in asked):
        return None  # of an anchor it is another number than of its neighbours: no chunk has all tokens alike
    draws = _draws(asked, _thresholds(policies), grid.steps) if asked else iter([{}])
    for tables in draws:
        try:
            plans = [plan(with_tables(bound, tables), grid, {}, frozenset()) for bound in policies]
        except PolicyError:
            return None
        step = _first(plans, broken, within)
        if step is not None:
            values = tuple((e, tables[e][: step + 1]) for e in asked)
            actions = tuple(tuple(c.action for c in made.cells[: step + 1]) for made in plans)
            return Witness(grid.steps, step, values, actions)
    return None


def _first(plans: Sequence[Plan], broken: BreaksClaim, within: range) -> int | None:
    """The first step at which the claim fails; steps from one on that a plan leaves open show nothing."""
    for step in range(min(len(made.cells) for made in plans)):
        actions = [made.cells[step].action for made in plans]
        if "dynamic" in actions:
            return None
        if step in within and broken(actions):
            return step
    return None


def _draws(
    asked: Sequence[ir.Expr], thresholds: Sequence[float], steps: int
) -> Iterator[dict[ir.Expr, tuple[float, ...]]]:
    """Steady values first: they are the easiest to read."""
    random = np.random.default_rng(0)
    for number in range(TRIES):
        tables = {}
        for expr in asked:
            near = number % 2 == 0 and thresholds
            scale = float(random.choice(thresholds)) if near else float(10 ** random.uniform(-3, 0))
            steady = number < TRIES // 4
            shares = np.full(steps, random.choice(_SHARES[1:])) if steady else random.choice(_SHARES, steps)
            drawn = np.round(scale * shares, 6).astype(np.float32)
            if remembered(expr):
                drawn = np.round(1 + np.cumsum(drawn), 6).astype(np.float32)
            elif isinstance(expr, ir.Change) and expr.distance == "cosine":
                drawn = np.minimum(drawn, np.float32(2.0))
            tables[expr] = (1.0 if remembered(expr) else 0.0, *(float(v) for v in drawn[1:]))
        yield tables


def _thresholds(policies: Sequence[BoundPolicy]) -> list[float]:
    """The positive numbers with which rules compare."""
    found = dict.fromkeys(number for bound in policies for phase in bound.ir.phases for number in _compared(phase.rule))
    return [number for number in found if number > 0]


def _compared(rule: ir.Rule) -> Iterator[float]:
    below: list[ir.Expr] = [rule.condition] if isinstance(rule, ir.Reuse) else []
    while below:
        expr = below.pop()
        if isinstance(expr, ir.Apply):
            if expr.op in ("lt", "le", "gt", "ge"):
                yield from (side.value for side in expr.args if isinstance(side, ir.Const))
            below += expr.args
