"""From the clock's moment to the model's outputs: stores, plans, one step, what it leaves behind."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np

from mccompile import ir
from mccompile.lowering.decide import dynamic_phases
from mccompile.lowering.measured import MeasuredRow, rows_of
from mccompile.lowering.observe import late_wanted
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.groups import bounds_in, bounds_of, own_branches, policies, view_in
from mccompile.policy.phases import next_phase
from mccompile.policy.planner import Plan
from mccompile.policy.within import STANDS_IN
from mccompile.runtime.actions import Action, resolve_all
from mccompile.runtime.ahead import decide_ahead
from mccompile.runtime.beside import lose_gap, returned, served
from mccompile.runtime.blocks import Backend, Env
from mccompile.runtime.budget import Budget
from mccompile.runtime.clock import Moment
from mccompile.runtime.decided import ODD, Decided
from mccompile.runtime.engine import Engine
from mccompile.runtime.finite import finite
from mccompile.runtime.fresh import forget_odd, made_of, renew
from mccompile.runtime.layout import Layout, layout_of
from mccompile.runtime.pair import Foresight, Pairing
from mccompile.runtime.planning import make_plans
from mccompile.runtime.request import Request
from mccompile.runtime.shared import Value
from mccompile.runtime.step import Step, Steps, run
from mccompile.runtime.store import BranchStore
from mccompile.runtime.trace import Event, EventAction, Log
from mccompile.runtime.upload import parameters
from mccompile.runtime.window import KeptKeyValues, leading_key_values, move_window, window_of

REQUESTS_KEPT = 2  # stores of the latest requests: two pipelines may take turns with one compiled model

EVENTS_KEPT = 100_000  # of requests before the one that begins: a server's events do not grow without end


class WatchesCalls(Protocol):
    """Looks at the calls of a run while it is made; it changes nothing."""

    def during(self, pipe: object) -> AbstractContextManager[None]:
        """Holds while one run of the pipeline is made."""
        ...

    def called(self, steps: Steps) -> None:
        """A call is over."""
        ...


class Runner:
    """Executes calls of a lowered model. Parameters may change between requests; nothing is compiled again."""

    def __init__(self, lowered: LoweredModel, bound: BoundPolicy, backend: Backend, fold: bool = True) -> None:
        self.lowered = lowered
        bound = replace(bound, ir=lowered.policy)  # in which blocks that decide apart are regions of their own
        self.bound = bound
        self.bounds = bounds_of(bound)  # as each view has it
        self._bounds_in: dict[str, Mapping[str, BoundPolicy]] = {}
        self.fold = fold
        self.backend = backend
        self.engine = Engine(lowered, backend)
        self.log = Log()
        self.expert = ""  # the place of this transformer, where two take turns
        self.watch: WatchesCalls | None = None
        self.foresees: bool | None = None  # decides one call ahead; None: where the host would wait for a device
        self.notes: tuple[str, ...] = ()  # of the plans of the latest generation
        self.decided: list[Decided] = []  # by the graph, in the latest generation
        self._told = {group: _told(own) for group, own in policies(lowered.policy).items()}
        self._wants = {group: late_wanted(own) for group, own in policies(lowered.policy).items()}
        self.goes_on = False  # the next request that begins follows another one of the same generation
        self.latest: Hashable = None  # the latest request, and the steps of the schedule that it has
        self.first_step, self.last_step = 0, 0
        self._odd_left = 0
        self.requests: dict[Hashable, Request] = {}
        self.pairing = Pairing(self, lowered.together) if lowered.together is not None else None
        self.budget = Budget(lowered, bound) if lowered.policy.cache.budget is not None else None

    @property
    def events(self) -> list[Event]:
        """What was decided in each call."""
        return self.log.events

    @property
    def masks(self) -> list[np.ndarray] | None:
        """The masks of every call; set it to a list to keep them."""
        return self.log.masks

    @masks.setter
    def masks(self, masks: list[np.ndarray] | None) -> None:
        self.log.masks = masks

    def bounds_in(self, branch: str) -> Mapping[str, BoundPolicy]:
        """The policy as each group of regions has it in the calls of a branch."""
        if branch not in self._bounds_in:
            self._bounds_in[branch] = bounds_in(self.bound, branch)
        return self._bounds_in[branch]

    def rebind(self, bound: BoundPolicy) -> None:
        """Other parameter values, for the requests that begin from now on."""
        self.bound = replace(bound, ir=self.lowered.policy)
        self.bounds = bounds_of(self.bound)
        self._bounds_in.clear()
        self.requests.clear()

    def clear(self) -> None:
        """Frees events, stores, plans and prelude values of all requests."""
        self.events.clear()
        self.decided.clear()
        self.requests.clear()
        self._odd_left = 0
        self.engine.values.forget()

    def not_finite(self) -> int:
        """How many branches of the latest generation ended on results that were not finite."""
        latest = self.requests.get(self.latest)
        return self._odd_left + (0 if latest is None else latest.odd())

    def leave(self, request: Hashable) -> None:
        """Frees what a request keeps: its part of the steps is over, and another expert goes on with it."""
        left = self.requests.pop(request, None)
        self._odd_left += 0 if left is None else left.odd()

    def weights_changed(self) -> None:
        """Everything that was derived from the weights is derived anew. Nothing is compiled."""
        self.engine.values.forget()
        for request in [each for of_all in self.requests.values() for each in of_all.each]:
            request.planned.clear()
            request.foresight = Foresight()
            for store in request.branches.values():
                store.drop("other weights")

    def call(self, inputs: Mapping[str, Value], moment: Moment) -> tuple[Value, ...]:
        """The model's flat outputs for one call; rows of chunks that were skipped are not meaningful."""
        made: tuple[Value, ...] | None = None
        try:
            made = self._call(inputs, moment)
        finally:
            if made is None:
                self._broken_off(moment)
        return made

    def _call(self, inputs: Mapping[str, Value], moment: Moment) -> tuple[Value, ...]:
        if self.pairing is not None:
            return self.pairing.call(self._request(moment).foresight, inputs, moment)
        steps = self.begin(inputs, moment)
        return self.finish(steps, *run(steps))

    def _broken_off(self, moment: Moment) -> None:
        """Drops what a call that raised has left half made: a loop of the user's own may make it again."""
        self._request(moment).foresight = Foresight()
        for store in [store for each in self.requests[moment.request].each for store in each.branches.values()]:
            store.drop("a call was broken off")

    def made_before(self, inputs: Mapping[str, Value], moment: Moment) -> None:
        """Notes a call whose outputs another process has made: later calls are foreseen by it."""
        request = self._request(moment)
        if self.pairing is not None:
            request.foresight.last[moment.branch] = (inputs, moment)

    def resume(self, moment: Moment, branches: Mapping[str, BranchStore], trusted: bool) -> None:
        """Gives the request of a moment the stores that another process has left. trusted: see pair.Foresight."""
        request = self._request(moment)
        request.branches.update(branches)
        request.foresight.trusted = trusted

    def begin(self, inputs: Mapping[str, Value], moment: Moment) -> Steps:
        """The steps of one call: its store laid out for it, and what clock and plan know of its chunks."""
        self.engine.blocks.settle()
        self._request(moment)
        shared = self.engine.values.get(inputs)
        entry = self.engine.entry(shared)
        layout = layout_of(self.lowered, moment, inputs, self.engine.video(entry))
        bounds = self.bounds_in(moment.branch)
        store, plans = self._store(moment, layout, inputs)
        made = made_of(self.lowered.captured, self.engine.prompt, layout, inputs)
        store = self._request(moment).branches[moment.branch] = renew(store, made, moment, bounds)
        now = window_of(moment, layout, inputs)
        move_window(store, now, self.lowered.captured, self.engine.blocks, entry, shared)
        actions = self._resolved(moment, store, plans, layout)
        if forget_odd(store, actions.values()):
            actions = self._resolved(moment, store, plans, layout)
        whole, others = self.engine.whole, self._request(moment).branches
        if whole is not None and whole.keep == "gap":
            own = moment.branch in own_branches(self.bound.ir)
            actions[whole.group] = served(store, whole.group, others, moment, actions[whole.group], own)
        leader = self._leader(moment)
        return {
            group: Step(
                self.engine, bound, self.fold, moment, layout, store, plans[group], actions[group],
                None if leader is None else leader.courses[group], inputs, shared, entry, group,
                view_in(self.bound.ir, group, moment.branch).name,
            )
            for group, bound in bounds.items()
        }  # fmt: skip

    def _resolved(
        self, moment: Moment, store: BranchStore, plans: Mapping[str, Plan], layout: Layout
    ) -> dict[str, tuple[tuple[Action, ...], ...]]:
        """What clock and plan know of each chunk, for each group of regions."""
        return {
            group: resolve_all(moment, store.courses[group].history, bound, plans[group], layout.batch)
            for group, bound in self.bounds_in(moment.branch).items()
        }

    def finish(self, steps: Steps, env: Env, masks: Mapping[str, np.ndarray]) -> tuple[Value, ...]:
        """The outputs of a call from the streams after its blocks; its store, phases and events follow.

        masks: which tokens each group of regions computed, bool [B, G, F, P].
        """
        first = next(iter(steps.values()))
        results = self._results(steps, env, masks)
        told = self.engine.told_after(results, env, first.inputs)
        for group, step in steps.items():
            if step.decides is not None:
                step.decides.keep_told(told, masks[group], step.course, step.moment)
            self._after(step, env, masks[group])
        if self.engine.whole is not None:
            lose_gap(first.store, self.engine.whole.group)
        first.store.row = first.moment.row
        if self.masks is not None:
            self.masks.append(np.logical_or.reduce(list(masks.values())))
        if self.watch is not None:
            self.watch.called(steps)
        first.store.finite = finite(results, first.inputs.values())
        return results

    def _results(self, steps: Steps, env: Env, masks: Mapping[str, np.ndarray]) -> tuple[Value, ...]:
        """The model's outputs, of the tokens that were computed and of those whose last output is kept."""
        whole, first = self.engine.whole, next(iter(steps.values()))
        if whole is None:
            return self.engine.postlude.run(env, first.shared, first.inputs)
        step = steps[whole.group]
        beside, mask = step.store.beside, masks[whole.group]
        results = whole.results(
            env, first.shared, first.inputs, mask, step.moment, step.layout, step.memory,
            None if beside is None else beside.value, whole.weights(step.bound, step.moment, step.course.history, mask),
        )  # fmt: skip
        if whole.keep == "gap":
            step.store.returned = returned(results, bool((mask | ~step.active()).all()))
        return results

    def join_masks(self, samples: int) -> None:
        """Makes one mask of those of the last call, whose samples were run one by one."""
        if self.masks is not None and samples > 1:
            self.masks[-samples:] = [np.concatenate(self.masks[-samples:])]

    def store_of(self, moment: Moment) -> BranchStore | None:
        """What the branch of a moment keeps, if it was called before."""
        return self._request(moment).branches.get(moment.branch)

    def leading_key_values(self, moment: Moment, chunks: int) -> KeptKeyValues:
        """K and V of the first chunks of the call just made, per block [B, rows, heads, head_dim]."""
        store = self.requests[moment.request].branches[moment.branch]
        return leading_key_values(store, self.lowered.captured, chunks, self.engine.blocks)

    def begun(self, moment: Moment) -> bool:
        """Whether the step of a moment is under way: another guidance branch of it was run."""
        request = self.requests.get(moment.request)
        others = () if request is None else request.branches.items()
        return any(store.row == moment.row for name, store in others if name != moment.branch)

    def note_whole(self, moment: Moment, why: str) -> None:
        """Events of a call that the model itself has run, all of it.

        Each chunk has the tokens that the request's chunks had before; one where none was run.
        """
        request = str(moment.request)
        tokens = self.events[-1].tokens if self.events and self.events[-1].request == request else 1
        self.events.extend(
            Event(
                request, moment.row, moment.branch, 0, t.chunk, moment.first + t.step, "", "full", tokens, tokens, why,
                expert=self.expert,
            )
            for t in moment.chunks
        )

    def _store(
        self, moment: Moment, layout: Layout, inputs: Mapping[str, Value]
    ) -> tuple[BranchStore, Mapping[str, Plan]]:
        request = self._request(moment)
        for name in [n for n, s in request.branches.items() if _left_behind(s, moment)]:
            del request.branches[name]
            request.planned.pop(name, None)
        if self.budget is not None:
            others = [f"{n} {i}" for i, each in enumerate(self.requests[moment.request].each) for n in each.branches]
            self.budget.admit(inputs, replace(moment, branch=f"{moment.branch} {moment.sample}"), others)
        bounds = self.bounds_in(moment.branch)
        if moment.branch not in request.branches:
            request.branches[moment.branch] = BranchStore.empty(bounds, layout.batch, moment.total)
        if moment.branch not in request.planned or request.told[moment.branch] != moment.told:
            made = make_plans(self.lowered, bounds, moment.grid, inputs, self.fold, moment.told)
            request.planned[moment.branch], request.told[moment.branch] = made, moment.told
            self.notes = (*self.notes, *(note for plan in made.values() for note in plan.notes))
        return request.branches[moment.branch], request.planned[moment.branch]

    def _request(self, moment: Moment) -> Request:
        """The request of a moment, begun where it is new; the latest ones stay."""
        request = self.requests.pop(moment.request, None)
        if request is None:
            request, self._odd_left = Request(), self.not_finite() if self.goes_on else 0
            self.engine.values.forget_values()
            if not self.goes_on:
                self.notes = ()
                self.decided.clear()
            self.latest = moment.request
            self.first_step, self.last_step = moment.first, moment.first + moment.grid.steps - 1
            del self.events[:-EVENTS_KEPT]
        self.requests[moment.request] = request
        while len(self.requests) > (REQUESTS_KEPT if self.budget is None else 1):
            del self.requests[next(iter(self.requests))]
        return request.of(moment.sample)

    def _leader(self, moment: Moment) -> BranchStore | None:
        """The store of the branch whose decision this one follows, if it has decided this very call."""
        leader = self.lowered.policy.branches.share_decision
        if leader is None or leader == moment.branch:
            return None
        store = self._request(moment).branches.get(leader)
        return store if store is not None and store.row == moment.row else None

    def _after(self, step: Step, env: Env, mask: np.ndarray) -> None:
        """What a call leaves in one group of regions: phases advance, late signals are observed, events are written."""
        course, moment, layout, bound = step.course, step.moment, step.layout, step.bound
        want = np.zeros((layout.batch, layout.chunks), bool)
        for b in range(layout.batch):
            for g, time in enumerate(moment.chunks):
                count = int(mask[b, g].sum())
                if time.state == "active" and time.copy_of is None:
                    state = course.history.phases[b][time.chunk]
                    after = next_phase(bound, state, moment.grid, count > 0)
                    want[b, g] = after is not None and self._wants[step.view][after]
                course.history.note(b, time, bound, moment.grid, mask[b, g])
                self.events.append(self._event(step, b, g, count))
        observe = self.engine.observe
        if observe is not None and want.any():
            params = parameters(observe.spec.params, self.bound, self.engine.video(step.entry).device)
            observe.run(want, params, self.engine.cached_output(env, step.inputs), course.states, layout, moment)
        device = self.engine.video(step.entry).device
        if self.foresees or (self.foresees is None and device.type == "cuda"):
            course.states.ahead = decide_ahead(step, device)

    def _by_graph(self, step: Step, b: int, g: int) -> Decided | None:
        """What the graph decided a chunk by; None where it was not asked, or the answer was known."""
        measured, decide, action = step.course.states.measured, step.decides, step.actions[b][g]
        if measured is None or decide is None or action.kind != "dynamic":
            return None
        rows = zip(decide.spec.measured, measured[b, : len(decide.spec.measured), g], strict=True)  # zeros lie behind
        values = {row: float(v) for row, v in rows if row in self._told[step.view][action.phase]}
        return Decided(step.moment.first + step.moment.chunks[g].step, values)

    def _event(self, step: Step, b: int, g: int, count: int) -> Event:
        action, time, tokens = step.actions[b][g], step.moment.chunks[g], step.layout.frames * step.layout.positions
        none: EventAction = "skip" if action.kind == "skip" else "reuse"
        kind: EventAction = "full" if count == tokens else "partial" if count else none
        phase = self.lowered.policy.phases[action.phase].name if action.phase >= 0 else ""
        decided, why = self._by_graph(step, b, g), action.why
        if decided is not None:
            self.decided.append(decided)
            why = why if decided.finite else ODD
        why = STANDS_IN if kind == "reuse" and action.kind == "compute" else why
        if kind in ("reuse", "partial"):
            why += step.said(b, g)
        return Event(
            request=str(step.moment.request), row=step.moment.row, branch=step.moment.branch,
            sample=b + step.moment.sample,
            chunk=time.original, step=step.moment.first + time.step,
            phase=phase, action=kind, computed=count, tokens=tokens,
            why=why, region=step.group, expert=self.expert,
        )  # fmt: skip


def _told(policy: ir.PolicyIR) -> dict[int, frozenset[MeasuredRow]]:
    """By the index of each phase that data decides, what is told of its decisions."""
    signals = {s.name: s for s in policy.signals}
    return {i: frozenset(rows_of(rule, signals)) for i, rule in dynamic_phases(policy)}


def _left_behind(store: BranchStore, moment: Moment) -> bool:
    """A branch of chunks that lie before all of this call's, and that took no part in this or the last row of calls."""
    if store.window is None or store.row >= moment.row - 1:
        return False
    return max(chunk for chunk, _ in store.window.places) < min(t.chunk for t in moment.chunks)
