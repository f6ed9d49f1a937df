"""Predicts what a request keeps: one call of the runtime on fake tensors, which have shapes and no memory.

Nothing is computed, and no weight is read. The parts of the engine run on shapes alone, and what they keep is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mccompile import ir
from mccompile.lowering.kept import as_computed, kept_form
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.groups import bounds_in, views
from mccompile.runtime.clock import Moment
from mccompile.runtime.engine import Engine
from mccompile.runtime.execute import keep_whole, merge, selected
from mccompile.runtime.layout import layout_of
from mccompile.runtime.prefixes import chunks_alike
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore

SHARE = 0.5  # of the tokens that the rehearsed call computes: not all, so that streams are merged


@dataclass(frozen=True, slots=True)
class KeptBytes:
    """Bytes that one guidance branch, or all branches of a request, keep between calls; `working` only during one.

    key_values: of the tokens, and which keys are picked. text: keys and values of the prompt. residuals: of regions, or
    of the model, residual or output. merged: streams that leave regions, reused as memory. states: of decisions, and
    late signals. increments: of the latent. working: while one block runs, its kept tensors on the device or in the
    model's dtype.
    """

    key_values: int
    text: int
    residuals: int
    merged: int
    states: int
    increments: int
    working: int

    @property
    def total(self) -> int:
        """All that stays between calls, wherever it is: what `BranchStore.nbytes` counts."""
        return sum(getattr(self, f.name) for f in fields(self)) - self.working

    def on_device(self, cache: ir.Cache) -> int:
        """Bytes at the worst moment on the model's device, what a budget is about."""
        away = self.key_values + self.text + self.residuals if cache.device == "cpu" else 0
        return self.total + self.working - away

    def of_branches(self, count: int) -> KeptBytes:
        """Of so many branches alike; one call runs at a time, so the working copies are those of one."""
        values = {f.name: getattr(self, f.name) * count for f in fields(self)}
        return KeptBytes(**{**values, "working": self.working})


def rehearse(engine: Engine, bound: BoundPolicy, inputs: Mapping[str, Value], moment: Moment) -> BranchStore:
    """The store of a branch after a call with `inputs`, of fake tensors.

    engine: of the eager backend. inputs: only their shapes and dtypes are read.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = {n: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        shared = engine.values.get(given)
        env = engine.entry(shared)
        layout = layout_of(engine.lowered, moment, inputs, engine.video(env))
        store = BranchStore.empty(bounds_in(bound, moment.branch), layout.batch, moment.total)
        tokens = layout.tokens + layout.behind
        chunks = len(moment.chunks) if bound.ir.cache.keys is not None else 1
        seen = chunks_alike(tokens, chunks, bound.reach, layout.positions)
        mask = np.zeros((layout.batch, layout.tokens), bool)
        mask[:, : max(2, int(SHARE * layout.tokens))] = True
        decided = False
        for number, region in enumerate(engine.lowered.regions):
            for view in views(bound.ir) if region.keep is not None and not decided else ():
                decide = engine.decides[view.name]
                if decide is not None:
                    sources, states = engine.sources(decide.spec, given, shared, env), store.courses[view.group].states
                    decide.states(sources, states, layout, moment, engine.video(env).device)
            decided |= region.keep is not None
            if engine.uses_rows:
                rows = selected(engine.blocks, mask, seen, env, shared)
                for _ in range(max(2, region.depth, region.passes)):  # the second merges streams with what is kept
                    made = merge(engine.blocks, region, number, env, shared, rows, store.memory)
                env = made
                continue
            before, env = env, engine.blocks.run_plain(region, env, shared)
            if region.keep not in (None, "increment") and not engine.vanilla:
                for _ in range(max(region.depth, region.passes)):
                    keep_whole(engine.blocks, region, number, before, env, store.memory)
        if engine.observe is not None:
            for course in store.courses.values():
                engine.observe.states(engine.cached_output(env, given), course.states, layout, moment)
        if engine.whole is not None:
            store.memory.outputs = engine.whole.room(given, layout, moment)
        grid = engine.lowered.captured.grid
        if any(r.keep == "increment" for r in engine.lowered.policy.regions) and grid is not None:
            source = given[grid.source]
            assert isinstance(source, torch.Tensor)
            store.memory.increments[0] = source
    return store


def bytes_of(store: BranchStore, cache: ir.Cache, itemsize: int, accelerator: bool) -> KeptBytes:
    """What a store, real or rehearsed, keeps under `cache`.

    Tensors of a store that is kept as computed are counted in the dtypes of `cache`; others as they are. itemsize:
    of the model's dtype. accelerator: the model is on one.
    """

    def size(tensors: tuple[torch.Tensor, ...], kept: ir.KeptDtype) -> int:
        return sum(_size(t, kept) for t in tensors)

    memory = store.memory
    texts = {i: tuple(v for v in known.values) for i, known in memory.once.items()}
    blocks = {i: size(b, cache.dtype) + size(texts.get(i, ()), cache.dtype) for i, b in memory.buffers.items()}
    earlier = {k: (*memory.older.get(k, ()), *memory.passed.get(k, ())) for k in memory.kept}
    kept = {k: size((t, *earlier[k]), cache.residual) for k, t in memory.kept.items()}
    read_back = max((sum(t.numel() for t in b) * itemsize for b in memory.buffers.values()), default=0)
    working = 0 if as_computed(cache.dtype) else read_back
    if cache.device == "cpu" and accelerator:
        working += 2 * max(blocks.values(), default=0) + max(kept.values(), default=0)
    return KeptBytes(
        key_values=sum(size(b, cache.dtype) for b in (*memory.buffers.values(), *memory.chosen.values())),
        text=sum(size(t, cache.dtype) for t in texts.values()),
        residuals=sum(kept.values()) + (0 if memory.outputs is None else size((memory.outputs,), cache.residual)),
        merged=sum(t.nbytes for t in memory.merged.values()),
        states=store.nbytes() - memory.nbytes(),
        increments=sum(t.nbytes for t in memory.increments.values()),
        working=working,
    )


def _size(tensor: torch.Tensor, kept: ir.KeptDtype) -> int:
    if not tensor.dtype.is_floating_point:
        return tensor.nbytes
    shape, dtype = kept_form(tensor.shape, tensor.dtype, kept)
    return shape.numel() * dtype.itemsize
