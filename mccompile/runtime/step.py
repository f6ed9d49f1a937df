"""One call under way: the decision, then every region on the rows, or the steps, that it selects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mccompile.lowering.slots import Count
from mccompile.lowering.types import LoweredRegion
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.planner import Plan
from mccompile.runtime.actions import Action
from mccompile.runtime.blocks import Env, Rows
from mccompile.runtime.clock import Moment
from mccompile.runtime.decision import host_rows
from mccompile.runtime.engine import Engine
from mccompile.runtime.execute import keep_whole, merge, reused, selected
from mccompile.runtime.forecast import Weighing, Weights, weights_of
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore, Memory
from mccompile.runtime.upload import parameters


@dataclass(frozen=True, slots=True)
class Step:
    """What is known when a call begins. actions: [B][G]. leader: the store whose decision this call follows, if any."""

    engine: Engine
    bound: BoundPolicy
    fold: bool
    moment: Moment
    layout: Layout
    store: BranchStore
    plan: Plan
    actions: tuple[tuple[Action, ...], ...]
    leader: BranchStore | None
    inputs: Mapping[str, Value]
    shared: Mapping[str, Value]
    entry: Env

    @property
    def memory(self) -> Memory:
        """The kept tensors that its regions read and write."""
        return self.store.memory

    def run(self) -> tuple[Env, np.ndarray]:
        """Returns the streams after the last block, and which tokens were computed, bool [B, G, F, P]."""
        return self._rows() if self.engine.uses_rows else self._whole()

    def _rows(self) -> tuple[Env, np.ndarray]:
        active = np.zeros(self.layout.cells, bool)
        for b, of_sample in enumerate(self.actions):
            for g, action in enumerate(of_sample):
                active[b, g] = action.kind != "skip"
        lengths = self.engine.prefixes.lengths(self.inputs, self.layout)
        chosen: np.ndarray | None = None
        rows: dict[bool, tuple[Rows, ...]] = {}  # of the active chunks, of the decision
        env = self.entry
        for number, region in enumerate(self.engine.lowered.regions):
            if region.keep is not None and chosen is None:
                chosen = self.decide(env)
            decided = region.keep is not None
            mask = chosen if decided and chosen is not None else active
            if decided not in rows:
                flat = mask.reshape(self.layout.batch, -1)
                rows[decided] = selected(self.engine.blocks, flat, lengths, env, self.shared)
            weights = self._weights(region, mask) if decided else None
            env = self.merge(number, region, env, rows[decided], weights)
        return env, active if chosen is None else chosen

    def merge(
        self, number: int, region: LoweredRegion, env: Env, chosen: tuple[Rows, ...], weights: Weights | None
    ) -> Env:
        """One region on the rows chosen."""
        return merge(self.engine.blocks, region, number, env, self.shared, chosen, self.memory, weights)

    def _weights(self, region: LoweredRegion, mask: np.ndarray) -> Weights | None:
        """What the last kept results of a region are worth to the tokens that are reused; None without a forecast."""
        if region.forecast is None:
            return None
        weighing = Weighing(region.forecast, self.bound, self.moment.grid)
        found: dict[tuple[int, int], np.ndarray] = {}
        for b in range(self.layout.batch):
            for g, time in enumerate(self.moment.chunks):
                if time.state != "active" or mask[b, g].all():
                    continue
                chunk = time.chunk if time.copy_of is None else time.copy_of
                recent = self.store.history.recent.get((b, chunk, time.copy_of is not None))
                found[b, g] = weighing.of_chunk(time.step, recent)
        if not found:
            return None
        cells = np.zeros((region.depth, *self.layout.cells), np.float32)
        cells[:] = next(iter(found.values()))[:, None, None]  # tokens that are computed or skipped read none of it
        for (b, g), weights in found.items() if self.engine.uses_rows else ():  # else all are computed together
            cells[:, b, g] = weights
        return weights_of(cells)

    def _whole(self) -> tuple[Env, np.ndarray]:
        """All rows; a cached region is computed if any cell asks for it, reused otherwise."""
        mask: np.ndarray | None = None
        env = self.entry
        for number, region in enumerate(self.engine.lowered.regions):
            if region.keep is not None and mask is None:
                mask = self.decide(env)
            if region.keep is None or mask is None or mask.any():
                made = self.engine.blocks.run_plain(region, env, self.shared)
                self._keep(region, number, env, made)
                env = made
            else:
                env = self._reuse(region, number, env, mask)
        if mask is not None and not mask.any():
            return env, mask
        self.store.states.clear_accounts()
        return env, np.ones(self.layout.cells, bool)

    def _keep(self, region: LoweredRegion, number: int, before: Env, after: Env) -> None:
        if region.keep is None or self.engine.vanilla:
            return
        keep_whole(self.engine.blocks, region, number, before, after, self.memory)

    def _reuse(self, region: LoweredRegion, number: int, env: Env, mask: np.ndarray) -> Env:
        out, like, weights = dict(env), next(iter(env.values())), self._weights(region, mask)
        for source, made in region.pairs:
            kept = reused(self.engine.blocks, (number, made), like, self.memory, weights)
            out[made] = env[source] + kept if region.keep == "residual" and source else kept
        return out

    def decide(self, env: Env) -> np.ndarray:
        """Returns the mask [B, G, F, P]. Clock and plan give it if they know it, and otherwise the decision graph."""
        mask = np.zeros(self.layout.cells, bool)
        dynamic, planned = False, self.store.history.planned
        for b, of_sample in enumerate(self.actions):
            for g, action in enumerate(of_sample):
                mask[b, g] = action.kind == "compute"
                dynamic |= action.kind == "dynamic" or (action.runs and not planned[b, self.moment.chunks[g].chunk])
        decide, states = self.engine.decide, self.store.states
        states.measured = None
        if self.leader is not None and self.leader.states.selection is not None:
            mask = mask | self.leader.states.selection
        elif decide is not None and (dynamic or not self.fold or (decide.sees_every_step and not self._settled())):
            host = host_rows(decide.spec, self.moment, self.actions, states, self.plan, self.store.history.computed)
            ready, states.ahead = states.ahead, None
            if ready is None or not np.array_equal(ready.host, host):
                params = parameters(decide.spec.params, self.bound, self.engine.video(env).device)
                sources = self.engine.sources(self.inputs, self.shared, env)
                ready = decide.start(host, params, sources, states, self.layout, self.moment)
            mask = decide.finish(ready, states)
        mask = self._with_copies(mask)
        states.selection = mask
        return mask

    def _settled(self) -> bool:
        """Says whether no step of the run depends on data. If one does after all, what the graph keeps is set anew.

        Only the reuses in the whole run are counted all along.
        """
        known = self.fold and all(cell.action != "dynamic" for cell in self.plan.cells)
        counted = self.engine.decide is not None and Count("total") in self.engine.decide.spec.counts
        return known and not counted and bool(self.store.history.planned.all())

    def _with_copies(self, mask: np.ndarray) -> np.ndarray:
        """Adds the copies of chunks to the mask. A copy is computed where its chunk is.

        The first time all of it is computed, for it has no keys and values yet. If only increments are kept, its output
        counts at computed tokens alone, so it may wait for the first of them.
        """
        mask = mask.copy()
        waits = all(r.keep in (None, "increment") for r in self.engine.lowered.regions)
        at = {t.chunk: g for g, t in enumerate(self.moment.chunks) if t.copy_of is None}
        for g, time in enumerate(self.moment.chunks):
            if time.copy_of is None:
                continue
            for b in range(self.layout.batch):
                own = mask[b, at[time.copy_of]]
                mask[b, g] = own if (b, time.copy_of) in self.store.history.copies else bool(own.any()) or not waits
        return mask
