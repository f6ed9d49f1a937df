"""One call under way: the decision, then every region on the rows, or the steps, that it selects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from mccompile import ir
from mccompile.language.walk import own_stand_ins
from mccompile.lowering.slots import Count
from mccompile.lowering.sources import to_cells
from mccompile.lowering.types import LoweredRegion
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.planner import Plan
from mccompile.policy.reasons import stands_in
from mccompile.runtime.actions import Action
from mccompile.runtime.blocks import Env
from mccompile.runtime.clock import Moment
from mccompile.runtime.decision import Decide, host_rows
from mccompile.runtime.engine import Engine
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.execute import keep_whole, merge, pass_on, reused, selected
from mccompile.runtime.forecast import KEPT, Weighing, Weights, weights_of
from mccompile.runtime.layout import Layout
from mccompile.runtime.nearest import Likeness
from mccompile.runtime.rows import FindFilling, Rows, worth_of
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore, Course, Memory
from mccompile.runtime.upload import parameters


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of one group of regions when a call begins.

    bound: the policy as the group sees it. actions: [B][G]. leader: the course of the same group in the branch whose
    decision this call follows, if any. view: by which the group decides in this branch (policy/groups.py).
    """

    engine: Engine
    bound: BoundPolicy
    fold: bool
    moment: Moment
    layout: Layout
    store: BranchStore
    plan: Plan
    actions: tuple[tuple[Action, ...], ...]
    leader: Course | None
    inputs: Mapping[str, Value]
    shared: Mapping[str, Value]
    entry: Env
    group: str
    view: str

    @property
    def course(self) -> Course:
        """What has happened to the group."""
        return self.store.courses[self.group]

    @property
    def decides(self) -> Decide | None:
        """Its decision graph; None where the clock decides."""
        return self.engine.decides[self.view]

    @property
    def memory(self) -> Memory:
        """The kept tensors that its regions read and write."""
        return self.store.memory

    def active(self) -> np.ndarray:
        """The tokens of the chunks that are not skipped, bool [B, G, F, P]."""
        active = np.zeros(self.layout.cells, bool)
        for b, of_sample in enumerate(self.actions):
            for g, action in enumerate(of_sample):
                active[b, g] = action.kind != "skip"
        return active

    def merge(
        self, number: int, region: LoweredRegion, env: Env, chosen: tuple[Rows, ...], weights: Weights | None
    ) -> Env:
        """One region on the rows chosen."""
        watched = self.engine.watched
        return merge(self.engine.blocks, region, number, env, self.shared, chosen, self.memory, weights, watched)

    def fill(self, region: LoweredRegion, mask: np.ndarray, env: Env) -> FindFilling | None:
        """Finds whose results the tokens have that are not computed; None where all have their own, or kept ones.

        env: the streams before the region, the first one of its group. Raises NoForecast (MC0620) where images that
        are given lie behind the tokens.
        """
        if region.nearest is None or mask.all():
            return None
        if self.layout.behind:
            raise NoForecast(self.bound.ir, "tokens take from each other, and images that are given lie behind them")
        return Likeness.of(self.compared(region.nearest, env)).filling

    def compared(self, source: ir.SourceName, env: Env) -> torch.Tensor:
        """The source by which the tokens of a call are compared with each other, [B, G, F, P, C]."""
        where = self.engine.lowered.located[source]
        value = self.engine.source(where, self.inputs, self.shared, env, self.group)
        assert isinstance(value, torch.Tensor)
        return to_cells(value, where, torch.empty(self.layout.cells, device="meta"))

    def weights(self, region: LoweredRegion, mask: np.ndarray) -> Weights | None:
        """What the last kept results of a region are worth to the tokens that are reused; None without a forecast.

        Raises NoForecast (MC0620) where tokens that are in no grid would be forecast with others' weights.
        """
        if not region.forecasts:
            return None
        found: dict[tuple[int, int], np.ndarray] = {}
        for b in range(self.layout.batch):
            for g, time in enumerate(self.moment.chunks):
                if time.state != "active" or mask[b, g].all():
                    continue
                found[b, g] = self._of_chunk(region, b, g, ~mask[b, g])
        if not found:
            return None
        cells = np.zeros((region.depth + region.passes, *self.layout.cells), np.float32)
        cells[:] = next(iter(found.values()))[:, None, None]  # tokens that are computed or skipped read none of it
        for (b, g), weights in found.items() if self.engine.uses_rows else ():  # else all are computed together
            cells[:, b, g] = weights
        made = weights_of(cells, region.depth)
        if self.layout.behind and not all(isinstance(w, float) for w in (*made.values, *made.passed)):
            why = "tokens are computed at steps of their own, and images that are given lie behind them"
            raise NoForecast(self.bound.ir, why)
        return made

    def _of_chunk(self, region: LoweredRegion, b: int, g: int, reused: np.ndarray) -> np.ndarray:
        """Weights of a chunk, float32 [n, F, P] or [n, 1, 1]. reused: its tokens that read them, bool [F, P]."""
        time = self.moment.chunks[g]
        recent = self.course.history.recent_of(b, time)
        total: np.ndarray | None = None
        for way, forecast in self.standing(b, g, reused, region.forecast):
            weighing = Weighing(forecast or KEPT, self.bound, self.moment.grid, region.depth)
            own = weighing.of_chunk(time.step, recent, self._told(b, g))
            own = np.pad(own, ((0, region.depth + region.passes - len(own)), (0, 0), (0, 0)))
            ways = self.course.states.ways
            total = own if total is None or ways is None else np.where(ways[b, g] == way, own, total)
        assert total is not None
        return total

    def standing(
        self, b: int, g: int, reused: np.ndarray, of_layers: ir.Forecast | None
    ) -> tuple[tuple[int, ir.Forecast | None], ...]:
        """The alternatives by which tokens of a chunk are reused, each with what stands in; None: the kept result.

        reused: bool [F, P]. of_layers: what the layers say.
        """
        time, ways = self.moment.chunks[g], self.course.states.ways
        own = g if time.copy_of is None else self._place_of(time.copy_of)
        phase = self.actions[b][own].phase
        rule = self.bound.ir.phases[phase].rule if phase >= 0 else None
        if not isinstance(rule, ir.Reuse) or rule.stand_ins is None or ways is None:
            return ((0, of_layers),)
        chosen = [int(way) for way in np.unique(ways[b, g][reused])]
        return tuple((way, of_layers if (one := rule.stand_ins[way]) is None else one) for way in chosen)

    def said(self, b: int, g: int) -> str:
        """What a rule itself lets stand in for tokens of a chunk, as it follows a reason; "" where none does so."""
        states = self.course.states
        if states.ways is None or states.selection is None:
            return ""
        found = [stands_in(one) for _, one in self.standing(b, g, ~states.selection[b, g], None)]
        return "".join(dict.fromkeys(said or ", as it was kept" for said in found)) if any(found) else ""

    def _place_of(self, chunk: int) -> int:
        """Where the chunk itself lies among the chunks of the call, not a copy of it."""
        return next(g for g, time in enumerate(self.moment.chunks) if time.chunk == chunk and time.copy_of is None)

    def _told(self, b: int, g: int) -> dict[str, float]:
        """What the decision measured of a chunk for the weights of stand-ins, by the names of signals."""
        decide, measured = self.decides, self.course.states.measured
        if decide is None or measured is None:
            return {}
        return {row.name: float(measured[b, decide.spec.measured.index(row), g]) for row in decide.spec.weights}

    def keep(self, region: LoweredRegion, number: int, before: Env, after: Env) -> None:
        """Keeps what a region has made of all rows."""
        if region.keep in (None, "increment") or region.nearest is not None or self.engine.vanilla:
            return
        keep_whole(self.engine.blocks, region, number, before, after, self.memory)

    def reuse(self, region: LoweredRegion, number: int, env: Env, mask: np.ndarray) -> Env:
        """One region without computing any of it. Where the model's output is kept, its streams pass through."""
        if region.keep == "increment":
            return env | {made: env[source] for source, made in region.pairs if source}
        out, like, weights = dict(env), next(iter(env.values())), self.weights(region, mask)
        for source, made in region.pairs:
            kept = reused(self.engine.blocks, (number, made), like, self.memory, weights)
            out[made] = env[source] + kept if region.keep == "residual" and source else kept
        pass_on(self.engine.blocks, region, number, env, out, self.memory)
        return out

    def decide(self, env: Env) -> np.ndarray:
        """Returns the mask [B, G, F, P]. Clock and plan give it if they know it, and otherwise the decision graph."""
        mask = np.zeros(self.layout.cells, bool)
        dynamic, planned = False, self.course.history.planned
        for b, of_sample in enumerate(self.actions):
            for g, action in enumerate(of_sample):
                mask[b, g] = action.kind == "compute"
                dynamic |= action.kind == "dynamic" or (action.runs and not planned[b, self.moment.chunks[g].chunk])
        decide, states = self.decides, self.course.states
        states.measured = states.ways = None
        follows = self.leader is not None and self.leader.states.selection is not None
        if self.leader is not None and self.leader.states.selection is not None:
            mask = mask | self.leader.states.selection
            states.measured = self.leader.states.measured
            states.ways = self.leader.states.ways
        elif decide is not None and (
            dynamic or not self.fold or decide.tells_weights or (decide.sees_every_step and not self._settled())
        ):
            kept, depth = self.course.history.computed, self.bound.depth
            host = host_rows(decide.spec, self.moment, self.actions, states, self.plan, kept, depth)
            ready, states.ahead = states.ahead, None
            if ready is None or not np.array_equal(ready.host, host):
                params = parameters(decide.spec.params, self.bound, self.engine.video(env).device)
                sources = self.engine.sources(decide.spec, self.inputs, self.shared, env, self.group)
                ready = decide.start(host, params, sources, states, self.layout, self.moment)
            mask = decide.finish(ready, states)
        mask = self._with_copies(mask)
        states.selection = mask
        if not follows and any(own_stand_ins(phase.rule) for phase in self.bound.ir.phases):
            states.ways = self._ways(states.ways)
        return mask

    def _ways(self, decided: np.ndarray | None) -> np.ndarray:
        """By which alternative each cell is reused, uint8 [B, G, F, P]. decided: by the graph, where it was asked.

        A model that runs all tokens together reuses them by one alternative, the latest of those that are asked for.
        """
        ways = np.zeros(self.layout.cells, np.uint8)
        for b, of_sample in enumerate(self.actions):
            for g, action in enumerate(of_sample):
                if action.kind == "reuse":
                    ways[b, g] = action.way
                elif action.kind == "dynamic" and decided is not None:
                    ways[b, g] = decided[b, g]
        for g, time in enumerate(self.moment.chunks):
            if time.copy_of is not None:
                ways[:, g] = ways[:, self._place_of(time.copy_of)]
        return ways if self.engine.uses_rows else np.full_like(ways, ways.max())

    def _settled(self) -> bool:
        """Says whether no step of the run depends on data. If one does after all, what the graph keeps is set anew.

        Only the reuses in the whole run are counted all along.
        """
        known = self.fold and all(cell.action != "dynamic" for cell in self.plan.cells)
        counted = self.decides is not None and Count("total") in self.decides.spec.counts
        return known and not counted and bool(self.course.history.planned.all())

    def _with_copies(self, mask: np.ndarray) -> np.ndarray:
        """Adds the copies of chunks to the mask. A copy is computed where its chunk is.

        The first time all of it is computed, for it has no keys and values yet. If only increments are kept, its output
        counts at computed tokens alone, so it may wait for the first of them.
        """
        mask = mask.copy()
        waits = all(r.keep in (None, "increment") for r in self.engine.lowered.regions)
        copies = self.course.history.copies
        at = {t.chunk: g for g, t in enumerate(self.moment.chunks) if t.copy_of is None}
        for g, time in enumerate(self.moment.chunks):
            if time.copy_of is None:
                continue
            for b in range(self.layout.batch):
                own = mask[b, at[time.copy_of]]
                mask[b, g] = own if (b, time.copy_of) in copies else bool(own.any()) or not waits
        return mask


Steps: TypeAlias = Mapping[str, Step]
"""The step of each group of regions, in order of depth, all of one call."""


def run(steps: Steps) -> tuple[Env, Mapping[str, np.ndarray]]:
    """Returns the streams after the last block, and which tokens each group computed, bool [B, G, F, P]."""
    first = next(iter(steps.values()))
    return _rows(steps, first) if first.engine.uses_rows else _whole(steps, first)


def _around(steps: Steps, first: Step) -> np.ndarray | None:
    """Which tokens the whole model computes, where layers within it decide apart. It is decided before any of them."""
    whole = first.engine.whole
    return None if whole is None or len(steps) == 1 else steps[whole.group].decide(first.entry)


def _within(step: Step, env: Env, around: np.ndarray | None) -> np.ndarray:
    """Which tokens a group computes: nothing runs where the output of the model around it stands in."""
    if around is None:
        return step.decide(env)
    whole = step.engine.whole
    return around if whole is not None and whole.group == step.group else step.decide(env) & around


def _rows(steps: Steps, first: Step) -> tuple[Env, Mapping[str, np.ndarray]]:
    """Every region on the rows that its group selects; regions that are always computed, on those of active chunks."""
    active: np.ndarray = np.logical_or.reduce([step.active() for step in steps.values()])
    around = _around(steps, first)
    if around is not None and not around.any():
        return first.entry, dict.fromkeys(steps, around)
    seen = first.engine.prefixes.seen(first.inputs, first.layout, first.bound.reach)
    worth = worth_of(first.bound.reach)
    chosen: dict[str, np.ndarray] = {}
    rows: dict[str | None, tuple[Rows, ...]] = {}
    env = first.entry
    for number, region in enumerate(first.engine.lowered.regions):
        group, step, mask, weights = None, first, active, None
        if region.keep is not None:
            group, step = region.group, steps[region.group]
            if group not in chosen:
                chosen[group] = _within(step, env, around)
            mask = chosen[group]
            weights = step.weights(region, mask)
        if group not in rows:
            flat = mask.reshape(first.layout.batch, -1)
            fill = step.fill(region, mask, env)
            rows[group] = selected(first.engine.blocks, flat, seen, env, first.shared, fill, worth)
        env = step.merge(number, region, env, rows[group], weights)
    return env, {group: chosen.get(group, active) for group in steps}


def _whole(steps: Steps, first: Step) -> tuple[Env, Mapping[str, np.ndarray]]:
    """All rows; a cached region is computed if any cell of its group asks for it, reused otherwise."""
    masks: dict[str, np.ndarray] = {}
    env = first.entry
    around = _around(steps, first)
    if around is not None and not around.any():
        return env, dict.fromkeys(steps, around)
    for number, region in enumerate(first.engine.lowered.regions):
        step = first if region.keep is None else steps[region.group]
        if region.keep is not None and region.group not in masks:
            masks[region.group] = _within(step, env, around)
        if region.keep is None or region.nearest is not None or masks[region.group].any():
            made = first.engine.blocks.run_plain(region, env, first.shared)
            step.keep(region, number, env, made)
            env = made
        else:
            env = step.reuse(region, number, env, masks[region.group])
    for group, step in steps.items():
        if group not in masks or masks[group].any():
            step.course.states.clear_accounts()
            masks[group] = np.ones(first.layout.cells, bool)
    return env, masks
