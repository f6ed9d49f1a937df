"""Pipelines whose frames are all at the same step. The timesteps of the scheduler say at which."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from mccompile.pipelines.driver import Driver
from mccompile.pipelines.grids import grid_of
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import NoClock, UnknownStep

_requests = itertools.count()


class StepClock:
    """The clock of a pipeline whose frames are all at the same step. The scheduler's timesteps say at which."""

    def __init__(self, pipe: object) -> None:
        self._pipe = pipe
        self._request = next(_requests)
        self._timesteps: torch.Tensor | None = None

    def detach(self) -> None:
        """Nothing was attached."""

    def moment(self, branch: str, inputs: Mapping[str, object]) -> Moment:
        """A new request whenever the scheduler has set new timesteps. Raises NoClock, UnknownStep."""
        scheduler = self._pipe.scheduler  # type: ignore[attr-defined]
        now = getattr(self._pipe, "_current_timestep", None)
        if now is None:
            raise NoClock
        if scheduler.timesteps is not self._timesteps:
            self._timesteps, self._request = scheduler.timesteps, next(_requests)
        grid = grid_of(scheduler)
        found = [i for i, t in enumerate(grid.timesteps) if t == float(now)]
        if not found:
            raise UnknownStep(f"{float(now)} is none of the scheduler's {grid.steps} timesteps")
        step = found[0]
        following = (ChunkTime(0, "active", step + 1),) if step + 1 < grid.steps else None
        return Moment(self._request, step, branch, grid, (ChunkTime(0, "active", step),), 1, following)


class StepDriver(Driver):
    """The kind of every pipeline that is of no other."""

    def fits(self, pipe: object) -> bool:
        return True

    def clock(self, pipe: object) -> StepClock:
        return StepClock(pipe)
