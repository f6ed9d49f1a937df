"""What the clock and the plan already know about a chunk at a call, before any data is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mccompile.policy.bind import BoundPolicy
from mccompile.policy.planner import Plan
from mccompile.policy.rules import Situation, decide
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.store import ChunkRecord, History

Kind = Literal["skip", "compute", "reuse", "dynamic", "follow"]


@dataclass(frozen=True, slots=True)
class Action:
    """kind: skip (result not needed), compute, reuse, dynamic (the decision graph says), or follow (a copy).

    phase: index of the phase in force, -1 outside a chunk's own steps. account: the account at the start of
    the step where folding knows it. why: for the trace. way: of a reuse, which alternative of the rule stands in.
    """

    kind: Kind
    phase: int
    account: float | None
    why: str
    way: int = 0

    @property
    def runs(self) -> bool:
        """Whether it is decided about the chunk: it is not skipped and is no copy of another."""
        return self.kind not in ("skip", "follow")


def resolve_all(
    moment: Moment, history: History, bound: BoundPolicy, plan: Plan, batch: int
) -> tuple[tuple[Action, ...], ...]:
    """The action of every chunk of every sample at a call, [B][G]."""
    return tuple(
        tuple(resolve(t, moment, history.chunk(b, t.chunk), bound, plan) for t in moment.chunks) for b in range(batch)
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
    situation = Situation(record.state, record.computed, record.since, None, None)
    decision = decide(bound, moment.grid, situation, None)
    if not record.computed and (record.lost or not bound.merges):
        return Action("compute", decision.phase, None, record.lost or decision.why)
    account = cell.account if record.planned else None
    if record.planned and cell.action != "dynamic":
        return Action(cell.action, decision.phase, cell.account, "planned", cell.way)
    kind: Kind = "dynamic" if decision.compute is None else "compute" if decision.compute else "reuse"
    return Action(kind, decision.phase, account, decision.why)
