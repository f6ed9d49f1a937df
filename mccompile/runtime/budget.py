"""A policy's byte budget at run time. A request that would keep more is refused before anything of it is kept."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace

import torch

from mccompile import ir
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.runtime.blocks import eager
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.engine import Engine, masked_by_input
from mccompile.runtime.errors import OverBudget
from mccompile.runtime.exercise import first_moment
from mccompile.runtime.rehearse import KeptBytes, bytes_of, rehearse
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a compiled model keeps what it keeps.

    cache: the policy's, with the measure that its budget called for (policy/budget.py) and no "auto" left.
    predicted: bytes of all guidance branches at the size that was compiled for; None where nothing asked for them.
    """

    cache: ir.Cache
    predicted: KeptBytes | None


class Predictor:
    """What calls of a lowered model keep, from their shapes."""

    def __init__(self, lowered: LoweredModel, bound: BoundPolicy) -> None:
        self.cache = lowered.policy.cache
        self._bound = replace(bound, ir=lowered.policy)
        self._engine = Engine(lowered, eager)
        self._engine.blocks.staging = None  # what is counted has no memory to be moved
        floating = [t for t in lowered.captured.module.state_dict().values() if t.is_floating_point()]
        self._itemsize = min((t.dtype.itemsize for t in floating), default=4)
        self.accelerator = any(t.device.type != "cpu" for t in floating)

    def store(self, inputs: Mapping[str, Value], moment: Moment) -> BranchStore:
        """What one guidance branch keeps after such a call, as fake tensors."""
        return rehearse(self._engine, self._bound, inputs, moment)

    def count(self, store: BranchStore, cache: ir.Cache) -> KeptBytes:
        """Its bytes, kept as `cache` says; another cache than the lowered model's only where that keeps as computed."""
        return bytes_of(store, cache, self._itemsize, self.accelerator)

    def moment(self, example: Mapping[str, Value], inputs: Mapping[str, Value]) -> Moment:
        """A first step of a call with `inputs`, in chunks as long as those of `example`, a call small enough to begin.
        """
        grid = self._engine.lowered.captured.grid
        found = first_moment(self._engine, example, self._engine.entry(self._engine.values.get(example)))
        if grid is None or masked_by_input(self._engine.lowered.captured) or len(found.chunks) == 1:
            return found  # one chunk is the whole video, however long it is
        frames = grid.of_call(example)[0] // len(found.chunks)
        chunks = max(1, grid.of_call(inputs)[0] // frames)
        times = tuple(ChunkTime(c, "active", 0) for c in range(chunks))
        return replace(found, chunks=times, total=chunks)


class Budget:
    """Admits calls of a lowered model whose policy has a budget."""

    def __init__(self, lowered: LoweredModel, bound: BoundPolicy) -> None:
        assert lowered.policy.cache.budget is not None
        self._policy, self._bytes = lowered.policy, lowered.policy.cache.budget
        self._predictor = Predictor(lowered, bound)
        self._known: dict[tuple[object, ...], KeptBytes] = {}
        self._admitted: dict[tuple[Hashable, str], KeptBytes] = {}  # of the request under way

    def admit(self, inputs: Mapping[str, Value], moment: Moment, others: Collection[str]) -> None:
        """Raises OverBudget (MC0609) where the branches of the request, this one among them, would keep too much.

        others: the branches of the request that have a store.
        """
        shapes = tuple(tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in inputs.values())
        key = shapes, len(moment.chunks), moment.total
        if key not in self._known:
            self._known[key] = self._predictor.count(self._predictor.store(inputs, moment), self._predictor.cache)
        now = self._known[key]
        if self._admitted.get((moment.request, moment.branch)) is now:
            return
        live = {(moment.request, name) for name in others}
        self._admitted = {at: size for at, size in self._admitted.items() if at in live}
        self._admitted[moment.request, moment.branch] = now
        sizes, cache = self._admitted.values(), self._predictor.cache
        needed = max(b.working for b in sizes) + sum(b.on_device(cache) - b.working for b in sizes)
        if needed > self._bytes:
            raise OverBudget(self._policy.name, self._policy.cache, needed, len(sizes))
