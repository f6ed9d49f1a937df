"""Clock of a pipeline that runs a window of chunks and says which (`current_call`, `current_chunks`): MAGI-1."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mccompile.models.magi.schedule import MagiCall, time_table
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import NoClock

_requests = itertools.count()


class ChunkPipeline(Protocol):
    """What the clock asks of a pipeline: the call under way, the chunks of the pass under way, the generation."""

    @property
    def current_call(self) -> MagiCall | None: ...
    @property
    def current_chunks(self) -> tuple[int, ...]: ...
    @property
    def current_run(self) -> object | None: ...


def runs_chunks(pipe: object) -> bool:
    """Whether a pipeline tells which chunks its calls hold."""
    return isinstance(getattr(type(pipe), "current_call", None), property)


@dataclass(frozen=True, slots=True)
class _Request:
    """A generation and its number; the run is held so that no other can be taken for it."""

    run: object
    number: int


class ChunkClock:
    """Every chunk of a call at its own step; a clean chunk is finished, a second run of one is its copy."""

    def __init__(self, pipe: ChunkPipeline) -> None:
        self._pipe = pipe
        self._request = _Request(None, -1)

    def detach(self) -> None:
        """Nothing was attached."""

    def request(self) -> int:
        """Number of the generation under way. Raises NoClock (MC0601) outside of one."""
        run = self._pipe.current_run
        if run is None:
            raise NoClock
        if run is not self._request.run:
            self._request = _Request(run, next(_requests))
        return self._request.number

    def moment(self, branch: str, inputs: Mapping[str, object]) -> Moment:
        """The call under way; a pass over one chunk alone is a branch of its own. Raises NoClock (MC0601)."""
        call, run, number = self._pipe.current_call, self._pipe.current_run, self.request()
        if call is None:
            raise NoClock
        chunks = self._pipe.current_chunks
        own = f"{branch}:{chunks[0]}" if branch == "uncond" else branch
        # One place more than there are chunks: a copy lies after the last one.
        return Moment(number, call.index, own, grid_of_run(run), chunk_times(call, chunks), run.chunks + 1)  # type: ignore[attr-defined]


def grid_of_run(run: object) -> Grid:
    """The steps of a chunk: MAGI-1's times run from 0 (noise) to 1 (clean), so sigma is 1 - time."""
    settings = run.settings  # type: ignore[attr-defined]
    table = time_table(settings.num_inference_steps, settings.time_transform, settings.shortcut_mode)[:-1]
    return Grid(len(table), table, tuple(1 - t for t in table))


def chunk_times(call: MagiCall, chunks: tuple[int, ...]) -> tuple[ChunkTime, ...]:
    """The chunks of one pass, in the order of its tokens."""
    steps = dict(zip(call.active_chunks, call.step_indices, strict=True))
    times: list[ChunkTime] = []
    for place, chunk in enumerate(chunks):
        if chunk in chunks[:place]:
            times.append(ChunkTime(chunks[place - 1] + 1, "active", steps[chunk], copy_of=chunk))
        elif chunk in steps:
            times.append(ChunkTime(chunk, "active", steps[chunk]))
        else:
            times.append(ChunkTime(chunk, "finished", 0, clean=True))
    return tuple(times)
