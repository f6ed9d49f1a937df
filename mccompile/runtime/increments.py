"""Takes over a pipeline's integration step. Computed tokens move by their velocity, and others repeat their last move.

MotionCache on MAGI-1 (arXiv 2605.01725) keeps the increment x_new - x_old of the latent at the last computation.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from mccompile import ir
from mccompile.capture.types import TokenGrid
from mccompile.runtime.errors import NoIncrement
from mccompile.runtime.runner import Runner
from mccompile.runtime.store import BranchStore


class ChunkCall(Protocol):
    """One call: the chunks that are integrated, in order, and the one of them whose last step it is."""

    @property
    def active_chunks(self) -> tuple[int, ...]: ...
    @property
    def finished_chunk(self) -> int | None: ...


@runtime_checkable
class Requests(Protocol):
    """A clock that names the generation under way."""

    def request(self) -> Hashable: ...


class Integrating(Protocol):
    """A pipeline whose steps can be taken over: `integrate` is called for each active chunk of a call, in order."""

    @property
    def current_call(self) -> ChunkCall | None: ...
    @property
    def guidance_passes(self) -> tuple[str, ...]: ...
    def integrate(
        self, latents: torch.Tensor, velocity: torch.Tensor, time: float, next_time: float
    ) -> torch.Tensor: ...


def check_integrates(pipe: object, policy: ir.PolicyIR, clock: object) -> None:
    """Raises NoIncrement (MC0608) where the steps of a pipeline cannot be taken over; nothing is captured for it."""
    if not isinstance(clock, Requests) or not callable(getattr(pipe, "integrate", None)):
        raise NoIncrement(policy, type(pipe).__name__, "it has no `integrate` that is called chunk by chunk")
    _check_passes(pipe, policy)  # type: ignore[arg-type]


def _check_passes(pipe: Integrating, policy: ir.PolicyIR) -> None:
    if len(pipe.guidance_passes) > 1:
        why = f"its velocity is made of {', '.join(pipe.guidance_passes)} passes with caches of their own"
        raise NoIncrement(policy, type(pipe).__name__, why)


@dataclass(slots=True)
class Increments:
    """Stands in for `pipe.integrate` until `detach`."""

    pipe: Integrating
    runner: Runner
    clock: Requests
    _call: ChunkCall | None = field(default=None)
    _done: int = field(default=0)  # active chunks of the call that have been integrated

    @classmethod
    def attach(cls, pipe: object, runner: Runner, clock: object) -> Increments:
        """Raises NoIncrement (MC0608) where there is no step to take over, or several passes make up a velocity."""
        check_integrates(pipe, runner.lowered.policy, clock)
        made = cls(pipe, runner, clock)  # type: ignore[arg-type]
        pipe.integrate = made.integrate  # type: ignore[attr-defined]
        return made

    def detach(self) -> None:
        """Gives the pipeline its own method back."""
        del self.pipe.integrate

    def integrate(self, latents: torch.Tensor, velocity: torch.Tensor, time: float, next_time: float) -> torch.Tensor:
        """One step of one chunk [1, C, frames, h, w]. Raises NoIncrement when guidance was changed meanwhile."""
        _check_passes(self.pipe, self.runner.lowered.policy)
        call = self.pipe.current_call
        assert call is not None
        if call is not self._call:
            self._call, self._done = call, 0
        chunk, self._done = call.active_chunks[self._done], self._done + 1
        store = self.runner.requests[self.clock.request()].branches[self.pipe.guidance_passes[0]]
        fresh = type(self.pipe).integrate(self.pipe, latents, velocity, time, next_time)
        computed = self._computed(store, chunk, latents)
        if chunk not in store.memory.increments:  # its first step: everything was computed
            store.memory.increments[chunk] = fresh - latents
            return fresh
        increment = torch.where(computed, fresh - latents, store.memory.increments[chunk])
        store.memory.increments[chunk] = increment
        if call.finished_chunk == chunk:
            del store.memory.increments[chunk]
        return torch.where(computed, fresh, latents + increment)

    def _computed(self, store: BranchStore, chunk: int, latents: torch.Tensor) -> torch.Tensor:
        """Which latent cells belong to computed tokens: bool [1, 1, frames, h, w]."""
        assert store.window is not None
        selection = store.course.states.selection
        assert selection is not None
        tokens = torch.as_tensor(selection[0, store.window.places.index((chunk, False))])  # [F, P]
        grid = self.runner.lowered.captured.grid
        assert isinstance(grid, TokenGrid)
        frames, height, width = grid.of(latents.shape)
        cells = tokens.view(1, 1, frames, height, width).to(latents.device)
        for axis, patch in zip((2, 3, 4), grid.patch, strict=True):
            cells = cells.repeat_interleave(patch, axis)
        return cells
