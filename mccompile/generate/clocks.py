"""Clocks of diffusers pipelines: the step and the chunks come from the pipeline's own schedule, never from counting.

Chosen by what a pipeline offers, not by its name: one that builds a timestep matrix (diffusion forcing) tells
the state of every chunk; one that names the chunks of its calls is asked; any other tells one step for the whole
video.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mccompile.generate.chunk_clock import ChunkClock, runs_chunks
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import NoClock, UnknownStep

_requests = itertools.count()


def grid_of(scheduler: object) -> Grid:
    """The step grid that a diffusers scheduler has set: its timesteps (as the model gets them) and sigmas."""
    timesteps = [float(t) for t in scheduler.timesteps]  # type: ignore[attr-defined]
    sigmas = getattr(scheduler, "sigmas", None)
    values = [float(s) for s in sigmas] if sigmas is not None else [t / 1000 for t in timesteps]
    return Grid(len(timesteps), tuple(timesteps), tuple(values[: len(timesteps)]))


@dataclass(frozen=True, slots=True)
class ForcingSchedule:
    """The schedule of one window of a diffusion-forcing run, chunk by chunk."""

    request: int
    grid: Grid
    timesteps: torch.Tensor  # [rows, frames], as the pipeline iterates over it
    rows: tuple[tuple[ChunkTime, ...], ...]
    frames: int  # latent frames per chunk


class ForcingClock:
    """Clock of a pipeline with `generate_timestep_matrix` (SkyReels-V2 diffusion forcing and its kin)."""

    def __init__(self, pipe: object) -> None:
        self._pipe = pipe
        self._schedule: ForcingSchedule | None = None
        self._conditioned = False  # frames were given, to which the pipeline may add noise anew at each call
        self._build = pipe.generate_timestep_matrix  # type: ignore[attr-defined]
        pipe.generate_timestep_matrix = self._announce  # type: ignore[attr-defined]

    def detach(self) -> None:
        """Gives the pipeline its own method back."""
        del self._pipe.generate_timestep_matrix  # type: ignore[attr-defined]

    def _announce(self, *args: object, **kwargs: object) -> object:
        given = inspect.signature(self._build).bind(*args, **kwargs).arguments
        result = self._build(*args, **kwargs)
        matrix, index, update, _ = result
        scheduler = self._pipe.scheduler  # type: ignore[attr-defined]
        self._schedule = forcing_schedule(matrix, index, update, grid_of(scheduler))
        self._conditioned = int(given.get("num_pre_ready", 0)) > 0
        return result

    def moment(self, branch: str, inputs: Mapping[str, object]) -> Moment:
        """The row is that of the timestep vector the pipeline is at. Raises NoClock, UnknownStep."""
        now = getattr(self._pipe, "_current_timestep", None)
        if self._schedule is None or now is None:
            raise NoClock
        schedule = self._schedule
        if now.untyped_storage().data_ptr() != schedule.timesteps.untyped_storage().data_ptr():
            raise UnknownStep(f"{now.tolist()} is no row of the timestep matrix")
        row = (now.storage_offset() - schedule.timesteps.storage_offset()) // schedule.timesteps.stride(0)
        chunks = tuple(self._as_told(c, inputs, schedule.frames) for c in schedule.rows[row])
        known = row + 1 < len(schedule.rows) and not self._conditioned
        following = schedule.rows[row + 1] if known else None
        return Moment(schedule.request, row, branch, schedule.grid, chunks, len(chunks), following)

    def _as_told(self, time: ChunkTime, inputs: Mapping[str, object], frames: int) -> ChunkTime:
        """A finished chunk whose frames got a timestep other than 0 (noised condition) is not clean.

        Looks at the timesteps, a host read, only where frames were given.
        """
        told = inputs["timestep"]
        assert isinstance(told, torch.Tensor)
        if not self._conditioned or time.state != "finished" or told.dim() < 2:
            return time
        own = told[:, time.chunk * frames : (time.chunk + 1) * frames]
        return ChunkTime(time.chunk, time.state, time.step, clean=not bool(own.any()))


def forcing_schedule(matrix: torch.Tensor, index: torch.Tensor, update: torch.Tensor, grid: Grid) -> ForcingSchedule:
    """Chunks are the runs of frames that share every step; `index` counts a chunk's steps from 1, 0 = waiting.

    matrix, index, update: [rows, frames] as SkyReelsV2DiffusionForcingPipeline.generate_timestep_matrix returns.
    """
    frames = _shared_run(index)
    rows = []
    for steps, moves in zip(index[:, ::frames].tolist(), update[:, ::frames].tolist(), strict=True):
        chunks = []
        for chunk, (step, moving) in enumerate(zip(steps, moves, strict=True)):
            state = "active" if moving else "pending" if step == 0 else "finished"
            chunks.append(ChunkTime(chunk, state, step - 1 if moving else 0, clean=state == "finished"))  # type: ignore[arg-type]
        rows.append(tuple(chunks))
    return ForcingSchedule(next(_requests), grid, matrix, tuple(rows), frames)


def _shared_run(index: torch.Tensor) -> int:
    """Length of the runs of neighbouring columns that are equal; all frames if every column is."""
    total = index.size(1)
    for length in range(total, 0, -1):
        runs = index.view(index.size(0), -1, length) if total % length == 0 else None
        if runs is not None and bool((runs == runs[:, :, :1]).all()):
            return length
    return 1


class StepClock:
    """Clock of a pipeline whose frames all take the same step: the scheduler's timesteps say which."""

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


def clock_for(pipe: object) -> ForcingClock | ChunkClock | StepClock:
    """The clock that fits what the pipeline offers."""
    if runs_chunks(pipe):
        return ChunkClock(pipe)  # type: ignore[arg-type]
    return ForcingClock(pipe) if callable(getattr(pipe, "generate_timestep_matrix", None)) else StepClock(pipe)
