"""The callables of a lowered model under one backend, and how a run uses them. Holds no state of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import fx

from mccompile.backend.role import GraphCall, Role
from mccompile.capture.part import Input, Modulated, Operand, Shared, Stream
from mccompile.capture.types import CapturedModel
from mccompile.lowering.sources import Probe, RegionOutput, VideoStream
from mccompile.lowering.types import LoweredModel
from mccompile.policy.facts import computes_always, selects_within_chunks
from mccompile.runtime.blocks import Backend, Blocks, Env
from mccompile.runtime.decision import Decide, Observe
from mccompile.runtime.execute import Postlude
from mccompile.runtime.fresh import prompt_inputs
from mccompile.runtime.operands import BoundPart, Misplaced, bound_at
from mccompile.runtime.prefixes import Prefixes
from mccompile.runtime.shared import SharedValues, Value


class Engine:
    """Blocks, prelude values, decision, late signals and postlude of a lowered model.

    uses_rows: whether calls run on selected rows (one form for the whole life of the engine, so that a compile
    knows what it must cover): chunks live their own lives, or some rule selects within a chunk.
    """

    def __init__(self, lowered: LoweredModel, backend: Backend) -> None:
        self.lowered = lowered
        self.vanilla = computes_always(lowered.policy)
        causal = lowered.rows is not None and (bool(lowered.rows.prefixes) or masked_by_input(lowered.captured))
        within = selects_within_chunks(lowered.policy)
        self.uses_rows = lowered.rows is not None and not self.vanilla and (causal or within)
        # A model whose input masks chunks is given the text of the chunks in its window, which moves.
        self.prompt = () if masked_by_input(lowered.captured) else prompt_inputs(lowered.captured)
        self.postlude = Postlude(lowered, backend)
        self.blocks = Blocks(lowered, backend, self.uses_rows)
        self.prefixes = Prefixes(lowered)
        decide, observe = lowered.decide, lowered.observe
        self.decide = Decide(decide, self._by_chunks(backend, decide.module, Role("decide"))) if decide else None
        self.observe: Observe | None = None
        if observe is not None:
            self.observe = Observe(observe, self._by_chunks(backend, observe.module, Role("observe")))
        self._modulated: BoundPart | None = None
        if (part := lowered.modulated) is not None:
            first = lowered.captured.blocks[0]
            self._modulated = bound_at(part, backend(part.module, Role("modulated")), lowered.captured, first)
        self.values = SharedValues(lowered.captured, self._needed(), backend)

    def _by_chunks(self, backend: Backend, module: fx.GraphModule, role: Role) -> GraphCall:
        """A graph of [B, K, G] first; where G varies a lone chunk goes to the graph itself: 1 is a constant size."""
        compiled = backend(module, role)
        if not masked_by_input(self.lowered.captured):
            return compiled
        return lambda host, *more: (module.forward if host.size(2) == 1 else compiled)(host, *more)

    def _needed(self) -> list[str]:
        """Prelude values that runs read; with rows, the gather's sources in place of what they expand."""
        captured = self.lowered.captured
        read = [s for b in captured.blocks for s in b.shared]
        names = [*captured.entry, *self.postlude.shared]
        if self.uses_rows:
            names += [*self.blocks.sources, *(s for s in read if s not in captured.gathered)]
            names += captured.blocks[0].shared if self._modulated else ()
        else:
            names += read
        names += [w.value.name for w in self.lowered.located.values() if isinstance(w.value, Shared)]
        ports = {p.name for p in (*captured.shared, *captured.sources, *captured.streams)}
        return [n for n in names if n in ports]

    def entry(self, shared: Mapping[str, Value]) -> Env:
        """The streams that the prelude makes."""
        return {n: shared[n] for n in self.lowered.captured.entry}

    def video(self, env: Env) -> torch.Tensor:
        """The entry stream of video tokens, [B, L, C]."""
        ports = {p.name: p for p in self.lowered.captured.streams}
        entry = self.lowered.captured.entry
        return next(env[n] for n in entry if ports[n].rows == "video" or len(entry) == 1)

    def sources(self, inputs: Mapping[str, Value], shared: Mapping[str, Value], env: Env) -> dict[str, torch.Tensor]:
        """The values of the decision's sources, each in its own layout; env: streams before the cached region."""
        found: dict[str, Value] = {}
        for where in self.decide.spec.sources if self.decide else ():
            match where.value:
                case Input(name):
                    found[where.source] = inputs[name]
                case Shared(name):
                    found[where.source] = shared[name]
                case VideoStream():
                    found[where.source] = self.video(env)
                case Probe():
                    found[where.source] = env[self._before_cached()] - self.video(env)
                case Modulated():
                    found[where.source] = self._modulated_input(env, shared)
                case RegionOutput():
                    raise Misplaced("decide", where.value)
                case _:
                    assert_never(where.value)
        return found

    def _modulated_input(self, env: Env, shared: Mapping[str, Value]) -> Value:
        def resolve(operand: Operand) -> Value:
            match operand:
                case Stream(name):
                    return env[name]
                case Shared(name):
                    return shared[name]
                case _:
                    raise Misplaced("modulated", operand)

        assert self._modulated is not None
        return self._modulated(resolve)[0]

    def _before_cached(self) -> str:
        segments = self.lowered.segments
        cached = next(i for i, s in enumerate(segments) if s.keep)
        return self.video_out(segments[cached - 1].pairs)

    def cached_output(self) -> str:
        """The stream of video tokens that leaves the last cached region."""
        return self.video_out([s for s in self.lowered.segments if s.keep][-1].pairs)

    def video_out(self, pairs: tuple[tuple[str, str], ...]) -> str:
        ports = {p.name: p for p in self.lowered.captured.streams}
        return next(out for _, out in pairs if ports[out].rows == "video" or len(pairs) == 1)


def masked_by_input(captured: CapturedModel) -> bool:
    """An input says which keys each token may see: the chunks of a call are at steps of their own."""
    varied = {Shared(p.name) for p in captured.shared if p.token_axis is not None and p.depends}
    return any(site.mask in varied for k in captured.kinds if k.partial is not None for site in k.partial.attentions)
