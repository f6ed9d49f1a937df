"""What one guidance branch of one request keeps: memory of blocks, the history of its chunks, states of decisions.

A store is keyed by request and guidance branch. A new request is a new store; nothing is reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mccompile.capture.own import Mark, mark_of
from mccompile.lowering.slots import Count, KeptSlot
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.facts import steps_read
from mccompile.policy.phases import ChunkState, Grid, advance, start
from mccompile.runtime.clock import ChunkTime
from mccompile.runtime.finite import OnItsWay


@dataclass(frozen=True, slots=True)
class Window:
    """The chunks of a call by place, as (chunk, whether it is a copy); its tokens per chunk and its input shapes."""

    places: tuple[tuple[int, bool], ...]
    tokens: int
    shapes: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Once:
    """What a block makes of the prompt alone. values: the results. held: the very tensors that they were made from."""

    held: tuple[object, ...]
    values: tuple[torch.Tensor, ...]

    def made_of(self, held: Sequence[object]) -> bool:
        """Says whether it is made of these very values."""
        return len(self.held) == len(held) and all(a is b for a, b in zip(self.held, held, strict=True))


@dataclass(frozen=True, slots=True)
class Held:
    """An input as it was at a call. value: the tensor itself, or a copy if nobody could notice that it changes."""

    value: torch.Tensor
    mark: Mark | None

    @classmethod
    def of(cls, value: torch.Tensor) -> Held:
        """Holds a value. In inference mode tensors count no versions, so a copy is held."""
        return cls(value.clone(), None) if value.is_inference() else cls(value, mark_of(value))

    def changed(self) -> bool:
        """Says whether the value is another since it was held."""
        return self.mark is not None and mark_of(self.value) != self.mark

    def same(self, other: Held) -> bool:
        """Says whether both are the same values: one unmodified tensor, or equal tensors not modified since."""
        if any(h.changed() for h in (self, other)):
            return False
        one, two = self.value, other.value
        return one is two or (one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two))


@dataclass(frozen=True, slots=True)
class Made:
    """What the tensors of a store are made of.

    size: samples, frames of a chunk, height and width in tokens. prompt: the inputs that hold for a whole request.
    """

    size: tuple[int, ...]
    prompt: Mapping[str, Held]

    def same_prompt(self, other: Made) -> bool:
        """Says whether both are made of the same inputs."""
        names = self.prompt.keys()
        return names == other.prompt.keys() and all(self.prompt[n].same(other.prompt[n]) for n in names)


@dataclass(slots=True)
class Memory:
    """Kept tensors of blocks, by rows.

    buffers: per block, keys and values in the order of its kind, allocated at first use.
    chosen: per block, which keys of older chunks each of its attentions reads, where a policy picks keys.
    once: per block, keys and values of the text and whatever else the prompt alone determines. apart: per (block,
    sample), the same for one sample, where the values of all cannot be cut.
    kept: per (region, stream), the residual or output of the last computation. older: the same of the computations
    before it, the latest first, where a forecast needs them. passed: the same of the last steps, computed or standing
    in, where a forecast needs those. merged: per (region, stream), the stream that left the region in the last call:
    memory to write the next one into. increments: per chunk, the last latent increment. outputs: of all chunks of the
    video, the model's last output or residual, [B, G, F, P, C].
    """

    buffers: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    chosen: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    once: dict[int, Once] = field(default_factory=dict)
    apart: dict[tuple[int, int], Once] = field(default_factory=dict)
    kept: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    older: dict[tuple[int, str], tuple[torch.Tensor, ...]] = field(default_factory=dict)
    passed: dict[tuple[int, str], tuple[torch.Tensor, ...]] = field(default_factory=dict)
    merged: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    increments: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: torch.Tensor | None = None

    def nbytes(self) -> int:
        """Returns the bytes of all tensors."""
        tensors = [t for b in (*self.buffers.values(), *self.chosen.values()) for t in b]
        tensors += [t for known in (*self.once.values(), *self.apart.values()) for t in known.values]
        tensors += [t for earlier in (*self.older.values(), *self.passed.values()) for t in earlier]
        tensors += [*self.kept.values(), *self.merged.values(), *self.increments.values()]
        tensors += [] if self.outputs is None else [self.outputs]
        return sum(t.nbytes for t in tensors)


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """state: its phase. computed, cleaned: K, V and residual exist, and are those of its final input.

    since: own steps since all of its tokens were computed. planned: nothing has happened that the plan did not foresee.
    lost: why nothing is kept of it, "" where it has not been computed yet.
    """

    state: ChunkState
    computed: bool
    cleaned: bool
    since: int
    planned: bool
    lost: str


@dataclass(frozen=True, slots=True)
class Recent:
    """The own steps that computed each token of a chunk last, int64 [n, F, P], the latest first; -1 where none did."""

    steps: np.ndarray

    def after(self, step: int, mask: np.ndarray) -> Recent:
        """Returns the same after a step that computed the tokens of `mask`, bool [F, P]."""
        moved = np.concatenate([np.full((1, *mask.shape), step), self.steps[:-1]])
        return Recent(np.where(mask, moved, self.steps))


@dataclass(slots=True)
class History:
    """What has happened to the chunks of the video. It lies on the host.

    phases: per sample, per chunk. computed, cleaned, since, planned, lost: see ChunkRecord. copies: (sample, chunk)
    whose copy has been computed. recent: of (sample, chunk, whether it is a copy), where a forecast reads it.
    """

    phases: list[list[ChunkState]]
    computed: np.ndarray  # [B, G] bool
    cleaned: np.ndarray  # [B, G] bool
    since: np.ndarray  # [B, G] int64
    planned: np.ndarray  # [B, G] bool
    lost: dict[tuple[int, int], str] = field(default_factory=dict)
    copies: set[tuple[int, int]] = field(default_factory=set)
    recent: dict[tuple[int, int, bool], Recent] = field(default_factory=dict)

    @classmethod
    def empty(cls, bound: BoundPolicy, batch: int, chunks: int) -> History:
        """Returns the history of a video of so many chunks to which nothing has happened yet."""
        phases = [[start(bound) for _ in range(chunks)] for _ in range(batch)]
        computed, cleaned = (np.zeros((batch, chunks), bool) for _ in range(2))
        return cls(phases, computed, cleaned, np.zeros((batch, chunks), np.int64), np.ones((batch, chunks), bool))

    def chunk(self, sample: int, chunk: int) -> ChunkRecord:
        """Returns what is known of one chunk of one sample."""
        flags = (bool(self.computed[sample, chunk]), bool(self.cleaned[sample, chunk]))
        at = sample, chunk
        planned, lost = bool(self.planned[at]), self.lost.get(at, "")
        return ChunkRecord(self.phases[sample][chunk], *flags, int(self.since[at]), planned, lost)

    def lose(self, why: str, but_clean: bool = False) -> None:
        """Forgets what is kept. but_clean: chunks that were computed on their final input keep theirs."""
        kept = self.cleaned if but_clean else np.zeros_like(self.cleaned)
        self.computed, self.cleaned = kept.copy(), kept.copy()
        self.copies.clear()
        for sample, chunk in np.argwhere(~kept):
            at = int(sample), int(chunk)
            if self.phases[at[0]][at[1]].step > 0 or not but_clean:
                self.planned[at], self.lost[at] = False, why

    def follow(self, time: ChunkTime, bound: BoundPolicy, grid: Grid) -> None:
        """Brings the phases of an active chunk to its present step. Steps that were left out computed nothing."""
        for sample, phases in enumerate(self.phases):
            state = phases[time.chunk]
            if state.step == time.step:
                continue
            at = sample, time.chunk
            self.computed[at], self.cleaned[at], self.planned[at] = False, False, False
            done = f"{state.step} steps before step {time.step}"
            why = f"first called at step {time.step}" if state.step == 0 else done
            self.lost.setdefault(at, why)
            state = start(bound) if state.step > time.step else state
            while state.step < time.step:
                state = advance(bound, state, grid, False)
            phases[time.chunk] = state

    def note(self, sample: int, time: ChunkTime, bound: BoundPolicy, grid: Grid, mask: np.ndarray) -> None:
        """Notes that a chunk was run. mask: its tokens that were computed. The phase of an active chunk advances."""
        all_computed = bool(mask.all())
        complete = all_computed or (bound.merges and bool(mask.any()))  # each token has results, its own or another's
        self._note_recent(sample, time, bound, mask)
        if time.copy_of is not None:
            self.copies |= {(sample, time.copy_of)} if complete else set()
            return
        at = sample, time.chunk
        if complete:
            self.computed[at] = True
            self.lost.pop(at, None)
        if all_computed:
            self.cleaned[at] |= time.state == "finished" and time.clean
        if time.state == "active":
            self.since[at] = 0 if all_computed else self.since[at] + 1
            state = self.phases[sample][time.chunk]
            self.phases[sample][time.chunk] = advance(bound, state, grid, bool(mask.any()))

    def recent_of(self, sample: int, time: ChunkTime) -> Recent | None:
        """The last steps that computed a chunk, or its copy; None where it was never run or no forecast reads them."""
        return self.recent.get((sample, time.original, time.copy_of is not None))

    def _note_recent(self, sample: int, time: ChunkTime, bound: BoundPolicy, mask: np.ndarray) -> None:
        """Notes the steps that computed each token, where a forecast reads them."""
        back = steps_read(bound.ir)
        if back == 0 or time.state != "active":
            return
        at = sample, time.original, time.copy_of is not None
        kept = at[:2] in self.copies if at[2] else bool(self.computed[at[:2]])
        known = self.recent.get(at) if kept else None
        self.recent[at] = (known or Recent(np.full((back, *mask.shape), -1))).after(time.step, mask)


@dataclass(frozen=True, slots=True)
class Deciding:
    """A decision under way: what it was made from, the chunk that it begins with, the new states, and what is coming.

    host: see runtime/decision.py. coming: the mask [B, G, F, P] bool, what it was made by [B, K, G] float32, and which
    alternatives stand in, where rules say it.
    """

    host: np.ndarray
    first: int
    states: Mapping[KeptSlot, torch.Tensor]
    coming: OnItsWay


@dataclass(slots=True)
class States:
    """Tensors that the decision and observe graphs read and replace, on the device.

    seen, observed: (sample, chunk) whose last frame the decision graph, or the observe graph, has kept.
    ahead: the decision of the next call, made when this one ended. selection: the last mask, [B, G, F, P] bool.
    measured: what the decision graph made the last mask by, [B, K, G]; None where it was not asked. ways: by which
    alternative of its rule each cell is reused, uint8 [B, G, F, P]; None where rules have no stand-ins of their own.
    """

    tensors: dict[KeptSlot, torch.Tensor] = field(default_factory=dict)
    seen: set[tuple[int, int]] = field(default_factory=set)
    observed: set[tuple[int, int]] = field(default_factory=set)
    ahead: Deciding | None = None
    selection: np.ndarray | None = None
    measured: np.ndarray | None = None
    ways: np.ndarray | None = None

    def clear_accounts(self) -> None:
        """Clears the accounts, because everything was computed."""
        for slot, tensor in self.tensors.items():
            if isinstance(slot, Count) and slot.of == "account":
                tensor.zero_()

    def nbytes(self) -> int:
        """Returns the bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())


@dataclass(slots=True)
class Course:
    """What has happened to the regions of one group, and the states of their decision."""

    history: History
    states: States = field(default_factory=States)


@dataclass(frozen=True, slots=True)
class Returned:
    """What the model gave in a branch's last call; None where not all of it was computed."""

    output: Held | None


@dataclass(frozen=True, slots=True)
class GapBase:
    """What the other guidance branch has given at the same step. value: None where it gave nothing that can be used.

    why: then the reason, for the trace.
    """

    value: torch.Tensor | None
    why: str


@dataclass(slots=True)
class BranchStore:
    """What one guidance branch of one request keeps.

    courses: of each group of regions, in order of depth. window: what the rows of `memory` are. made: what its tensors
    are made of. row: the last row of the schedule that it was called in. finite: whether the results of that call were.
    returned: what the model gave in that call, where the gap between branches is kept; it is the pipeline's own tensor.
    beside: what is known of the other branch in the call under way, where the gap is kept.
    """

    courses: Mapping[str, Course]
    memory: Memory = field(default_factory=Memory)
    window: Window | None = None
    made: Made | None = None
    row: int = -1
    finite: OnItsWay | None = None
    returned: Returned | None = None
    beside: GapBase | None = None

    @classmethod
    def empty(cls, bounds: Mapping[str, BoundPolicy], batch: int, chunks: int) -> BranchStore:
        """Returns the store of a video of so many chunks, of which nothing is kept yet.

        bounds: the policy as each group of regions sees it.
        """
        return cls({group: Course(History.empty(bound, batch, chunks)) for group, bound in bounds.items()})

    @property
    def course(self) -> Course:
        """That of the only group."""
        (only,) = self.courses.values()
        return only

    def lose(self, why: str, but_clean: bool = False) -> None:
        """Forgets what is kept. but_clean: chunks that were computed on their final input keep theirs."""
        for course in self.courses.values():
            course.history.lose(why, but_clean)

    def drop(self, why: str) -> None:
        """Forgets what is kept, which would be wrong to use. The trace says why the next call computes everything."""
        self.memory = Memory()
        for course in self.courses.values():
            course.states = States()
        self.lose(why)

    def is_finite(self) -> bool:
        """Whether the results of its last call were finite. Waits for that call."""
        return self.finite is None or bool(self.finite.arrived()[0])

    def nbytes(self) -> int:
        """Returns the bytes of all kept tensors."""
        return self.memory.nbytes() + sum(course.states.nbytes() for course in self.courses.values())
