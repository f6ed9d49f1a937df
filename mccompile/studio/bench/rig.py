"""One transformer under several policies. Each can repeat a single step, which a whole generation cannot time.

A step is what a pipeline with guidance does: two calls, with and without the prompt, on the same new latents.

A Timeline drives a policy that computes an exact share of each chunk's tokens. The first row computes all tokens, so
that keys, values and residuals are kept. Every later row selects as many tokens as the share says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from mccompile import api
from mccompile.backend.inductor import Progress, inductor
from mccompile.backend.record import Recorder
from mccompile.backend.role import GraphCall, Role
from mccompile.capture.part import Additive, Part, Shared
from mccompile.diagnostics.source import Source
from mccompile.generate.flops import Prices, count, prices_of
from mccompile.ir import PolicyIR
from mccompile.language.load import load_policy
from mccompile.lowering.lower import lower
from mccompile.lowering.types import LoweredModel
from mccompile.pipelines.probe import ExampleCall
from mccompile.policy.bind import bind
from mccompile.runtime.blocks import Backend, eager
from mccompile.runtime.clock import ChunkTime, Timeline
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.exercise import record_roles
from mccompile.runtime.request import Request
from mccompile.studio.bench.subjects import Pattern, grid

STEPS = 1000  # rows that a timeline has at most
VANILLA, EXACT = "compute", "exact"
BASELINE = "baseline"  # `compute` over masks as they are, as torch.compile would have it
BRANCHES = ("cond", "uncond")
_NEW_AT_EACH_STEP = ("hidden_states", "timestep")  # prelude values are kept for the very same tensors
_SHARE = """policy NAME {
  # An exact share of every active chunk's tokens at every step: those that move most.
  param part = 50% in 0.1%..100%

  signal motion = frame_diff(block_output) | normalise(by = mean)

  phase first for 1 step { compute }
  phase rest             { compute top part of tokens by motion }

  layers blocks[*] { keep residual }
  chunks { pending: skip  finished: keep }
  BRANCHES
}
"""


def _share(name: str, branches: str = "") -> PolicyIR:
    return load_policy(Source.of_text(_SHARE.replace("NAME", name).replace("BRANCHES", branches)))


POLICIES = {
    VANILLA: load_policy(VANILLA),
    BASELINE: load_policy(VANILLA),
    EXACT: load_policy(EXACT),
    "share": _share("fixed_share"),
    "apart": _share("apart", "branches { share decision of cond }"),
    "together": _share("together", "branches { share decision of cond  batch }"),
}


@dataclass(frozen=True, slots=True)
class StepWay:
    """What a step runs under. policy: a key of POLICIES. share: of the tokens of active chunks, where it selects."""

    name: str
    policy: str
    share: float = 1.0

    @property
    def parameters(self) -> Mapping[str, float]:
        return {} if self.policy in (VANILLA, BASELINE, EXACT) else {"part": self.share}


@dataclass(slots=True)
class Repeater:
    """A model under a policy and the arguments of its calls, one per guidance branch; `step()` runs one more row."""

    model: CompiledModel
    timeline: Timeline
    calls: Mapping[str, ExampleCall]
    _first: bool = field(default=True)

    @torch.no_grad()
    def step(self) -> None:
        """Runs the next row. The first computes everything."""
        if not self._first:
            self.timeline.row += 1
        self._first = False
        fresh = {n: v.clone() for n, v in self.call.items() if n in _NEW_AT_EACH_STEP and isinstance(v, torch.Tensor)}
        for branch, call in self.calls.items():
            with self.model.cache_context(branch):
                self.model(**call | fresh)

    def continue_from(self, other: Repeater) -> None:
        """Takes away what `other`, over the same model and policy, keeps: from now on its steps are this one's."""
        (request,) = other.model.runner.requests.values()
        other.model.runner.requests.clear()
        for course in (c for store in request.branches.values() for c in store.courses.values()):
            course.states.ahead = None  # decided under the other's parameters
        self.model.runner.requests[self.timeline.request] = Request(request.branches)
        self.model.runner.engine.prefixes = other.model.runner.engine.prefixes
        self.timeline.row, self._first = other.timeline.row, False

    def begin_as(self, other: Repeater) -> None:
        """Takes over what `other`, over the same model, kept of its first row; `other` has run no more than that."""
        (request,) = other.model.runner.requests.values()
        self.model.runner.requests[self.timeline.request] = Request(copy.deepcopy(request.branches))
        self.model.runner.engine.prefixes = other.model.runner.engine.prefixes
        self._first = False

    @property
    def call(self) -> ExampleCall:
        return next(iter(self.calls.values()))

    def tokens(self) -> int:
        """Tokens that the latest row computed."""
        return sum(e.computed for e in self.model.events if e.row == self.timeline.row)

    def flops(self, prices: Prices) -> float:
        """FLOPs of the latest row, without what a request computes once (the text's part)."""
        last = [e for e in self.model.events if e.row == self.timeline.row]
        again = [*last, *(replace(e, row=e.row + 1) for e in last)]
        return count(self.model, again, prices) - count(self.model, last, prices)


def step_flops(found: Mapping[str, Repeater]) -> dict[str, float]:
    """FLOPs of the latest row of each way, all over one model."""
    one = next(iter(found.values()))
    prices = prices_of(one.model, one.call)
    return {name: r.flops(prices) for name, r in found.items()}


class _Rows(Sequence[Pattern]):
    """All chunks at their first step, then the same pattern over and over, one own step further at each row."""

    def __init__(self, first: Pattern, then: Pattern) -> None:
        self._first, self._then = first, then

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, row: int) -> Pattern:  # type: ignore[override]
        if row == 0:
            return self._first
        return tuple(replace(c, step=row) if c.state == "active" else c for c in self._then)


def repeaters(
    model: nn.Module,
    prepared: api.Prepared,
    ways: Sequence[StepWay],
    call: ExampleCall,
    pattern: Pattern,
    backend: Backend,
) -> dict[str, Repeater]:
    """Every way over the same model, its first rows run: the next `step()` is a step like any other.

    A first row computes everything, whatever the share: it is run once for all shares.
    """
    found: dict[str, Repeater] = {}
    calls = _of_branches(call)
    for way in ways:
        found[way.name] = _repeater(model, lowered_for(way, prepared), way, calls, pattern, backend)
        begun = next((found[w.name] for w in ways if w.policy == way.policy and w.name in found), found[way.name])
        if begun is found[way.name]:
            begun.step()
        else:
            found[way.name].begin_as(begun)
    return found


def _of_branches(call: ExampleCall) -> dict[str, ExampleCall]:
    text = call["encoder_hidden_states"]
    assert isinstance(text, torch.Tensor)
    return {b: call | {"encoder_hidden_states": t} for b, t in zip(BRANCHES, (text, -text), strict=True)}


def _repeater(
    model: nn.Module, lowered: LoweredModel, way: StepWay, calls: Mapping[str, ExampleCall], pattern: Pattern,
    backend: Backend,
) -> Repeater:  # fmt: skip
    first = tuple(ChunkTime(c.chunk, "active", 0) for c in pattern)
    timeline = Timeline(way.name, grid(STEPS), _Rows(first, pattern))  # type: ignore[arg-type]
    compiled = CompiledModel(model, lowered, bind(POLICIES[way.policy], way.parameters), backend)
    compiled.clock = timeline
    return Repeater(compiled, timeline, calls)


class InTurn:
    """Ways over one model, one after the other: there is never more than one store of keys and values.

    At the sizes of a real model a store takes 19 GB. Times of ways that take turns need one for each (`repeaters`).
    """

    def __init__(
        self, model: nn.Module, prepared: api.Prepared, call: ExampleCall, pattern: Pattern, backend: Backend
    ) -> None:
        self._model, self._prepared = model, prepared
        self._lowered: dict[str, LoweredModel] = {}  # by policy
        self._calls, self._pattern, self._backend = _of_branches(call), pattern, backend
        self._now: tuple[StepWay, Repeater] | None = None

    def take(self, way: StepWay) -> Repeater:
        """The way, its first row run, in place of the one before it, whose store it takes or frees."""
        before, self._now = self._now, None
        if way.policy not in self._lowered:
            self._lowered[way.policy] = lowered_for(way, self._prepared)
        lowered = self._lowered[way.policy]
        made = _repeater(self._model, lowered, way, self._calls, self._pattern, self._backend)
        if before is not None and before[0].policy == way.policy:
            made.continue_from(before[1])
        else:
            if before is not None:
                before[1].model.clear()
            made.step()
        self._now = way, made
        return made


def as_it_is(backend: Backend) -> Backend:
    """Changes nothing."""
    return backend


def lowered_for(way: StepWay, prepared: api.Prepared) -> LoweredModel:
    """The model under a way's policy."""
    lowered = lower(prepared.model, POLICIES[way.policy], prepared.prefixes)
    return replace(lowered, plain=tuple(map(_boolean, lowered.plain))) if way.policy == BASELINE else lowered


def _boolean(part: Part) -> Part:
    """A block that takes its masks as the model has them, and not in their additive form.

    A compiled graph takes masks of one dtype, so this block's is another graph: it looks at each mask by another name.
    """
    graph = copy.deepcopy(part.graph)
    holders = graph.find_nodes(op="placeholder")
    with graph.inserting_before(holders[-1].next):
        for operand, mask in zip(part.takes, holders, strict=True):
            if isinstance(operand, Additive):
                again = graph.call_function(torch.ops.aten.alias.default, (mask,))
                mask.replace_all_uses_with(again, lambda user, own=again: user is not own)
    takes = tuple(Shared(o.name) if isinstance(o, Additive) else o for o in part.takes)
    return replace(part, module=fx.GraphModule(part.module, graph), takes=takes)


def half_in_place(backend: Backend) -> Backend:
    """Blocks by the backend; final layers and observation by torch.compile, when they are first called; the rest eager.

    A package takes 7 s to compile, a graph that is compiled in place 3 s.
    """

    def chosen(module: fx.GraphModule, role: Role) -> GraphCall:
        if role.part in ("block", "rows"):
            return backend(module, role)
        if role.part in ("postlude", "observe") and not isinstance(backend, Recorder):
            return torch.compile(module, dynamic=False)
        return module.forward

    return chosen


def compile_ways(
    prepared: api.Prepared,
    ways: Sequence[StepWay],
    name: str,
    progress: Progress | None = None,
    instead: Callable[[Backend], Backend] = as_it_is,
    chunks: Sequence[int] = (),
) -> Backend:
    """The backend of that name for all ways together: graphs that they share are compiled once.

    chunks: of both calls that the model was captured from, where its attention does not tell them apart.
    instead: puts something else in place of some roles, which then are not compiled.
    """
    if name == "eager":
        return instead(eager)
    recorder = Recorder()
    for way in {w.policy: w for w in ways}.values():
        lowered = lowered_for(way, prepared)
        bound = bind(POLICIES[way.policy], way.parameters)
        record_roles(recorder, lowered, bound, prepared.calls, instead=instead, chunks=chunks)
    return instead(inductor(recorder, lowered, progress=progress))


def steps_of(found: Mapping[str, Repeater]) -> dict[str, Callable[[], object]]:
    """The repeaters as calls, for timing.interleaved."""
    return {name: r.step for name, r in found.items()}
