"""The clock says which step of which chunk a call of the transformer is. Whoever drives the generation tells it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from mccompile.policy.phases import Grid
from mccompile.runtime.stand_in import ExpertSlot


@dataclass(frozen=True, slots=True)
class ChunkTime:
    """One chunk at one call. `step` is the chunk's own step that is about to run, from 0. Only active chunks have one.

    clean: the chunk's input of this call is final (timestep 0, latents that no later call changes).
    copy_of: these tokens repeat chunk `copy_of` of the same call in another context (MAGI-1: without its past). `chunk`
    is then the place after the last one, and the decision of that chunk holds for the copy.
    """

    chunk: int  # position in the video, 0 first
    state: Literal["pending", "active", "finished"]
    step: int
    clean: bool = False
    copy_of: int | None = None

    @property
    def original(self) -> int:
        """The chunk itself, or the one that a copy repeats."""
        return self.chunk if self.copy_of is None else self.copy_of


@dataclass(frozen=True, slots=True)
class Told:
    """The timestep that the model is given at each step of a grid, scaled or counted as its pipeline does."""

    timesteps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Untold:
    """Why it is not known which timesteps the model will be given."""

    why: str


@dataclass(frozen=True, slots=True)
class Moment:
    """One call: the request it belongs to, its place in the request's schedule, its guidance branch.

    chunks: the chunks in the call's input, in order. total: the number of chunks of the whole video. following: the
    chunks of the request's next row, if the schedule already knows them. first: the schedule's step that is the first
    of the grid, because a generation may start in the middle. told: the timesteps that the model is given; None: the
    grid's own. visited: code of others runs between the calls, and may change the model. sample: the first of the
    samples that are run now, where the call has more that are run after it.
    """

    request: Hashable
    row: int
    branch: str
    grid: Grid
    chunks: tuple[ChunkTime, ...]
    total: int
    following: tuple[ChunkTime, ...] | None = None
    first: int = 0
    told: Told | Untold | None = None
    visited: bool = False
    sample: int = 0


class Clock(Protocol):
    """Says which moment a call is. Drivers of pipelines and `Timeline` implement it.

    place: the step of the loop, counted from its first, where the pipeline says so (diffusers' `cache_context`).
    """

    def moment(self, branch: str, inputs: Mapping[str, object], place: int | None = None) -> Moment: ...


@runtime_checkable
class Attached(Protocol):
    """A clock that must hang on its pipeline while it is used."""

    def attach(self, ended: Callable[[], None]) -> None:
        """Hangs itself on the pipeline. ended: what to call when a generation is over."""

    def detach(self) -> None:
        """Gives the pipeline back as it was."""


@runtime_checkable
class SharedClock(Protocol):
    """A clock that tells the steps of several transformers, which run a generation in turn."""

    def share(self, slots: tuple[ExpertSlot | None, ...]) -> tuple[Clock, ...]:
        """A clock for each of the transformers in these places; None: the only one. Raises for places that it lacks."""


@dataclass(slots=True)
class Timeline:
    """A clock that the user sets: `timeline.row = i` before the calls of row i (replays, own loops, tests)."""

    request: Hashable
    grid: Grid
    rows: tuple[tuple[ChunkTime, ...], ...]
    row: int = field(default=0)

    def moment(self, branch: str, inputs: Mapping[str, object], place: int | None = None) -> Moment:
        """The moment of the current row. Raises IndexError when `row` lies outside the schedule."""
        chunks = self.rows[self.row]
        total = 1 + max(c.chunk for c in chunks)
        following = self.rows[self.row + 1] if self.row + 1 < len(self.rows) else None
        return Moment(self.request, self.row, branch, self.grid, chunks, total, following)


def steps_in_order(grid: Grid, chunks: int = 1) -> tuple[tuple[ChunkTime, ...], ...]:
    """The schedule of a model whose chunks all take the same step in each call (no autoregression)."""
    return tuple(tuple(ChunkTime(c, "active", k) for c in range(chunks)) for k in range(grid.steps))
