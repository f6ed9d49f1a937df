"""The phase machine: which phase a chunk is in, as a pure function of what happened to it.

One state per (sample, branch, chunk). Phases with `for`, `until` or no span follow each other in order; those
with `between` or `last` hold whenever the chunk's clock says so, and the phase they interrupt waits: its steps
and refreshes are counted only while it is in force itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.errors import StepsUncovered
from mccompile.policy.evaluate import Grid, clock_value

__all__ = ["ChunkState", "Grid", "advance", "current", "next_phase", "overriding", "phase_step", "start"]


@dataclass(frozen=True, slots=True)
class ChunkState:
    """How far a chunk is, before the step about to run.

    step: own steps done. phase: the phase in order (not one that interrupts it) when it last was in force.
    refreshes: steps of that phase in which at least one token was computed. phase_steps: steps of that phase.
    """

    step: int
    phase: int
    refreshes: int
    phase_steps: int


def start(bound: BoundPolicy) -> ChunkState:
    """The state of a chunk that has done no step."""
    return _settle(bound, ChunkState(step=0, phase=0, refreshes=0, phase_steps=0))


def current(bound: BoundPolicy, state: ChunkState, grid: Grid) -> int:
    """Index of the phase in force for the step about to run. Raises PolicyError (MC0306) if there is none."""
    over = overriding(bound, state.step, grid)
    if over is not None:
        return over
    if state.phase == len(bound.ir.phases):
        raise PolicyError([StepsUncovered(bound.ir.phases[-1].span.at, bound.ir.name, state.step, grid.steps)])
    return state.phase


def overriding(bound: BoundPolicy, step: int, grid: Grid) -> int | None:
    """Index of the phase that interrupts the others at this own step: `last` first, then `between`."""
    phases = bound.ir.phases
    for index, phase in enumerate(phases):
        if isinstance(phase.span, ir.LastSteps) and step >= grid.steps - bound.whole(phase.span.n):
            return index
    for index, phase in enumerate(phases):
        if isinstance(phase.span, ir.Between):
            value = clock_value(phase.span.clock.what, step, grid)
            if bound.number(phase.span.low) <= value < bound.number(phase.span.high):
                return index
    return None


def phase_step(bound: BoundPolicy, state: ChunkState, grid: Grid) -> int:
    """How many steps the phase in force has had before the step about to run (0 in its first)."""
    over = overriding(bound, state.step, grid)
    if over is None:
        return state.phase_steps
    return sum(overriding(bound, step, grid) == over for step in range(state.step))


def advance(bound: BoundPolicy, state: ChunkState, grid: Grid, computed_any: bool) -> ChunkState:
    """The state after the step: `computed_any` says whether a token of the chunk was computed in it."""
    done = 0 if overriding(bound, state.step, grid) is not None else 1
    counted = ChunkState(
        step=state.step + 1,
        phase=state.phase,
        refreshes=state.refreshes + (done if computed_any else 0),
        phase_steps=state.phase_steps + done,
    )
    return _settle(bound, counted)


def next_phase(bound: BoundPolicy, state: ChunkState, grid: Grid, computed_any: bool) -> int | None:
    """The phase of the step after the one about to run: tells whether late signals are needed then.

    After the chunk's last step it is the phase that a further step would have in order (the next chunk may
    look at this chunk's last frame); None where the phases are over.
    """
    after = advance(bound, state, grid, computed_any)
    over = overriding(bound, after.step, grid) if after.step < grid.steps else None
    if over is not None:
        return over
    return after.phase if after.phase < len(bound.ir.phases) else None


def _settle(bound: BoundPolicy, state: ChunkState) -> ChunkState:
    """The state with the phases that are over, or only interrupt, left behind."""
    while state.phase < len(bound.ir.phases) and _over(bound, state):
        state = ChunkState(step=state.step, phase=state.phase + 1, refreshes=0, phase_steps=0)
    return state


def _over(bound: BoundPolicy, state: ChunkState) -> bool:
    span = bound.ir.phases[state.phase].span
    match span:
        case ir.ForSteps(n):
            return state.phase_steps >= bound.whole(n)
        case ir.UntilRefreshes(n):
            return state.refreshes >= bound.whole(n)
        case ir.Between() | ir.LastSteps():
            return True
        case ir.Rest():
            return False
        case _:
            assert_never(span)
