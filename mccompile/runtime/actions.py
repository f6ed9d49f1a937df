"""What the clock and the plan already know about a chunk at a call, before any data is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mccompile import ir
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import current, phase_step
from mccompile.policy.planner import Plan
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.store import BranchStore, ChunkRecord


@dataclass(frozen=True, slots=True)
class Action:
    """kind: skip (result not needed), compute, reuse, dynamic (the decision graph says), or follow (a copy).

    phase: index of the phase in force, -1 outside a chunk's own steps. account: the account at the start of
    the step where folding knows it. why: for the trace.
    """

    kind: Literal["skip", "compute", "reuse", "dynamic", "follow"]
    phase: int
    account: float | None
    why: str


def resolve_all(
    moment: Moment, store: BranchStore, bound: BoundPolicy, plan: Plan, batch: int
) -> tuple[tuple[Action, ...], ...]:
    """The action of every chunk of every sample at a call, [B][G]."""
    return tuple(
        tuple(resolve(t, moment, store.chunk(b, t.chunk), bound, plan) for t in moment.chunks) for b in range(batch)
    )


def resolve(time: ChunkTime, moment: Moment, record: ChunkRecord, bound: BoundPolicy, plan: Plan) -> Action:
    """The action of one chunk of one sample at one call."""
    life = bound.ir.chunks
    if time.copy_of is not None:
        return Action("follow", -1, None, "copy")
    if time.state == "pending":
        return Action("skip" if life.pending == "skip" else "compute", -1, None, "pending")
    if time.state == "finished":
        done = {"keep": record.computed, "refresh": record.cleaned, "compute": False}[life.finished]
        return Action("skip" if done else "compute", -1, None, "finished")
    cell = plan.cells[time.step]
    state = record.state
    if not record.computed:
        return Action("compute", current(bound, state, moment.grid), None, "nothing kept yet")
    index = current(bound, state, moment.grid)
    if cell.action in ("compute", "reuse"):
        return Action(cell.action, index, cell.account, "planned")
    cache = bound.ir.cache
    last = cache.refresh_last and time.step == moment.grid.steps - 1
    if last or (cache.refresh_every is not None and record.since + 1 >= cache.refresh_every):
        return Action("compute", index, cell.account, "refresh")
    account = cell.account
    match bound.ir.phases[index].rule:
        case ir.Compute():
            return Action("compute", index, account, "phase")
        case ir.Every(n):
            due = phase_step(bound, state, moment.grid) % bound.whole(n) == 0
            return Action("compute" if due else "reuse", index, account, "phase")
        case ir.StepMask(compute):
            return Action("compute" if compute[time.step] else "reuse", index, account, "phase")
        case _:
            return Action("dynamic", index, account, "phase")
