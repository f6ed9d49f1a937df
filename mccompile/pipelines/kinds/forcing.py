"""Diffusion forcing, such as SkyReels-V2. The pipeline builds a timestep matrix, and every chunk is at its own step.

The step and the chunks come from that matrix. Calls are never counted.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mccompile import ir
from mccompile.pipelines.driver import Driver
from mccompile.pipelines.errors import TooFewFrames
from mccompile.pipelines.frame_steps import Alike, FrameSteps
from mccompile.pipelines.grids import grid_of
from mccompile.pipelines.watch import Watch
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import NoClock, UnknownStep

BASE_FRAMES = 97  # SkyReels-V2's window; longer videos are generated in one window all the same
CAUSAL_BLOCK = 5  # latent frames per chunk, what diffusers recommends for asynchronous inference
_requests = itertools.count()


@dataclass(frozen=True, slots=True)
class ForcingSchedule:
    """The schedule of one window of a diffusion-forcing run, chunk by chunk."""

    request: int
    grid: Grid
    timesteps: torch.Tensor  # [rows, frames], as the pipeline iterates over it
    rows: tuple[tuple[ChunkTime, ...], ...]
    frames: int  # latent frames per chunk

    def row_of(self, now: torch.Tensor) -> int | None:
        """Which row of `timesteps` a tensor is; None where it is none."""
        if now.untyped_storage().data_ptr() != self.timesteps.untyped_storage().data_ptr():
            return None
        return (now.storage_offset() - self.timesteps.storage_offset()) // self.timesteps.stride(0)


class ForcingClock:
    """Clock of a pipeline with `generate_timestep_matrix` (SkyReels-V2 diffusion forcing and its kin)."""

    def __init__(self, pipe: object) -> None:
        self._pipe = pipe
        self._schedule: ForcingSchedule | None = None
        self._conditioned = False  # frames were given, to which the pipeline may add noise anew at each call
        self._watch: Watch | None = None
        self._generation = -1  # the generation that announced the schedule
        self._steps = FrameSteps(self._alike)
        found = pipe.generate_timestep_matrix  # type: ignore[attr-defined]
        # That of a compiled model whose place the user gave back by hand would look for a generation of its own.
        earlier = getattr(found, "__self__", None)
        self._build: Callable[..., tuple[torch.Tensor, ...]] = (
            earlier._build if isinstance(earlier, ForcingClock) else found
        )

    def attach(self, ended: Callable[[], None]) -> None:
        """Watches the pipeline's calls, and what it makes its timestep matrix of."""
        self._watch = Watch(self._pipe, functools.partial(self._over, ended), self._begin)
        self._pipe.generate_timestep_matrix = self._announce  # type: ignore[attr-defined]

    def _begin(self) -> None:
        self._steps.begin(self._pipe.scheduler)  # type: ignore[attr-defined]

    def _over(self, ended: Callable[[], None]) -> None:
        self._steps.end()
        ended()

    def _alike(self, frame: int) -> Alike | None:
        """The frames that step like this one in the row that the pipeline is at; None where that is not known."""
        now, schedule = getattr(self._pipe, "_current_timestep", None), self._schedule
        row = None if now is None or schedule is None else schedule.row_of(now)
        if row is None or schedule is None:
            return None
        chunks = schedule.rows[row]
        first, own = frame // schedule.frames, chunks[frame // schedule.frames]
        end = first
        while end < len(chunks) and chunks[end].state == "active" and chunks[end].step == own.step:
            end += 1
        step = schedule.grid.timesteps[own.step]
        places = [i for i, t in enumerate(schedule.grid.timesteps) if t == step]
        return Alike(end * schedule.frames - frame, places[min(1, len(places) - 1)]) if end > first else None

    def detach(self) -> None:
        """Gives the pipeline its own method back."""
        if self._watch is not None:
            if getattr(vars(self._pipe).get("generate_timestep_matrix"), "__self__", None) is self:
                del self._pipe.generate_timestep_matrix
            self._watch.release()
        self._watch = self._schedule = None

    def _announce(self, *args: object, **kwargs: object) -> object:
        given = inspect.signature(self._build).bind(*args, **kwargs).arguments
        result = self._build(*args, **kwargs)
        matrix, index, update, _ = result
        scheduler = self._pipe.scheduler  # type: ignore[attr-defined]
        self._schedule = forcing_schedule(matrix, index, update, grid_of(scheduler))
        self._generation = self._watch.generation() if self._watch is not None else -1
        self._conditioned = int(given.get("num_pre_ready", 0)) > 0
        return result

    def moment(self, branch: str, inputs: Mapping[str, object], place: int | None = None) -> Moment:
        """The row is that of the timestep vector the pipeline is at. Raises NoClock, UnknownStep."""
        now = getattr(self._pipe, "_current_timestep", None)
        if self._watch is None or self._schedule is None or now is None:
            raise NoClock
        if self._watch.generation() != self._generation:
            raise NoClock
        schedule = self._schedule
        row = schedule.row_of(now)
        if row is None:
            raise UnknownStep(f"{now.tolist()} is no row of the timestep matrix")
        chunks = tuple(self._as_told(c, inputs, schedule.frames) for c in schedule.rows[row])
        known = row + 1 < len(schedule.rows) and not self._conditioned
        following = schedule.rows[row + 1] if known else None
        return Moment(
            schedule.request, row, branch, schedule.grid, chunks, len(chunks), following, visited=self._watch.visited
        )

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


class ForcingDriver(Driver):
    """Pipelines with `generate_timestep_matrix`. The chunk length is an argument of the call, and fixed."""

    fixed = ("causal_block_size",)

    def fits(self, pipe: object) -> bool:
        return callable(getattr(pipe, "generate_timestep_matrix", None))

    def clock(self, pipe: object) -> ForcingClock:
        return ForcingClock(pipe)

    def fixed_by(self, policy: ir.PolicyIR) -> dict[str, object]:
        """A chunk length that the policy fixes is the causal block."""
        frames = policy.chunks.frames
        return {} if frames is None else {"causal_block_size": frames}

    def completed(self, pipe: object, arguments: Mapping[str, object]) -> dict[str, object]:
        """Chunks have a length where they lag behind each other, and the window is as long as the video.

        Raises TooFewFrames (MC0717).
        """
        found = dict(arguments)
        config = pipe.transformer.config  # type: ignore[attr-defined]
        if found.get("ar_step") and config.get("num_frame_per_block") == 1:
            found.setdefault("causal_block_size", CAUSAL_BLOCK)
        frames = found.get("num_frames")
        if isinstance(frames, int):
            _check_frames(pipe, frames, found.get("causal_block_size"))
        accepted = inspect.signature(pipe.__call__).parameters  # type: ignore[operator]
        if isinstance(frames, int) and frames > BASE_FRAMES and "base_num_frames" in accepted:
            found["base_num_frames"] = frames
        return found

    def announce(self, pipe: object, arguments: Mapping[str, object]) -> None:
        """The transformer's chunk length, as the pipeline's call will set it."""
        if "causal_block_size" in arguments:
            pipe.transformer._set_ar_attention(arguments["causal_block_size"])  # type: ignore[attr-defined]


def _check_frames(pipe: object, frames: int, block: object) -> None:
    config = pipe.transformer.config  # type: ignore[attr-defined]
    chunk = block if isinstance(block, int) else int(config.get("num_frame_per_block") or 1)
    factor = int(pipe.vae_scale_factor_temporal)  # type: ignore[attr-defined]
    latent = (frames - 1) // factor + 1
    if latent < chunk:
        raise TooFewFrames(type(pipe).__name__, frames, latent, chunk, (chunk - 1) * factor + 1)


DRIVER = ForcingDriver()
