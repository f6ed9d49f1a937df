"""Decisions of a run against a slow simulation written apart from the package, over random signals.

Two samples of two chunks, each four tokens in two frames, go through the runtime's own decision: what clock and plan
know, the graph, the history. The simulation sees the sources alone. Every number is a small fraction of a power of two,
so that sums do not depend on their order and decisions must agree to the last token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.lowering.decide import build_decide
from mccompile.lowering.slots import Late
from mccompile.lowering.sources import Located
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.evaluate import static_changes
from mccompile.policy.phases import Grid
from mccompile.policy.planner import plan
from mccompile.runtime.actions import resolve_all
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.decision import Decide
from mccompile.runtime.layout import Layout
from mccompile.runtime.step import Step
from mccompile.runtime.store import BranchStore

C, F32 = ir.Const, np.float32
SAMPLES, CHUNKS, FRAMES, PLACES = 2, 2, 2, 2
LAYOUT = Layout(SAMPLES, CHUNKS, FRAMES, PLACES)
DRIFT = ir.Change("l1", ir.Source("modulation"), "step", ir.Granularity.CHUNK)
MOVED = {
    (since, over): ir.Change("l1", ir.Source("latent"), since, over)
    for since in ("step", "compute")
    for over in (ir.Granularity.CHUNK, ir.Granularity.FRAME, ir.Granularity.TOKEN)
}
MOTION = ir.FrameDiff(ir.Source("latent"), False)
LATE = ir.Signal("late", ir.FrameDiff(ir.Source("block_output"), True), ir.Granularity.TOKEN, True)
LOCATED = {
    "latent": Located("latent", "input:x", "tokens", 1, (1, 1, 1)),
    "modulation": Located("modulation", "shared:m", "constant", 0, (1, 1, 1)),
}
STATIC = frozenset({"modulation"})


# ---- what is drawn -----------------------------------------------------------------------------------------
tenths = st.integers(0, 12).map(lambda n: C(n / 10))
few = st.integers(0, 4).map(lambda n: C(float(n)))
none = st.none()


def amounts(finest: ir.Granularity) -> st.SearchStrategy[ir.Expr]:
    fit = [DRIFT, *(c for (_, over), c in MOVED.items() if over <= finest)]
    fine: list[ir.Expr] = [MOTION, ir.SignalRef("late")] if finest == ir.Granularity.TOKEN else []
    plain = st.sampled_from([*fit, *fine])
    return st.one_of(plain, st.builds(lambda a, b: ir.Apply("mul", (a, b)), plain, tenths))


@st.composite
def reuses(draw: st.DrawFn) -> ir.Reuse:
    grain = draw(st.sampled_from([ir.Granularity.CHUNK, ir.Granularity.FRAME, ir.Granularity.TOKEN]))
    value = draw(amounts(grain))
    value = ir.Accumulate(value) if draw(st.booleans()) else value
    condition = ir.Apply("lt", (value, draw(st.integers(1, 20).map(lambda n: C(n / 10)))))
    guards = [draw(none | none | tenths) for _ in range(3)] + [draw(none | none | few) for _ in range(2)]
    return ir.Reuse(grain, condition, *guards, draw(none | none | tenths))


rules = st.one_of(
    st.just(ir.Compute()),
    st.integers(1, 4).map(lambda n: ir.Every(C(float(n)))),
    st.lists(st.booleans(), min_size=10, max_size=10).map(lambda m: ir.StepMask(tuple(m))),
    st.builds(ir.Top, tenths, amounts(ir.Granularity.TOKEN)),
    reuses(),
    reuses(),
    reuses(),
)
spans = st.one_of(
    st.builds(ir.ForSteps, few),
    st.builds(ir.UntilRefreshes, few),
    st.builds(ir.LastSteps, few),
    st.builds(
        lambda a, n: ir.Between(ir.Clock("step"), C(float(a)), C(float(a + n))), st.integers(0, 6), st.integers(1, 4)
    ),
)


@dataclass(frozen=True)
class Run:
    """A policy, how many steps, by how many the second chunk lags, and the sources at every row."""

    bound: BoundPolicy
    steps: int
    lag: int
    latent: np.ndarray  # [rows, B, G, F, P, C]
    late: np.ndarray  # [rows, B, G, F, P]
    drift: np.ndarray  # [steps, C], the same for all

    @property
    def grid(self) -> Grid:
        sigmas = tuple(1 - i / self.steps for i in range(self.steps))
        return Grid(self.steps, tuple(1000 * s for s in sigmas), sigmas)

    def step_of(self, chunk: int, row: int) -> int:
        return row - chunk * self.lag


def run_of(phases: list[ir.Phase], cache: ir.Cache, steps: int, lag: int, seed: int, scale: float) -> Run:
    policy = ir.PolicyIR(
        name="drawn", models=(), params=(), signals=(LATE,), phases=tuple(phases),
        regions=(ir.Region(ir.Blocks(0, -1), "residual"),), chunks=ir.Chunks(None, "skip", "keep"),
        branches=ir.Branches(None, batch=False), cache=cache,
    )  # fmt: skip
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.integers(0, 9, shape) / 8 * scale).astype(F32)

    rows = steps + lag
    cells = (SAMPLES, CHUNKS, FRAMES, PLACES)
    return Run(bind(policy, {}), steps, lag, drawn(rows, *cells, 2), drawn(rows, *cells), drawn(steps, 4))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    drawn = draw(st.lists(st.tuples(spans, rules), max_size=3))
    phases = [ir.Phase(f"p{i}", s, r) for i, (s, r) in enumerate(drawn)] + [ir.Phase("rest", ir.Rest(), draw(rules))]
    cache = ir.Cache("model", "model", "model", None, draw(none | none | st.integers(1, 5)), draw(st.booleans()))
    scale = draw(st.sampled_from([0.25, 0.5, 1.0]))
    return run_of(phases, cache, draw(st.integers(1, 10)), draw(st.integers(0, 3)), draw(st.integers(0, 10**6)), scale)


# ---- the runtime -------------------------------------------------------------------------------------------
def decided(run: Run, fold: bool) -> list[np.ndarray]:
    """The masks [B, G, F, P] of all rows, by the runtime."""
    bound, grid = run.bound, run.grid
    changes = static_changes(bound.ir, STATIC)
    moved = np.abs(np.diff(run.drift, axis=0)).mean(1)
    tables = {c: (0.0, *(float(v) for v in moved)) for c in changes}
    made = plan(bound, grid, tables, STATIC, fold)
    spec = build_decide(bound.ir, LOCATED, frozenset(changes) if fold else frozenset())  # type: ignore[arg-type]
    decide = None if spec is None else Decide(spec, spec.module.forward)
    store, masks = BranchStore.empty(bound, SAMPLES, CHUNKS), []
    for row in range(run.steps + run.lag):
        times = tuple(time_of(run, g, row) for g in range(CHUNKS))
        moment = Moment("r", row, "cond", grid, times, CHUNKS)
        sources = {
            "latent": torch.from_numpy(run.latent[row]).flatten(1, 3),
            "modulation": torch.from_numpy(run.drift[min(row, run.steps - 1)]).expand(SAMPLES, -1),
        }
        if run.lag and not fold:  # chunks at steps of their own have modulations of their own
            each = [run.drift[min(max(t.step, 0), run.steps - 1)] for t in times for _ in range(FRAMES * PLACES)]
            sources["modulation"] = torch.from_numpy(np.stack(each)).expand(SAMPLES, -1, -1)
        store.states.tensors[Late("late")] = torch.from_numpy(run.late[row])
        actions = resolve_all(moment, store.history, bound, made, SAMPLES)
        mask = stepped(decide, sources, run, fold, moment, store, made, actions).decide({})
        for b in range(SAMPLES):
            for g, time in enumerate(times):
                store.history.note(b, time, bound, grid, mask[b, g])
        masks.append(mask)
    return masks


def time_of(run: Run, chunk: int, row: int) -> ChunkTime:
    step = run.step_of(chunk, row)
    state = "pending" if step < 0 else "active" if step < run.steps else "finished"
    return ChunkTime(chunk, state, step)  # type: ignore[arg-type]


def stepped(decide, sources, run, fold, moment, store, made, actions) -> Step:  # type: ignore[no-untyped-def]
    engine = SimpleNamespace(
        decide=decide,
        sources=lambda *_: sources,
        video=lambda _: torch.zeros(1),
        lowered=SimpleNamespace(segments=()),
        uses_rows=True,
    )
    return Step(engine, run.bound, fold, moment, LAYOUT, store, made, actions, None, {}, {}, {})  # type: ignore[arg-type]


# ---- the simulation ----------------------------------------------------------------------------------------
@dataclass
class Simulated:
    """One chunk of one sample, by itself: the sources, and what it has done so far."""

    run: Run
    sample: int
    chunk: int
    account: np.ndarray = field(default_factory=lambda: np.zeros((FRAMES, PLACES), F32))
    streak: np.ndarray = field(default_factory=lambda: np.zeros((FRAMES, PLACES), int))
    total: np.ndarray = field(default_factory=lambda: np.zeros((FRAMES, PLACES), int))
    full: int = 0  # the last own step that computed all tokens
    touched: int = 0  # the last own step that computed some token
    steps: Counter[str] = field(default_factory=Counter)  # of each phase
    refreshed: Counter[str] = field(default_factory=Counter)

    def masks(self) -> list[np.ndarray]:
        """What it computes at each of its own steps."""
        return [self.step(k) for k in range(self.run.steps)]

    def source(self, step: int, chunk: int | None = None) -> np.ndarray:
        """The latent [F, P, C] when this chunk was at its own step; of another chunk at the same time."""
        row = step + self.chunk * self.run.lag
        return self.run.latent[row, self.sample, self.chunk if chunk is None else chunk]

    def value(self, e: ir.Expr, step: int) -> np.ndarray:
        ones = np.ones((FRAMES, PLACES), F32)
        match e:
            case ir.Const(number):
                return ones * F32(number)
            case ir.Change(_, ir.Source("modulation")):
                return ones * np.abs(self.run.drift[step] - self.run.drift[step - 1]).mean()
            case ir.Change(_, ir.Source("latent"), since, over):
                if over == ir.Granularity.STEP:
                    whole = self.run.latent[:, self.sample]
                    return ones * np.abs(whole[step] - whole[step - 1]).mean()
                before = step - 1 if since == "step" else self.touched
                moved = np.abs(self.source(step) - self.source(before)).mean(2)
                axes = {ir.Granularity.CHUNK: (0, 1), ir.Granularity.FRAME: (1,), ir.Granularity.TOKEN: ()}[over]
                return ones * (moved.mean(axes, keepdims=True) if axes else moved)
            case ir.FrameDiff():
                return self.motion(step)
            case ir.SignalRef("late"):
                return self.run.late[step + self.chunk * self.run.lag, self.sample, self.chunk]
            case ir.Apply("mul", (a, b)):
                return self.value(a, step) * self.value(b, step)
            case ir.Accumulate(of):
                return self.account + self.value(of, step)
            case _:
                raise NotImplementedError(e)

    def motion(self, step: int) -> np.ndarray:
        """Each frame against the one before it; the first frame of the video has no motion to weigh by."""
        now = self.source(step)
        moved = np.ones((FRAMES, PLACES), F32)
        moved[1:] = np.abs(now[1:] - now[:-1]).mean(2)
        if self.chunk > 0:
            row = min(step + self.chunk * self.run.lag, self.run.steps - 1)  # the chunk before stays as it ended
            ahead = self.run.latent[row, self.sample, self.chunk - 1]
            moved[0] = np.abs(now[0] - ahead[-1]).mean(1)
        return moved

    def number(self, e: ir.Expr | None, step: int) -> Any:
        return None if e is None else self.value(e, step)[0, 0]

    def phase(self, step: int) -> ir.Phase:
        phases, left = self.run.bound.ir.phases, self.run.steps - step
        for p in phases:
            if isinstance(p.span, ir.LastSteps) and left <= self.number(p.span.n, step):
                return p
        for p in phases:
            if isinstance(p.span, ir.Between) and self.number(p.span.low, 0) <= step < self.number(p.span.high, 0):
                return p
        for p in phases:
            match p.span:
                case ir.ForSteps(n) if self.steps[p.name] < self.number(n, step):
                    return p
                case ir.UntilRefreshes(n) if self.refreshed[p.name] < self.number(n, step):
                    return p
                case ir.Rest():
                    return p
        raise AssertionError("no phase")

    def step(self, step: int) -> np.ndarray:
        phase = self.phase(step)
        cache = self.run.bound.ir.cache
        due = cache.refresh_every is not None and step - self.full >= cache.refresh_every
        if step == 0 or due or (cache.refresh_last and step == self.run.steps - 1):
            fired, grown = np.ones((FRAMES, PLACES), bool), self.account
        else:
            fired, grown = self.rule(phase, step)
        self.account = np.where(fired, F32(0), grown).astype(F32)
        self.streak = np.where(fired, 0, self.streak + 1)
        self.total = np.where(fired, self.total, self.total + 1)
        self.full = step if fired.all() else self.full
        self.touched = step if fired.any() else self.touched
        self.steps[phase.name] += 1
        self.refreshed[phase.name] += int(fired.any())
        return fired

    def rule(self, phase: ir.Phase, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens to compute, accounts of those that are not)."""
        everything, nothing = np.ones((FRAMES, PLACES), bool), np.zeros((FRAMES, PLACES), bool)
        match phase.rule:
            case ir.Compute():
                return everything, self.account
            case ir.Every(n):
                return everything if self.steps[phase.name] % self.number(n, step) == 0 else nothing, self.account
            case ir.StepMask(compute):
                return everything if compute[step] else nothing, self.account
            case ir.Top(share, by):
                top = F32(self.number(share, step)) * F32(FRAMES * PLACES)
                return first_of(self.value(by, step), np.ceil(top), nothing), self.account
            case ir.Reuse():
                return self.reuse(phase.rule, step)
            case _:
                raise NotImplementedError(phase.rule)

    def reuse(self, rule: ir.Reuse, step: int) -> tuple[np.ndarray, np.ndarray]:
        if rule.granularity <= ir.Granularity.CHUNK:
            self.account = np.full((FRAMES, PLACES), self.account.max())
        value, limit = (a for a in rule.condition.args)  # type: ignore[union-attr]
        fired = ~(self.value(value, step) < self.value(limit, step))
        added = self.value(value.of, step) if isinstance(value, ir.Accumulate) else F32(0)
        grown = self.account + added
        if rule.vote is not None:
            fired = np.tile(fired.mean(0, keepdims=True) > self.number(rule.vote, step), (FRAMES, 1))
        if rule.hold_below is not None and 0 < fired.mean() < self.number(rule.hold_below, step):
            fired = np.zeros_like(fired)
        if rule.all_above is not None and fired.mean() > self.number(rule.all_above, step):
            fired = np.ones_like(fired)
        if rule.max_consecutive is not None:
            fired = fired | (self.streak >= self.number(rule.max_consecutive, step))
        if rule.max_total is not None:
            fired = fired | (self.total >= self.number(rule.max_total, step))
        if rule.max_reused is not None:
            wanted = (F32(1) - self.number(rule.max_reused, step)) * F32(FRAMES * PLACES)
            fired = first_of(grown, np.ceil(wanted), fired)
        return fired, grown


def first_of(score: np.ndarray, wanted: float, chosen: np.ndarray) -> np.ndarray:
    """`chosen`, and as many more of the highest score, first places first, as make `wanted`."""
    found = chosen.flatten()
    for token in np.argsort(-score.flatten(), kind="stable"):
        if found.sum() < wanted:
            found[token] = True
    return found.reshape(score.shape)


def check(run: Run, fold: bool) -> Counter[str]:
    """Every decision of the run is that of the simulation; returns what was seen happen."""
    try:
        masks = decided(run, fold)
    except PolicyError as error:
        if {d.code for d in error.diagnostics} != {"MC0307"}:
            raise
        return Counter()  # a range outside of a short run is refused
    seen: Counter[str] = Counter()
    for sample in range(SAMPLES):
        for chunk in range(CHUNKS):
            for step, wanted in enumerate(Simulated(run, sample, chunk).masks()):
                found = masks[step + chunk * run.lag][sample, chunk]
                assert (found == wanted).all(), (sample, chunk, step, found, wanted)
                seen["all" if wanted.all() else "some" if wanted.any() else "none"] += 1
    return seen


@settings(max_examples=120)
@given(runs(), st.booleans())
def test_a_run_decides_as_its_words_say(run: Run, fold: bool) -> None:
    check(run, fold)


TOKEN = ir.Reuse(
    ir.Granularity.TOKEN, ir.Apply("lt", (ir.Accumulate(MOVED["step", ir.Granularity.TOKEN]), C(0.7))),
    None, None, None, None, None, None,
)  # fmt: skip


def per(grain: ir.Granularity) -> ir.Reuse:
    """TOKEN at another granularity."""
    moved = ir.Change("l1", ir.Source("latent"), "step", grain)
    return replace(TOKEN, granularity=grain, condition=ir.Apply("lt", (ir.Accumulate(moved), C(0.9))))


EACH: Mapping[str, ir.Rule] = {
    "reuse token": TOKEN,
    "reuse step": per(ir.Granularity.STEP),
    "reuse frame": per(ir.Granularity.FRAME),
    "reuse chunk": per(ir.Granularity.CHUNK),
    "since compute": replace(TOKEN, condition=ir.Apply("lt", (MOVED["compute", ir.Granularity.TOKEN], C(0.4)))),
    "late": replace(TOKEN, condition=ir.Apply("lt", (ir.Accumulate(ir.SignalRef("late")), C(0.9)))),
    "frame_diff": replace(TOKEN, condition=ir.Apply("lt", (ir.Accumulate(MOTION), C(0.9)))),
    "vote": replace(TOKEN, vote=C(0.5)),
    "hold": replace(TOKEN, hold_below=C(0.6)),
    "compute all": replace(TOKEN, all_above=C(0.5)),
    "in a row": replace(TOKEN, max_consecutive=C(1.0)),
    "in total": replace(TOKEN, max_total=C(2.0)),
    "of tokens": replace(TOKEN, max_reused=C(0.5)),
    "top": ir.Top(C(0.5), MOVED["step", ir.Granularity.TOKEN]),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("name", "lag"), [(n, lag) for n in EACH for lag in (0, 2) if (n, lag) != ("reuse step", 2)])
def test_every_rule_and_guard_is_seen_in_a_graph(name: str, lag: int, fold: bool) -> None:
    """Each word acts: it decides as the simulation, and otherwise than the plain rule does.

    A value per step is one of all chunks of a call, and the simulation knows one chunk: there both take the same steps.
    """
    cache = ir.Cache("model", "model", "model", None, None, False)

    def made(rule: ir.Rule) -> Run:
        return run_of([ir.Phase("all", ir.Rest(), rule)], cache, 9, lag, 5, 0.5)

    seen = check(made(EACH[name]), fold)
    assert seen["none"] + seen["some"] > 0
    if name in ("vote", "hold", "compute all", "in a row", "in total", "of tokens"):
        pairs = zip(decided(made(EACH[name]), fold), decided(made(TOKEN), fold), strict=True)
        assert any((a != b).any() for a, b in pairs)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("guard", [{"max_total": C(4.0)}, {"max_consecutive": C(4.0)}])
def test_reuses_that_the_plan_knew_count(guard: dict[str, ir.Expr], fold: bool) -> None:
    """`at most 4` of a later phase counts what an earlier phase reused, though no graph had to decide that."""
    open_ = replace(EACH["late"], condition=ir.Apply("lt", (ir.SignalRef("late"), C(9.0))), **guard)  # type: ignore[type-var]
    phases = [
        ir.Phase("known", ir.ForSteps(C(4.0)), ir.StepMask((True, *[False] * 9))),
        ir.Phase("open", ir.Rest(), open_),
    ]
    cache = ir.Cache("model", "model", "model", None, None, False)
    check(run_of(phases, cache, 9, 0, 5, 0.25), fold)
