"""One call of a compiled model, from the clock's moment to the model's outputs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from mccompile.lowering.observe import late_signals
from mccompile.lowering.types import LoweredModel, Segment
from mccompile.policy import ir
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import advance, next_phase, start
from mccompile.policy.planner import Plan
from mccompile.runtime.actions import Action, resolve
from mccompile.runtime.clock import Moment
from mccompile.runtime.decision import Decide, Observe, host_rows, parameters
from mccompile.runtime.execute import Backend, Blocks, Env, Postlude, Selection, merge
from mccompile.runtime.layout import Layout, layout_of
from mccompile.runtime.planning import make_plan
from mccompile.runtime.prefixes import Prefixes
from mccompile.runtime.shared import SharedValues, Value
from mccompile.runtime.store import BranchStore
from mccompile.runtime.trace import Event

REQUESTS_KEPT = 2  # stores of the latest requests: two pipelines may take turns with one compiled model


@dataclass(slots=True)
class Request:
    """State of one generation: a store and a plan for each guidance branch."""

    branches: dict[str, BranchStore] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)


class Runner:
    """Executes calls of a lowered model. Parameters may change between requests; nothing is compiled again."""

    def __init__(self, lowered: LoweredModel, bound: BoundPolicy, backend: Backend, fold: bool = True) -> None:
        self.lowered = lowered
        self.bound = bound
        self.fold = fold
        self.events: list[Event] = []
        self.masks: list[np.ndarray] | None = None  # set to a list to keep the masks of every call
        self._requests: dict[Hashable, Request] = {}
        self._postlude = Postlude(lowered, backend)
        self._blocks = Blocks(lowered, backend)
        decide, observe = lowered.decide, lowered.observe
        self._decide = Decide(decide, backend(decide.module, "decide")) if decide else None
        where = lowered.located.get("block_output")
        self._observe = Observe(observe, backend(observe.module, "observe"), where) if observe and where else None
        self._whole = _decides_whole_steps(lowered.policy)
        self._vanilla = _computes_always(lowered.policy)
        self._values = {False: self._needed(backend, False)}
        if lowered.rows is not None:
            self._values[True] = self._needed(backend, True)
        self._prefixes = Prefixes(lowered)

    def rebind(self, bound: BoundPolicy) -> None:
        """Other parameter values, for the requests that begin from now on."""
        self.bound = bound
        self._requests.clear()

    def _needed(self, backend: Backend, rows: bool) -> SharedValues:
        """Prelude values that runs read: of rows (gather sources in place of what they expand) or plain."""
        captured = self.lowered.captured
        names = [*captured.entry, *self._postlude.shared]
        read = [s for b in captured.blocks for s in b.shared]
        names += [*self._blocks.sources, *(s for s in read if s not in captured.gathered)] if rows else read
        names += [loc.value[7:] for loc in self.lowered.located.values() if loc.value.startswith("shared:")]
        ports = {p.name for p in (*captured.shared, *captured.sources, *captured.streams)}
        label = "prelude" if rows else "prelude-plain"
        return SharedValues(captured, [n for n in names if n in ports], backend, label)

    def call(self, inputs: Mapping[str, Value], moment: Moment) -> tuple[Value, ...]:
        """The model's flat outputs for one call; rows of chunks that were skipped are not meaningful."""
        rows = self.lowered.rows is not None and not self._vanilla and not (self._whole and len(moment.chunks) == 1)
        shared = self._values[rows].get(inputs)
        env: Env = {n: shared[n] for n in self.lowered.captured.entry}  # type: ignore[misc]
        layout = layout_of(self.lowered, moment, inputs, self._video(env))
        store, plan = self._store(moment, layout, inputs)
        actions = [
            [
                resolve(t, moment, store.phases[b][t.chunk], self.bound, plan, bool(store.computed[b, t.chunk]),
                        bool(store.cleaned[b, t.chunk]), int(store.since[b, t.chunk]))
                for t in moment.chunks
            ]
            for b in range(layout.batch)
        ]  # fmt: skip
        step = _Step(self, moment, layout, store, plan, actions, inputs, shared, env)
        env, mask = step.rows() if rows else step.plain()
        self._after(step, env, mask)
        return self._postlude.run(env, shared, inputs)

    def _video(self, env: Env) -> torch.Tensor:
        ports = {p.name: p for p in self.lowered.captured.streams}
        return next(t for n, t in env.items() if ports[n].rows == "video" or len(env) == 1)

    def _store(self, moment: Moment, layout: Layout, inputs: Mapping[str, Value]) -> tuple[BranchStore, Plan]:
        request = self._requests.pop(moment.request, None) or Request()
        self._requests[moment.request] = request
        while len(self._requests) > REQUESTS_KEPT:
            del self._requests[next(iter(self._requests))]
        if moment.branch not in request.branches:
            size = (layout.batch, moment.total)
            flags = [torch.zeros(size, dtype=d) for d in (torch.bool, torch.bool, torch.int64, torch.bool)]
            phases = [[start(self.bound) for _ in range(moment.total)] for _ in range(layout.batch)]
            request.branches[moment.branch] = BranchStore(phases, *flags)
            request.plans[moment.branch] = make_plan(self.lowered, self.bound, moment.grid, inputs, self.fold)
        return request.branches[moment.branch], request.plans[moment.branch]

    def _leader(self, moment: Moment) -> BranchStore | None:
        """The store of the branch whose decision this one follows, if it has decided this very call."""
        leader = self.lowered.policy.branches.share_decision
        if leader is None or leader == moment.branch:
            return None
        store = self._requests[moment.request].branches.get(leader)
        return store if store is not None and store.row == moment.row else None

    def _after(self, step: _Step, env: Env, mask: np.ndarray) -> None:
        """Phases advance, late signals are observed, events are written."""
        store, moment, layout = step.store, step.moment, step.layout
        want = np.zeros((layout.batch, layout.chunks), bool)
        for b, of_sample in enumerate(step.actions):
            for g, (time, action) in enumerate(zip(moment.chunks, of_sample, strict=True)):
                count = int(mask[b, g].sum())
                if count == mask[b, g].size:
                    store.computed[b, time.chunk] = True
                    store.cleaned[b, time.chunk] |= time.state == "finished" and time.clean
                    store.since[b, time.chunk] = -1
                if time.state == "active":
                    store.since[b, time.chunk] += 1
                    state = store.phases[b][time.chunk]
                    want[b, g] = self._wants(next_phase(self.bound, state, moment.grid, count > 0))
                    store.phases[b][time.chunk] = advance(self.bound, state, moment.grid, count > 0)
                self.events.append(self._event(step, b, g, action, count))
        store.row = moment.row
        if self._observe and want.any():
            params = parameters(self._observe.spec.params, self.bound, self._video(step.env).device)
            output = env[self._cached_output()]
            self._observe.run(want, params, output, store, layout, moment)
        if self.masks is not None:
            self.masks.append(mask)

    def _wants(self, phase: int | None) -> bool:
        return phase is not None and bool(late_signals(self.lowered.policy, self.lowered.policy.phases[phase].rule))

    def _cached_output(self) -> str:
        ports = {p.name: p for p in self.lowered.captured.streams}
        segment = [s for s in self.lowered.segments if s.keep][-1]
        return next(out for _, out in segment.pairs if ports[out].rows == "video")

    def _event(self, step: _Step, b: int, g: int, action: Action, count: int) -> Event:
        time, tokens = step.moment.chunks[g], step.layout.frames * step.layout.positions
        kind = "skip" if action.kind == "skip" else "reuse" if not count else "full" if count == tokens else "partial"
        phase = self.lowered.policy.phases[action.phase].name if action.phase >= 0 else ""
        return Event(
            request=str(step.moment.request), row=step.moment.row, branch=step.moment.branch, sample=b,
            chunk=time.chunk, step=time.step, phase=phase, action=kind, computed=count, tokens=tokens,
            why=action.why,
        )  # type: ignore[arg-type]  # fmt: skip


@dataclass(slots=True)
class _Step:
    """One call under way."""

    runner: Runner
    moment: Moment
    layout: Layout
    store: BranchStore
    plan: Plan
    actions: list[list[Action]]
    inputs: Mapping[str, Value]
    shared: Mapping[str, Value]
    env: Env

    def rows(self) -> tuple[Env, np.ndarray]:
        """Every segment on selected rows. Returns the streams and the mask [B, G, F, P]."""
        active = np.zeros(self.layout.cells, bool)
        for b, of_sample in enumerate(self.actions):
            for g, action in enumerate(of_sample):
                active[b, g] = action.kind != "skip"
        chosen: np.ndarray | None = None
        env = self.env
        lengths = self.runner._prefixes.lengths(self.inputs, self.layout)
        for number, segment in enumerate(self.runner.lowered.segments):
            if segment.keep is not None and chosen is None:
                chosen = self.decide(env)
            mask = active if segment.keep is None or chosen is None else chosen
            selection = Selection(mask.reshape(self.layout.batch, -1))
            blocks = self.runner._blocks
            env = merge(blocks, segment, number, env, self.shared, selection, lengths, self.store, self.layout)
        return env, active if chosen is None else chosen

    def plain(self) -> tuple[Env, np.ndarray]:
        """Every segment on all rows; a cached one is computed if any cell asks for it, reused otherwise."""
        mask: np.ndarray | None = None
        env = self.env
        for number, segment in enumerate(self.runner.lowered.segments):
            if segment.keep is not None and mask is None:
                mask = self.decide(env)
            if segment.keep is None or mask is None or mask.any():
                made = self.runner._blocks.run_plain(segment, env, self.shared)
                self._keep(segment, number, env, made)
                env = made
            else:
                env = self._reuse(segment, number, env)
        if mask is not None and not mask.any():
            return env, mask
        if "state:account" in self.store.states:  # all was computed, whatever asked for it
            self.store.states["state:account"].zero_()
        return env, np.ones(self.layout.cells, bool)

    def _keep(self, segment: Segment, number: int, before: Env, after: Env) -> None:
        if segment.keep is None or self.runner._vanilla:
            return
        for source, made in segment.pairs:
            difference = segment.keep == "residual" and source
            self.store.kept[number, made] = after[made] - before[source] if difference else after[made]

    def _reuse(self, segment: Segment, number: int, env: Env) -> Env:
        out = dict(env)
        for source, made in segment.pairs:
            kept = self.store.kept[number, made]
            out[made] = env[source] + kept if segment.keep == "residual" and source else kept
        return out

    def decide(self, env: Env) -> np.ndarray:
        """Mask [B, G, F, P]: from clock and plan where they know, else from the decision graph."""
        mask = np.zeros(self.layout.cells, bool)
        dynamic = False
        for b, of_sample in enumerate(self.actions):
            for g, action in enumerate(of_sample):
                mask[b, g] = action.kind == "compute"
                dynamic |= action.kind == "dynamic"
        decide = self.runner._decide
        leader = self.runner._leader(self.moment)
        if leader is not None and leader.selection is not None:
            return mask | leader.selection
        if decide is not None and (dynamic or not self.runner.fold or _measures(decide)):
            host = host_rows(decide.spec, self.moment, self.actions, self.store, self.plan)
            params = parameters(decide.spec.params, self.runner.bound, self.runner._video(env).device)
            mask = decide.run(host, params, self._sources(env, decide), self.store, self.layout, self.moment)
        self.store.selection = mask
        return mask

    def _sources(self, env: Env, decide: Decide) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        entry = self.runner._video(self.env)
        for where in decide.spec.sources:
            kind, _, name = where.value.partition(":")
            match kind:
                case "input":
                    value = self.inputs[name]
                case "shared":
                    value = self.shared[name]
                case "stream":
                    value = entry
                case "probe":
                    value = env[self._before_cached()] - entry
                case _:
                    raise KeyError(where.value)
            found[where.source] = value  # type: ignore[assignment]
        return found

    def _before_cached(self) -> str:
        ports = {p.name: p for p in self.runner.lowered.captured.streams}
        segments = self.runner.lowered.segments
        cached = next(i for i, s in enumerate(segments) if s.keep)
        return next(out for _, out in segments[cached - 1].pairs if ports[out].rows == "video")


def _measures(decide: Decide) -> bool:
    """Whether the graph keeps former values of sources, so that it must see every step."""
    return any(n.startswith(("before:", "tail:")) for n in decide.spec.inputs)


def _decides_whole_steps(policy: ir.PolicyIR) -> bool:
    """No rule selects within a chunk."""
    return not any(
        isinstance(p.rule, ir.Top) or (isinstance(p.rule, ir.Reuse) and p.rule.granularity > ir.Granularity.CHUNK)
        for p in policy.phases
    )


def _computes_always(policy: ir.PolicyIR) -> bool:
    """The policy is the model itself: every chunk of every call is computed."""
    chunks = policy.chunks
    always = all(isinstance(p.rule, ir.Compute) for p in policy.phases)
    return always and chunks.pending == "compute" and chunks.finished == "compute"
