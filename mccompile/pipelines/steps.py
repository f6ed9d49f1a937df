"""Pipelines whose frames are all at the same step. The pipeline and its scheduler say at which; calls are not counted.

A timestep is never searched for in the schedule either. Schedulers repeat timesteps (Heun takes each twice), and
pipelines scale them before the model gets them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from mccompile.capture.verify import TIMESTEPS
from mccompile.pipelines.branches import BranchNames
from mccompile.pipelines.driver import Driver
from mccompile.pipelines.errors import NoSchedule, SecondTransformer
from mccompile.pipelines.experts import experts_of, part_of, rows_of
from mccompile.pipelines.grids import ToldForm, as_told, forms_told, grid_of
from mccompile.pipelines.watch import Watch
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Clock, Moment, Untold
from mccompile.runtime.errors import NoClock, UnknownStep
from mccompile.runtime.stand_in import ExpertSlot

_requests = itertools.count()


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps that a generation takes, from its first call on; a generation may start in the middle.

    timesteps: the scheduler's, held so that no other list can be taken for it. first: the row of the first call.
    """

    request: int
    generation: int
    timesteps: torch.Tensor
    first: int
    grid: Grid
    forms: tuple[ToldForm, ...] | Untold  # how the model may be told the steps, by the calls so far
    branches: BranchNames


class StepClock:
    """The clock of a pipeline whose frames are all at the same step.

    Where two transformers take turns, each has a clock of its own, and its schedule holds its own part of the steps.
    """

    def __init__(self, pipe: object, slot: ExpertSlot | None = None, lead: StepClock | None = None) -> None:
        """slot: of the transformer whose steps it tells, where there are two. lead: the clock that watches."""
        self._pipe, self._slot, self._lead = pipe, slot, lead
        self._watch: Watch | None = None
        self._schedule: Schedule | None = None
        self._row = -1
        self.source = ""  # who said which step the latest call is
        self._shared: tuple[StepClock, ...] = ()

    def share(self, slots: tuple[ExpertSlot | None, ...]) -> tuple[Clock, ...]:
        """A clock for each of the transformers in these places.

        Raises SecondTransformer (MC0713) where the pipeline runs one that is not among them.
        """
        wanted = experts_of(self._pipe)
        if len(wanted) == 1:
            return (self,)
        left_out = [slot for slot in wanted if slot not in {own or wanted[0] for own in slots}]
        if left_out:
            raise SecondTransformer(type(self._pipe).__name__, ", ".join(left_out))
        self._shared = tuple(StepClock(self._pipe, slot, self) for slot in wanted)
        return self._shared

    def attach(self, ended: Callable[[], None]) -> None:
        """Watches the pipeline's calls. Raises NoSchedule (MC0709) where it has no scheduler to ask."""
        scheduler = getattr(self._pipe, "scheduler", None)
        if scheduler is None or not callable(getattr(scheduler, "set_timesteps", None)):
            raise NoSchedule(type(self._pipe).__name__, "it has no `scheduler` with `set_timesteps`")
        self._watch = Watch(self._pipe, ended)

    def detach(self) -> None:
        """Watches no longer."""
        if self._watch is not None:
            self._watch.release()
        self._watch = self._schedule = None
        for clock in self._shared:
            clock._schedule = None

    def moment(self, branch: str, inputs: Mapping[str, object], place: int | None = None) -> Moment:
        """The step of the pipeline's loop. Raises NoClock (MC0601), UnknownStep (MC0604).

        A new request begins with every call of the pipeline, and whenever the scheduler has set new timesteps.
        """
        watch = self._watch if self._lead is None else self._lead._watch
        if watch is None:
            raise NoClock
        generation = watch.generation()
        known, timesteps = self._schedule, self._pipe.scheduler.timesteps  # type: ignore[attr-defined]
        fresh = known is None or known.generation != generation or known.timesteps is not timesteps
        row = self._place(inputs, place, None if fresh or known is None else known)
        if known is None or fresh or row < self._row:
            known = self._schedule = self._begin(generation, timesteps, row, inputs)
        self._row = row
        step, grid = row - known.first, known.grid
        if step >= grid.steps:
            raise UnknownStep(f"the loop is at row {row}, and the last one is {known.first + grid.steps - 1}")
        if step == 1 and not isinstance(known.forms, Untold) and len(known.forms) > 1:
            known = self._schedule = replace(known, forms=_agreeing(known, forms_told(grid, 1, _told(inputs))))
        name = known.branches.name(branch, row, inputs)
        following = (ChunkTime(0, "active", step + 1),) if step + 1 < grid.steps else None
        return Moment(
            known.request, row, name, grid, (ChunkTime(0, "active", step),), 1, following, known.first,
            as_told(grid, known.forms), watch.visited,
        )  # fmt: skip

    def _begin(self, generation: int, timesteps: torch.Tensor, row: int, inputs: Mapping[str, object]) -> Schedule:
        whole = grid_of(self._pipe.scheduler)  # type: ignore[attr-defined]
        own = range(whole.steps) if self._slot is None else rows_of(self._pipe, self._slot, timesteps)
        if row not in own:
            place = f"`{self._slot}`" if self._slot is not None else "the transformer"
            raise UnknownStep(f"{place} is called in row {row}, and its part of the schedule is {_in_words(own)}")
        grid = part_of(whole, range(row, own.stop))
        forms = forms_told(grid, 0, _told(inputs))
        return Schedule(self._number(generation, timesteps), generation, timesteps, row, grid, forms, BranchNames())

    def _number(self, generation: int, timesteps: torch.Tensor) -> int:
        """The number of a request that begins: that of the other transformer's part of the same generation."""
        last = self._schedule.request if self._schedule is not None else -1
        others = (clock._schedule for clock in (() if self._lead is None else self._lead._shared))
        same = [s.request for s in others if s and s.generation == generation and s.timesteps is timesteps]
        begun = next((number for number in same if number > last), None)
        return next(_requests) if begun is None else begun

    def _place(self, inputs: Mapping[str, object], place: int | None, known: Schedule | None) -> int:
        """The row of the scheduler's timesteps that a call is at."""
        scheduler = self._pipe.scheduler  # type: ignore[attr-defined]
        views = {
            "the pipeline's timestep": getattr(self._pipe, "_current_timestep", None),
            "the model's timestep": _told(inputs),
        }
        for self.source, timestep in views.items():
            row = _row_of(timestep, scheduler.timesteps)
            if row is not None:
                return row
        begun = getattr(scheduler, "begin_index", None) or 0
        if place is not None:
            self.source = "cache_context"
            return int(begun) + place
        self.source = "the scheduler's step"
        if not isinstance(getattr(type(scheduler), "step_index", None), property):
            name = type(scheduler).__name__
            raise UnknownStep(f"{name} does not say at which step it is, and the timestep is none of its own tensor")
        if scheduler.step_index is not None:
            return int(scheduler.step_index)
        return int(begun) if known is None else self._row


def _in_words(rows: range) -> str:
    return f"rows {rows.start} to {rows.stop - 1}" if rows else "empty"


def _agreeing(known: Schedule, now: tuple[ToldForm, ...] | Untold) -> tuple[ToldForm, ...] | Untold:
    """The forms that agree with the first call and with the one now; one of them from here on."""
    if isinstance(now, Untold) or isinstance(known.forms, Untold):
        return now
    both = [form for form in known.forms if form in now]
    return (both[0],) if both else Untold("its first two timesteps are not scaled alike")


def _told(inputs: Mapping[str, object]) -> object:
    """What the model is given as its timestep, by whatever name."""
    return next((inputs[name] for name in TIMESTEPS if name in inputs), None)


def _row_of(timestep: object, timesteps: torch.Tensor) -> int | None:
    """The row of which a timestep is a view; None for a number of its own, equal to one of them or not."""
    if not isinstance(timestep, torch.Tensor) or any(timestep.stride()):
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    row = timestep.storage_offset() - timesteps.storage_offset()
    return row // timesteps.stride(0) if 0 <= row < len(timesteps) * timesteps.stride(0) else None


class StepDriver(Driver):
    """The kind of every pipeline that is of no other."""

    def fits(self, pipe: object) -> bool:
        return True

    def experts(self, pipe: object) -> tuple[ExpertSlot, ...]:
        return experts_of(pipe)

    def clock(self, pipe: object) -> StepClock:
        return StepClock(pipe)
