"""Kept tensors, keyed by request, guidance branch and region. A new request is a new store; nothing is reset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import ChunkState, start
from mccompile.runtime.clock import ChunkTime


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """state: its phase. computed, cleaned: K, V and residual exist, and are those of its final input.

    since: own steps since all of its tokens were computed.
    """

    state: ChunkState
    computed: bool
    cleaned: bool
    since: int


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


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision under way: what it was made from, the chunk it begins with, what becomes of the states, the mask.

    host: see runtime/decision.py. mask: [B, G, F, P] bool on the host, valid once `copied` has happened.
    """

    host: np.ndarray
    first: int
    states: Mapping[str, object]
    mask: torch.Tensor
    copied: torch.cuda.Event | None


@dataclass(slots=True)
class BranchStore:
    """What one guidance branch of one request keeps.

    buffers: per block, keys and values in the order of the kind's buffers, allocated at first use.
    once: per block, keys and values of the text and whatever else the prompt alone determines.
    kept: per (region, stream), the residual or output of the last computation. merged: per (region, stream), the
    stream that left the region in the last call: memory to write the next one into.
    states, late, before, tail: tensors of the decision and observe graphs, by name.
    phases: per sample, per chunk of the video. computed: chunks whose K/V and residual exist, per sample;
    cleaned: those computed on their final input. since: own steps since all tokens of the chunk were computed.
    """

    phases: list[list[ChunkState]]
    computed: np.ndarray  # [B, G] bool
    cleaned: np.ndarray  # [B, G] bool
    since: np.ndarray  # [B, G] int64
    observed: np.ndarray  # [B, G] bool: the late signals of the chunk's last frame exist
    copies: set[tuple[int, int]] = field(default_factory=set)  # (sample, chunk) whose copy has been computed
    seen: set[tuple[int, int]] = field(default_factory=set)  # (sample, chunk) whose last frame the decision has seen
    increments: dict[int, torch.Tensor] = field(default_factory=dict)  # per chunk, the last latent increment
    window: Window | None = None  # what the rows of buffers and kept tensors are
    buffers: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    once: dict[int, Once] = field(default_factory=dict)
    kept: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    merged: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    states: dict[str, torch.Tensor] = field(default_factory=dict)
    ahead: Decision | None = None  # of the next call, made when this one ended
    row: int = -1
    selection: np.ndarray | None = None  # [B, G, F, P] bool of the last decision, on the host

    @classmethod
    def empty(cls, bound: BoundPolicy, batch: int, chunks: int) -> BranchStore:
        """Nothing kept yet, of a video of so many chunks."""
        phases = [[start(bound) for _ in range(chunks)] for _ in range(batch)]
        computed, cleaned, observed = (np.zeros((batch, chunks), bool) for _ in range(3))
        return cls(phases, computed, cleaned, np.zeros((batch, chunks), np.int64), observed)

    def chunk(self, sample: int, chunk: int) -> ChunkRecord:
        """What is known of one chunk of one sample."""
        flags = (bool(self.computed[sample, chunk]), bool(self.cleaned[sample, chunk]))
        return ChunkRecord(self.phases[sample][chunk], *flags, int(self.since[sample, chunk]))

    def note(self, sample: int, time: ChunkTime, all_computed: bool) -> None:
        """A chunk was run: whether all of its tokens were computed."""
        if time.copy_of is not None:
            self.copies |= {(sample, time.copy_of)} if all_computed else set()
            return
        at = sample, time.chunk
        if all_computed:
            self.computed[at] = True
            self.cleaned[at] |= time.state == "finished" and time.clean
        if time.state == "active":
            self.since[at] = 0 if all_computed else self.since[at] + 1

    def nbytes(self) -> int:
        """Bytes of all kept tensors."""
        tensors = [t for b in self.buffers.values() for t in b]
        tensors += [t for known in self.once.values() for t in known.values]
        tensors += [*self.kept.values(), *self.merged.values(), *self.states.values(), *self.increments.values()]
        return sum(t.nbytes for t in tensors)
