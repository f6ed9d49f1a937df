"""Feeds the decision and observe graphs, and reads the mask back, with the numbers that it was made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import assert_never

import numpy as np
import torch

from mccompile import ir
from mccompile.backend.role import GraphCall
from mccompile.lowering.decide import DecideSpec
from mccompile.lowering.host import AccountRow, ChangeRow, ClockRow, DepthRow, Flag, FlagName, HostRow, TableRow
from mccompile.lowering.observe import HOST, ObserveSpec
from mccompile.lowering.slots import (
    ChosenWay,
    Count,
    DecidedBy,
    Host,
    KeptSlot,
    Late,
    LikeAnchors,
    Mask,
    Now,
    Params,
    Past,
    Places,
    Running,
    SourceBefore,
    Tail,
)
from mccompile.lowering.sources import ModelOutput, to_cells
from mccompile.policy.evaluate import Grid, clock_row, clock_value
from mccompile.policy.planner import Plan
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.finite import OnItsWay
from mccompile.runtime.layout import Layout
from mccompile.runtime.nearest import similarity
from mccompile.runtime.shared import Value
from mccompile.runtime.store import Course, Deciding, States
from mccompile.runtime.upload import upload

OUTPUT = Tail("block_output")


def host_rows(
    spec: DecideSpec, moment: Moment, actions: Sequence[Sequence[Action]], states: States, plan: Plan, kept: np.ndarray,
    depth: float | None = None,
) -> np.ndarray:
    """`host` [B, K, G] float32: what the clock and the plan know of each chunk of each sample. Changes nothing.

    kept: of which chunks of the video something is kept, bool [B, chunks]. depth: of the block that decides.
    """
    host = np.zeros((len(actions), len(spec.host), len(moment.chunks)), np.float32)
    for b, of_sample in enumerate(actions):
        for g, (time, action) in enumerate(zip(moment.chunks, of_sample, strict=True)):
            earlier = zip(moment.chunks[:g], of_sample[:g], strict=True)  # in this very call
            seen = any(t.chunk == time.chunk - 1 and a.runs for t, a in earlier) or (b, time.chunk - 1) in states.seen
            flags: dict[FlagName, float] = {
                "active": action.runs,
                "forced": action.kind == "compute",
                "reused": action.kind == "reuse",
                "phase": action.phase,
                "known": action.account is not None,
                "first": time.chunk == 0,
                "tail": seen,
                "fresh": not kept[b, time.chunk],
            }
            host[b, :, g] = [_told(row, flags, action, time, moment.grid, plan, depth) for row in spec.host]
    return host


def _told(
    row: HostRow, flags: Mapping[FlagName, float], action: Action, time: ChunkTime, grid: Grid, plan: Plan,
    depth: float | None,
) -> float | np.float32:
    """Returns the entry of a row for one chunk. Outside of a chunk's own steps clock and plan say nothing: 0."""
    match row:
        case Flag(what):
            return flags[what]
        case _ if time.state != "active":
            return 0.0
        case AccountRow(name):
            if action.account is None:
                return 0.0
            return action.account if name == "account" else plan.cells[time.step].others[plan.accounts.index(name)]
        case ClockRow(clock):
            return clock_value(clock, time.step, grid)
        case DepthRow():
            assert depth is not None
            return depth
        case TableRow(table):
            return clock_row(table, time.step, grid)
        case ChangeRow(change):
            return plan.cells[time.step].values[plan.changes.index(change)]
        case _:
            assert_never(row)


class Decide:
    """The decision graph. Its states lie in the store."""

    def __init__(self, spec: DecideSpec, call: GraphCall) -> None:
        self.spec = spec
        # What it measures or counts from step to step it must see at every step, also at those that a plan knows.
        measures = any(isinstance(slot, SourceBefore | Past | Running | Tail) for slot in spec.inputs)
        self.sees_every_step = measures or len(spec.counts) > 1
        self.tells_weights = bool(spec.weights)
        self._kept = tuple(slot for slot in spec.outputs if isinstance(slot, KeptSlot))
        self._call = call

    def run(
        self, host: np.ndarray, params: torch.Tensor, sources: Mapping[str, torch.Tensor], states: States,
        layout: Layout, moment: Moment,
    ) -> np.ndarray:
        """Returns the mask [B, G, F, P] (True = compute), and updates the states of the call's chunks."""  # fmt: skip
        return self.finish(self.start(host, params, sources, states, layout, moment), states)

    def start(
        self, host: np.ndarray, params: torch.Tensor, sources: Mapping[str, torch.Tensor], states: States,
        layout: Layout, moment: Moment,
    ) -> Deciding:  # fmt: skip
        """Puts the graph and the copy of its mask to the host on the device's queue. Nothing kept is changed."""
        device = params.device
        first = moment.chunks[0].chunk
        arguments: list[torch.Tensor] = []
        for slot in self.spec.inputs:
            match slot:
                case Host():
                    arguments.append(upload(host, device))
                case Params():
                    arguments.append(params)
                case Places():
                    arguments.append(torch.zeros(layout.rows, layout.positions // layout.rows, device=device))
                case Now(source):
                    arguments.append(sources[source])
                case LikeAnchors(source, stride):
                    where = next(one for one in self.spec.sources if one.source == source)
                    cells = to_cells(sources[source], where, torch.empty(layout.cells, device="meta"))
                    arguments.append(similarity(cells, layout.rows, stride))
                case Mask() | DecidedBy() | ChosenWay():
                    raise AssertionError("results are no inputs of a decision")
                case _:
                    full = self._state(slot, sources, states, layout, moment, device)
                    more = 1 if isinstance(slot, Tail) else 0
                    arguments.append(full[:, first : first + layout.chunks + more])
        made = self._call(*arguments)
        coming = [m for m in made[: len(self.spec.outputs) - len(self._kept)] if isinstance(m, torch.Tensor)]
        kept = dict(zip(self._kept, made[len(coming) :], strict=True))
        return Deciding(host, first, kept, OnItsWay.of(*coming))

    def finish(self, decision: Deciding, states: States) -> np.ndarray:
        """Waits for the mask of a decision. The store takes over its states, and notes the chunks that it saw."""
        active = decision.host[:, self.spec.host.index(Flag("active"))]
        states.seen |= {(int(b), decision.first + int(g)) for b, g in np.argwhere(active > 0)}
        for slot, value in decision.states.items():
            keep_state(states, slot, decision.first, value)
        mask, measured, *ways = decision.coming.arrived()
        states.measured = measured.numpy()
        states.ways = ways[0].numpy() if ways else None
        return mask.numpy()

    def states(
        self, sources: Mapping[str, torch.Tensor], states: States, layout: Layout, moment: Moment,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Makes all states of the graph, as its first run makes them."""
        for slot in self.spec.inputs:
            if isinstance(slot, KeptSlot):
                self._state(slot, sources, states, layout, moment, device)

    def _state(
        self, slot: KeptSlot, sources: Mapping[str, torch.Tensor], states: States, layout: Layout, moment: Moment,
        device: torch.device,
    ) -> torch.Tensor:  # fmt: skip
        if slot not in states.tensors:
            b, _, f, p = layout.cells
            shape: tuple[int, ...] = (b, moment.total, f, p)
            match slot:
                case SourceBefore("output"):
                    shape = (b, moment.total, f, p, self._channels())
                case SourceBefore("block"):  # as many numbers to a token as in the stream that enters the blocks
                    shape = (b, moment.total, f, p, sources["block"].size(-1))
                case SourceBefore(source):
                    shape = (b, moment.total, *self._cells_of(source, sources, layout)[2:])
                case Tail(source):
                    shape = (b, moment.total + 1, *self._cells_of(source, sources, layout)[3:])
                case Count() | Late() | Past() | Running():
                    pass
                case _:
                    assert_never(slot)
            fill = 1.0 if isinstance(slot, Late) else 0.0
            if isinstance(slot, SourceBefore) and slot.source in ir.TOLD_AFTER:
                fill = float("nan")  # nothing is decided by an output that was never seen
            states.tensors[slot] = torch.full(shape, fill, dtype=torch.float32, device=device)
        return states.tensors[slot]

    def _channels(self) -> int:
        """Returns how many numbers of the model's output belong to a token."""
        where = next(w for w in self.spec.told_after if w.source == "output")
        assert isinstance(where.value, ModelOutput)
        return where.value.channels * prod(where.patch)

    def keep_told(
        self, told: Mapping[ir.SourceName, torch.Tensor], mask: np.ndarray, course: Course, moment: Moment
    ) -> None:
        """Keeps what a call has told, where rules look back at it.

        told: the model's output [B, C, frames, height, width] and the residual of a block; without one that did not
        run. mask: the computed tokens, [B, G, F, P]. course: before the call is noted in its history.
        """
        for where in self.spec.told_after:
            slots = [s for s in self.spec.inputs if isinstance(s, SourceBefore) and s.source == where.source]
            slots = [s for s in slots if s in course.states.tensors]  # a branch that follows another one has none
            if slots and where.source in told:
                cells = to_cells(told[where.source], where, torch.empty(mask.shape, device="meta")).float()
                self._keep(slots, cells, mask, course, moment)

    def _keep(
        self, slots: Sequence[SourceBefore], cells: torch.Tensor, mask: np.ndarray, course: Course, moment: Moment
    ) -> None:
        """Puts what a call has told of one source, [B, G, F, P, C], before what it told earlier."""
        states, kept = course.states, course.history.computed
        for slot in sorted(slots, key=lambda s: s.n, reverse=True):  # before what the older ones take is replaced
            state = states.tensors[slot]
            newer = states.tensors[replace(slot, n=slot.n - 1)] if slot.n > 1 else None
            for g, time in enumerate(moment.chunks):
                if time.state != "active" or time.copy_of is not None:
                    continue
                for b in range(len(mask)):
                    if slot.since == "step" or mask[b, g].any():
                        older = None if newer is None or not kept[b, time.chunk] else newer[b, time.chunk]
                        state[b, time.chunk] = cells[b, g] if older is None else older

    def _cells_of(self, source: str, sources: Mapping[str, torch.Tensor], layout: Layout) -> torch.Size:
        """Returns the sizes of a source as [B, G, F, P, C], 1 where it does not vary."""
        where = next(s for s in self.spec.sources if s.source == source)
        return to_cells(sources[source], where, torch.empty(layout.cells, device="meta")).shape


class Observe:
    """The graph of late signals. Its states lie in the store."""

    def __init__(self, spec: ObserveSpec, call: GraphCall) -> None:
        self.spec = spec
        self._call = call
        self._late = tuple(Late(name) for name in spec.signals)
        self._kept: tuple[KeptSlot, ...] = (OUTPUT, *self._late)

    def run(
        self, want: np.ndarray, params: torch.Tensor, output: torch.Tensor, states: States, layout: Layout,
        moment: Moment,
    ) -> None:
        """Refreshes the late signals of the chunks in `want`, bool [B, G]. The others keep theirs."""  # fmt: skip
        first = moment.chunks[0].chunk
        span = slice(first, first + layout.chunks)
        device = output.device
        self.states(output, states, layout, moment)
        rows = {name: np.zeros((layout.batch, layout.chunks), np.float32) for name in HOST}
        rows["want"][:] = want
        for g, time in enumerate(moment.chunks):
            for sample in range(layout.batch):
                if want[sample, g]:  # in order: a predecessor observed in this very step counts
                    states.observed.add((sample, time.chunk))
                rows["first"][sample, g] = time.chunk == 0
                rows["tail"][sample, g] = (sample, time.chunk - 1) in states.observed
        tail = states.tensors[OUTPUT][:, first : first + layout.chunks + 1]
        late = [states.tensors[slot][:, span] for slot in self._late]
        host = upload(np.stack([rows[name] for name in HOST], 1), device)
        made = self._call(host, params, output, tail, *late)
        for slot, value in zip(self._kept, made, strict=True):
            keep_state(states, slot, first, value)

    def states(self, output: torch.Tensor, states: States, layout: Layout, moment: Moment) -> None:
        """Makes the states of the graph that are missing."""
        b, _, f, p = layout.cells
        for slot in self._late:
            if slot not in states.tensors:
                states.tensors[slot] = torch.ones(b, moment.total, f, p, device=output.device)
        if OUTPUT not in states.tensors:
            states.tensors[OUTPUT] = torch.zeros(b, moment.total + 1, p, output.size(-1), device=output.device)


def keep_state(states: States, slot: KeptSlot, first: int, value: Value) -> None:
    """Puts into the store what a graph made of a state, from the chunk `first` on."""
    assert isinstance(value, torch.Tensor)
    state = states.tensors[slot]
    if state.shape == value.shape:
        states.tensors[slot] = value
    else:
        state[:, first : first + value.size(1)] = value
