"""A plan: one cell per step of a chunk. A cell says what is known about the step before any data is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mccompile import ir
from mccompile.policy.evaluate import Grid

PlannedAction = Literal["compute", "reuse", "dynamic"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One step of a chunk; holds for all its tokens, and for every chunk, sample and branch alike.

    phase: index of the phase in force; None where data decides how long an earlier phase lasts.
    action: dynamic = left to the run. values: of the plan's changes at this step, in their order (0 at step 0).
    account: at the start of the step, float32; None where data decides it. others: the plan's named accounts, in their
    order; none of them where data decides. way: of a reuse, the number of the rule's alternative that says what stands
    in.
    """

    step: int
    phase: int | None
    action: PlannedAction
    values: tuple[float, ...]
    account: float | None
    others: tuple[float, ...] = ()
    way: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The table into which the static part of a policy folds on one step grid.

    grid: in float32, as expressions see it. phases: names, in order. changes: the static changes whose values
    the cells carry. accounts: those with a name of their own. notes: what the policy says and this grid makes void.
    """

    policy: str
    grid: Grid
    phases: tuple[str, ...]
    changes: tuple[ir.Change, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]
    accounts: tuple[str, ...] = ()


def predicted_share(plan: Plan) -> float:
    """Share of the steps that a static plan computes, 0..1. Raises ValueError for a plan with dynamic cells."""
    if any(c.action == "dynamic" for c in plan.cells):
        raise ValueError(f"the plan of `{plan.policy}` has dynamic steps: their share is known after a run only")
    return sum(c.action == "compute" for c in plan.cells) / len(plan.cells)
