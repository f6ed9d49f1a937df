"""What one guidance branch of one request keeps: memory of blocks, the history of its chunks, states of decisions.

A store is keyed by request and guidance branch. A new request is a new store; nothing is reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mccompile.lowering.slots import Count, Kept
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import ChunkState, Grid, advance, start
from mccompile.runtime.clock import ChunkTime


@dataclass(frozen=True, slots=True)
class Window:
    """The chunks of a call by place, (chunk, whether it is a copy), its tokens per chunk, and its input shapes."""

    places: tuple[tuple[int, bool], ...]
    tokens: int
    shapes: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Once:
    """What a block makes of the prompt alone: `values`, of the very tensors `held`."""

    held: tuple[object, ...]
    values: tuple[torch.Tensor, ...]

    def made_of(self, held: Sequence[object]) -> bool:
        """Whether it is made of these very values."""
        return len(self.held) == len(held) and all(a is b for a, b in zip(self.held, held, strict=True))


@dataclass(slots=True)
class Memory:
    """Kept tensors of blocks, by rows.

    buffers: per block, keys and values in the order of its kind, allocated at first use.
    once: per block, keys and values of the text and whatever else the prompt alone determines.
    kept: per (region, stream), the residual or output of the last computation. merged: per (region, stream), the
    stream that left the region in the last call: memory to write the next one into. increments: per chunk, the last
    latent increment.
    """

    buffers: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    once: dict[int, Once] = field(default_factory=dict)
    kept: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    merged: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    increments: dict[int, torch.Tensor] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [t for b in self.buffers.values() for t in b]
        tensors += [t for known in self.once.values() for t in known.values]
        tensors += [*self.kept.values(), *self.merged.values(), *self.increments.values()]
        return sum(t.nbytes for t in tensors)


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """state: its phase. computed, cleaned: K, V and residual exist, and are those of its final input.

    since: own steps since all of its tokens were computed.
    """

    state: ChunkState
    computed: bool
    cleaned: bool
    since: int


@dataclass(slots=True)
class History:
    """What has happened to the chunks of the video, on the host.

    phases: per sample, per chunk. computed, cleaned, since: see ChunkRecord. copies: (sample, chunk) whose copy has
    been computed.
    """

    phases: list[list[ChunkState]]
    computed: np.ndarray  # [B, G] bool
    cleaned: np.ndarray  # [B, G] bool
    since: np.ndarray  # [B, G] int64
    copies: set[tuple[int, int]] = field(default_factory=set)

    @classmethod
    def empty(cls, bound: BoundPolicy, batch: int, chunks: int) -> History:
        """Nothing has happened yet, to a video of so many chunks."""
        phases = [[start(bound) for _ in range(chunks)] for _ in range(batch)]
        computed, cleaned = (np.zeros((batch, chunks), bool) for _ in range(2))
        return cls(phases, computed, cleaned, np.zeros((batch, chunks), np.int64))

    def chunk(self, sample: int, chunk: int) -> ChunkRecord:
        """What is known of one chunk of one sample."""
        flags = (bool(self.computed[sample, chunk]), bool(self.cleaned[sample, chunk]))
        return ChunkRecord(self.phases[sample][chunk], *flags, int(self.since[sample, chunk]))

    def note(self, sample: int, time: ChunkTime, bound: BoundPolicy, grid: Grid, mask: np.ndarray) -> None:
        """A chunk was run; mask: which of its tokens were computed. The phase of an active chunk advances."""
        all_computed = bool(mask.all())
        if time.copy_of is not None:
            self.copies |= {(sample, time.copy_of)} if all_computed else set()
            return
        at = sample, time.chunk
        if all_computed:
            self.computed[at] = True
            self.cleaned[at] |= time.state == "finished" and time.clean
        if time.state == "active":
            self.since[at] = 0 if all_computed else self.since[at] + 1
            state = self.phases[sample][time.chunk]
            self.phases[sample][time.chunk] = advance(bound, state, grid, bool(mask.any()))


@dataclass(frozen=True, slots=True)
class Deciding:
    """A decision under way: what it was made from, the chunk it begins with, what becomes of the states, the mask.

    host: see runtime/decision.py. mask: [B, G, F, P] bool on the host, valid once `copied` has happened.
    """

    host: np.ndarray
    first: int
    states: Mapping[Kept, torch.Tensor]
    mask: torch.Tensor
    copied: torch.cuda.Event | None


@dataclass(slots=True)
class States:
    """Tensors that the decision and observe graphs read and replace, on the device.

    seen, observed: (sample, chunk) whose last frame the decision graph, or the observe graph, has kept.
    ahead: the decision of the next call, made when this one ended. selection: the last mask, [B, G, F, P] bool.
    """

    tensors: dict[Kept, torch.Tensor] = field(default_factory=dict)
    seen: set[tuple[int, int]] = field(default_factory=set)
    observed: set[tuple[int, int]] = field(default_factory=set)
    ahead: Deciding | None = None
    selection: np.ndarray | None = None

    def clear_accounts(self) -> None:
        """Everything was computed, whatever asked for it."""
        account = self.tensors.get(Count("account"))
        if account is not None:
            account.zero_()

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())


@dataclass(slots=True)
class BranchStore:
    """What one guidance branch of one request keeps.

    window: what the rows of `memory` are. row: the last row of the schedule that it was called in.
    """

    history: History
    memory: Memory = field(default_factory=Memory)
    states: States = field(default_factory=States)
    window: Window | None = None
    row: int = -1

    @classmethod
    def empty(cls, bound: BoundPolicy, batch: int, chunks: int) -> BranchStore:
        """Nothing kept yet, of a video of so many chunks."""
        return cls(History.empty(bound, batch, chunks))

    def nbytes(self) -> int:
        """Bytes of all kept tensors."""
        return self.memory.nbytes() + self.states.nbytes()
