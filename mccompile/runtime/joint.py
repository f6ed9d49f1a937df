"""Joins the memory of two guidance branches that run as one batch, and halves, saves and puts it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch

from mccompile.capture.types import Along, CapturedModel, Port, SampleCount, Tangled
from mccompile.lowering.types import LoweredRegion
from mccompile.runtime.blocks import Env
from mccompile.runtime.rows import Rows
from mccompile.runtime.shared import Value
from mccompile.runtime.step import Step
from mccompile.runtime.store import BranchStore, Memory, Once


@dataclass(frozen=True, slots=True)
class _Saved:
    """Rows of a view along `axis`, as they were. rows: None means all of them."""

    view: torch.Tensor
    axis: int
    rows: torch.Tensor | None
    values: torch.Tensor

    def back(self) -> None:
        if self.rows is None:
            self.view.copy_(self.values)
        else:
            self.view.index_copy_(self.axis, self.rows, self.values)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the follower's half of a run replaced. publish: puts the follower's halves into a store."""

    saved: tuple[_Saved, ...]
    publish: Callable[[BranchStore, int], None]

    def back(self) -> None:
        """Puts everything back that the run replaced in the follower's store."""
        for one in reversed(self.saved):
            one.back()

    def keep(self, store: BranchStore) -> None:
        """Lets the run stand, and forgets what it replaced."""
        self.publish(store, 1)


class Joint:
    """Keys, values and residuals of two branches of `batch` samples each. The leader's stand first.

    memory: what a run of both reads and writes. A branch's own store shares its memory with it, and nothing else.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.memory = Memory()
        self._joined: dict[object, list[object]] = {}  # by place: of both, and what each branch's store holds of it
        self._values: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}  # two values and both together
        self._log: list[_Saved] = []

    def combine(self, first: Step, second: Step) -> tuple[dict[str, Value], Env] | None:
        """Joins the memory of both, and returns their (shared values, entry streams).

        Returns None if a value that is no batch differs between them, or if one has kept less than the other.
        """
        captured = first.engine.lowered.captured
        ports = {p.name: p for p in (*captured.shared, *captured.sources, *captured.streams)}
        shared = first.engine.values.of_shapes(self._shaped(captured, first.inputs))
        for name, value in first.shared.items():
            if name in shared:
                continue
            both = self._together(ports[name], value, second.shared[name])
            if both is None:
                return None
            shared[name] = both
        self._values = {n: v for n, v in self._values.items() if n in shared}
        self._log = []
        entry = first.engine.entry(shared)
        if not self._join(first, second, entry, shared):
            return None
        return shared, entry

    def _shaped(self, captured: CapturedModel, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Returns inputs of the sizes that those of both have. Their data means nothing."""
        shaped = dict(inputs)
        for name in captured.samples:
            value = inputs[name]
            assert isinstance(value, torch.Tensor)
            shaped[name] = value.new_empty((2 * value.size(0), *value.shape[1:]))
        return shaped

    def _together(self, port: Port, one: Value, two: Value) -> Value | None:
        """Makes one value of both. Returns None if that is not possible."""
        match port.batch:
            case None:
                alike = one is two if isinstance(one, torch.Tensor) else one == two
                return one if alike else None
            case SampleCount() | Tangled():  # of both samples together it is another value, which nothing here computes
                return None
            case Along(axis):
                assert isinstance(one, torch.Tensor)
                assert isinstance(two, torch.Tensor)
                known = self._values.get(port.name)
                if known is None or known[0] is not one or known[1] is not two:
                    known = self._values[port.name] = (one, two, torch.cat([one, two], axis))
                return known[2]
            case _:
                assert_never(port.batch)

    def _join(self, first: Step, second: Step, entry: Env, shared: Mapping[str, Value]) -> bool:
        """Lays the kept tensors of both side by side, unless they lie so already."""
        one, two = first.store.memory, second.store.memory
        if one.buffers.keys() != two.buffers.keys() or one.kept.keys() != two.kept.keys():
            return False
        if one.chosen.keys() != two.chosen.keys():
            return False
        for block in one.buffers:
            if not self._lies_joined(block, one.buffers[block], two.buffers[block]):
                made = first.engine.blocks.new_buffers(block, entry, shared)
                if not _fill(made, one.buffers[block], two.buffers[block]):
                    return False
                self.memory.buffers[block] = made
                one.buffers[block], two.buffers[block] = (tuple(self._half(t, i) for t in made) for i in (0, 1))
                self._joined[block] = [made, one.buffers[block], two.buffers[block]]
        for block in one.chosen:
            place = "chosen", block
            if not self._lies_joined(place, one.chosen[block], two.chosen[block]):
                pairs = zip(one.chosen[block], two.chosen[block], strict=True)
                made = self.memory.chosen[block] = tuple(torch.cat(pair) for pair in pairs)
                one.chosen[block], two.chosen[block] = (tuple(self._half(t, i) for t in made) for i in (0, 1))
                self._joined[place] = [made, one.chosen[block], two.chosen[block]]
        for key, kept in one.kept.items():
            if not self._lies_joined(key, kept, two.kept[key]):
                both = self.memory.kept[key] = torch.cat([kept, two.kept[key]])
                one.kept[key], two.kept[key] = (self._half(both, i) for i in (0, 1))
                self._joined[key] = [both, one.kept[key], two.kept[key]]
        one.merged.clear()  # memory that only runs of one branch write to
        two.merged.clear()
        self._join_once(first, second, shared)
        return True

    def _lies_joined(self, place: object, one: object, two: object) -> bool:
        known = self._joined.get(place)
        return known is not None and known[1] is one and known[2] is two

    def _join_once(self, first: Step, second: Step, shared: Mapping[str, Value]) -> None:
        """Joins what blocks take from the prompt, from what each branch has made of its own prompt."""
        for block, one in first.store.memory.once.items():
            two = second.store.memory.once.get(block)
            names = first.engine.blocks.lasting(block)
            fresh = two is not None and all(
                known.made_of([step.shared[n] for n in names])
                for known, step in ((one, first), (two, second))
            )
            held = tuple(shared[n] for n in names)
            before = self.memory.once.get(block)
            if two is None or not fresh or (before is not None and before.made_of(held)):
                continue
            if all(n in self._values for n in names):  # else it is computed anew, of both
                values = tuple(torch.cat(pair) for pair in zip(one.values, two.values, strict=True))
                self.memory.once[block] = Once(held, values)

    def halves(self, env: Env) -> tuple[Env, Env]:
        """Returns the streams of each branch, of its own samples."""
        one, two = ({n: self._half(t, i) for n, t in env.items()} for i in (0, 1))
        return one, two

    def _half(self, tensor: torch.Tensor, which: int) -> torch.Tensor:
        return tensor.narrow(0, which * self.batch, self.batch)

    def save(self, captured: CapturedModel, number: int, region: LoweredRegion, rows: Rows) -> None:
        """Remembers the rows of the follower that a region is about to replace."""
        ports = {p.name: p for p in captured.streams}
        for block in range(region.first, region.last + 1):
            specs = captured.kinds[captured.blocks[block].kind].buffers
            for spec, buffer in zip(specs, self.memory.buffers[block], strict=True):
                self._note(buffer, spec.token_axis, rows.written(spec.rows), rows)
            for chosen in self.memory.chosen.get(block, ()) if rows.choice is not None and rows.choice.anew else ():
                self._note(chosen, 0, None, rows)
        for _, made in region.pairs:
            kept, port = self.memory.kept.get((number, made)), ports[made]
            if kept is not None:
                vector = None if port.token_axis is None else rows.vectors[port.rows]
                self._note(kept, port.token_axis or 0, vector, rows)

    def _note(self, tensor: torch.Tensor, axis: int, vector: torch.Tensor | None, rows: Rows) -> None:
        if rows.sample is not None and rows.sample < self.batch:
            return
        view = self._half(tensor, 1) if rows.sample is None else tensor.narrow(0, rows.sample, 1)
        values = view.clone() if vector is None else view.index_select(axis, vector)
        self._log.append(_Saved(view, axis, vector, values))

    def taken(self) -> Taken:
        """Returns what the last run replaced, so that it can be put back. It does so once for each run."""
        saved, self._log = tuple(self._log), []
        return Taken(saved, self.publish)

    def publish(self, store: BranchStore, which: int) -> None:
        """Puts into one branch's own store the residuals that a run of both has made anew, as whole steps do."""
        for key, both in self.memory.kept.items():
            known = self._joined.get(key)
            if known is None or known[0] is not both:
                known = self._joined[key] = [both, None, None]
            if known[1 + which] is None:
                known[1 + which] = store.memory.kept[key] = self._half(both, which)


def _fill(made: Sequence[torch.Tensor], one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> bool:
    """Copies the buffers of both into one. Returns False if samples do not lie along the first axis."""
    for into, a, b in zip(made, one, two, strict=True):
        if into.shape != (a.size(0) + b.size(0), *a.shape[1:]) or a.shape != b.shape:
            return False
    for into, a, b in zip(made, one, two, strict=True):
        torch.cat([a, b], out=into)
    return True
