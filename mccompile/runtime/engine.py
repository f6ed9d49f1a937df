"""The callables of a lowered model under one backend, and how a run uses them. Holds no state of a generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import assert_never

import torch
from torch import fx

from mccompile import ir
from mccompile.backend.pieces import ByPieces
from mccompile.backend.role import GraphCall, Role
from mccompile.capture.part import Input, Modulated, Operand, Shared, Stream
from mccompile.capture.types import Beside, CapturedModel, ModulatedInput, TokenGrid
from mccompile.lowering.decide import DecideSpec
from mccompile.lowering.sources import (
    BlockStreams,
    Located,
    ModelOutput,
    Probe,
    ProbeOutput,
    RegionInput,
    RegionOutput,
    VideoStream,
)
from mccompile.lowering.types import LoweredModel
from mccompile.policy.facts import computes_always, selects_within_chunks
from mccompile.runtime.blocks import Backend, BlockCalls, Env, eager
from mccompile.runtime.decision import Decide, Observe
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.execute import Postlude
from mccompile.runtime.fresh import prompt_inputs
from mccompile.runtime.operands import BoundPart, Misplaced, bound_at
from mccompile.runtime.prefixes import Prefixes
from mccompile.runtime.shared import SharedValues, Value
from mccompile.runtime.whole import whole_model


class Engine:
    """Blocks, prelude values, decision, late signals and postlude of a lowered model.

    uses_rows: whether calls run on selected rows (one form for the whole life of the engine, so that a compile
    knows what it must cover): chunks live their own lives, or some rule selects within a chunk.
    """

    def __init__(self, lowered: LoweredModel, backend: Backend) -> None:
        backend = backend if backend is eager or isinstance(backend, ByPieces) else ByPieces(backend)
        self.lowered = lowered
        self.vanilla = computes_always(lowered.policy)
        causal = lowered.rows is not None and (bool(lowered.rows.prefixes) or masked_by_input(lowered.captured))
        within = selects_within_chunks(lowered.policy)
        self.uses_rows = lowered.rows is not None and not self.vanilla and (causal or within)
        # A model whose input masks chunks is given the text of the chunks in its window, which moves.
        self.prompt = () if masked_by_input(lowered.captured) else prompt_inputs(lowered.captured)
        self._check_forecasts()
        self.postlude = Postlude(lowered, backend)
        self.blocks = BlockCalls(lowered, backend, self.uses_rows)
        self.whole = whole_model(lowered, self.postlude, self.blocks)
        self.prefixes = Prefixes(lowered)
        made = {id(spec): self._decide(spec, backend) for spec in {id(s): s for s in lowered.decides.values()}.values()}
        self.decides = {view: made[id(spec)] for view, spec in lowered.decides.items()}
        observe = lowered.observe
        self.observe: Observe | None = None
        if observe is not None:
            self.observe = Observe(observe, self._by_chunks(backend, observe.module, Role("observe")))
        self._modulated: BoundPart | None = None
        if (part := lowered.modulated) is not None:
            first = lowered.captured.blocks[0]
            self._modulated = bound_at(part, backend(part.module, Role("modulated")), lowered.captured, first)
        captured = lowered.captured
        self._ports = {p.name: p for p in (*captured.sources, *captured.shared, *captured.streams)}
        self.values = SharedValues(lowered.captured, self._needed(), backend, as_made=self.vanilla)

    def _decide(self, spec: DecideSpec | None, backend: Backend) -> Decide | None:
        return None if spec is None else Decide(spec, self._by_chunks(backend, spec.module, Role("decide")))

    def _by_chunks(self, backend: Backend, module: fx.GraphModule, role: Role) -> GraphCall:
        """A graph of [B, K, G] first; where G varies a lone chunk goes to the graph itself: 1 is a constant size."""
        compiled = backend(module, role)
        if not masked_by_input(self.lowered.captured):
            return compiled
        return lambda host, *more: (module.forward if host.size(2) == 1 else compiled)(host, *more)

    def _check_forecasts(self) -> None:
        """Raises NoForecast (MC0620) where rows beside the video tokens would be forecast with them, or merged."""
        captured = self.lowered.captured
        rows = {p.name: p.rows for p in captured.streams}
        for region in self.lowered.regions if self.uses_rows else ():
            beside = next((made for _, made in region.pairs if rows[made] != "video"), None)
            if region.forecasts and beside is not None:
                why = f"tokens are computed at steps of their own, and `{beside}` has other rows than theirs"
                raise NoForecast(self.lowered.policy, why)
            if region.nearest is None:
                continue
            kinds = {captured.blocks[i].kind for i in range(region.first, region.last + 1)}
            kept = (b.name for kind in kinds for b in captured.kinds[kind].buffers if b.rows != "video")
            beside = beside or next(kept, None)
            if beside is not None:
                why = f"tokens take from tokens of the video, and `{beside}` has other rows than theirs"
                raise NoForecast(self.lowered.policy, why)

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
        """The entry stream of video tokens, [B, L, C]; with the rows beside them where their number varies."""
        name = self._of_video(self.lowered.captured.entry)
        port, stream = self._ports[name], env[name]
        count = port.beside.tokens(stream.size(1)) if port.beside is not None and port.token_axis == 1 else None
        return stream if port.beside is None or count is None else stream.narrow(1, port.beside.before or 0, count)

    def _of_video(self, names: Sequence[str]) -> str:
        """The stream that holds the video tokens, the first where it is not known which does."""
        holding = [n for n in names if self._ports[n].beside is not None]
        alone = (n for n in holding if self._ports[n].rows == "video")
        return next(iter((*alone, *holding, *names)))

    def tokens(self, name: str, value: torch.Tensor, inputs: Mapping[str, Value]) -> torch.Tensor:
        """The tokens of the grid among the rows of a stream or shared value; all where nothing lies beside them."""
        port, grid = self._ports[name], self.lowered.captured.grid
        if isinstance(grid, TokenGrid) and grid.apart:  # a shared value may have an entry for each frame of each sample
            return grid.together(value, inputs)
        if port.beside is None or port.token_axis is None:
            return value
        return self._narrowed(value, port.token_axis, port.beside, inputs)

    def _narrowed(self, value: torch.Tensor, axis: int, beside: Beside, inputs: Mapping[str, Value]) -> torch.Tensor:
        grid, rows = self.lowered.captured.grid, value.size(axis)
        if isinstance(grid, TokenGrid) and grid.apart:
            return grid.together(value, inputs)
        count, behind = beside.tokens(rows), grid.behind(inputs) if grid is not None else 0
        if beside == Beside(0, 0) and not behind:
            return value
        if count is None:
            count = tokens_of(self.lowered.captured, inputs) + behind
        return value.narrow(axis, beside.start(rows, count), count - behind)

    def sources(
        self, spec: DecideSpec, inputs: Mapping[str, Value], shared: Mapping[str, Value], env: Env,
        group: str | None = None,
    ) -> dict[str, torch.Tensor]:
        """The values of a decision's sources, each in its own layout; env: the streams before the first cached region,
        and later ones. group: of the regions that are decided about; None where the shapes alone matter."""
        found: dict[str, Value] = {}
        found |= {where.source: self.source(where, inputs, shared, env, group) for where in spec.sources}
        if any(isinstance(where.value, BlockStreams) for where in spec.told_after):
            found["block"] = self._entry_tokens(inputs, env)  # for its sizes: those of what a block adds to it
        return found

    def source(
        self, where: Located, inputs: Mapping[str, Value], shared: Mapping[str, Value], env: Env, group: str | None
    ) -> Value:
        """The value of one source that is known before the layers run; see `sources`."""
        match where.value:
            case Input(name):
                return inputs[name]
            case Shared(name):
                value = shared[name]
                return self.tokens(name, value, inputs) if isinstance(value, torch.Tensor) else value
            case VideoStream():
                return self._entry_tokens(inputs, env)
            case Probe():
                last = self._before_cached()
                return self.tokens(last, env[last], inputs) - self._entry_tokens(inputs, env)
            case ProbeOutput():
                last = self._before_cached()
                return self.tokens(last, env[last], inputs)
            case Modulated():
                return self._modulated_input(env, shared, inputs)
            case RegionInput():
                return self._region_input(inputs, env, group)
            case RegionOutput() | ModelOutput() | BlockStreams():
                raise Misplaced("decide", where.value)
            case _:
                assert_never(where.value)

    def told_after(
        self, results: Sequence[Value], env: Env, inputs: Mapping[str, Value]
    ) -> dict[ir.SourceName, torch.Tensor]:
        """What a call tells when it is over: what the model returned, and the residual of the block that was run.

        results: of the model. env: the streams after its blocks, with those of the block where it was computed.
        """
        found: dict[ir.SourceName, torch.Tensor] = {}
        for where in self.lowered.located.values():
            match where.value:
                case ModelOutput():
                    (output,) = results
                    assert isinstance(output, torch.Tensor)
                    found["output"] = output
                case BlockStreams(entered, left) if entered in env and left in env:
                    after, before = (self.tokens(name, env[name], inputs) for name in (left, entered))
                    found["block"] = after - before
                case _:
                    pass
        return found

    @property
    def watched(self) -> tuple[str, ...]:
        """The streams whose difference rules look at; none where they look at no block."""
        found = (where.value for where in self.lowered.located.values() if isinstance(where.value, BlockStreams))
        return next(((streams.entered, streams.left) for streams in found), ())

    def _modulated_input(self, env: Env, shared: Mapping[str, Value], inputs: Mapping[str, Value]) -> Value:
        def resolve(operand: Operand) -> Value:
            match operand:
                case Stream(name):
                    return env[name]
                case Shared(name):
                    return shared[name]
                case _:
                    raise Misplaced("modulated", operand)

        assert self._modulated is not None
        where = self.lowered.captured.kinds[self.lowered.captured.blocks[0].kind].modulated
        assert isinstance(where, ModulatedInput)
        value = self._modulated(resolve)[0]
        assert isinstance(value, torch.Tensor)
        return self._narrowed(value, where.token_axis, where.beside, inputs)

    def _entry_tokens(self, inputs: Mapping[str, Value], env: Env) -> torch.Tensor:
        name = self._of_video(self.lowered.captured.entry)
        return self.tokens(name, env[name], inputs)

    def _region_input(self, inputs: Mapping[str, Value], env: Env, group: str | None) -> torch.Tensor:
        """The video tokens that enter the first region of a group."""
        regions = self.lowered.regions
        region = next((r for r in regions if r.keep is not None and r.group == group), None)
        if region is None or region.keep == "increment":
            return self._entry_tokens(inputs, env)
        name = self._of_video([source for source, _ in region.pairs if source])
        return self.tokens(name, env[name], inputs)

    def _before_cached(self) -> str:
        regions = self.lowered.regions
        cached = next(i for i, r in enumerate(regions) if r.keep)
        return self.video_out(regions[cached - 1].pairs)

    def cached_output(self, env: Env, inputs: Mapping[str, Value]) -> torch.Tensor:
        """The video tokens that leave the last cached region."""
        name = self.video_out([r for r in self.lowered.regions if r.keep][-1].pairs)
        return self.tokens(name, env[name], inputs)

    def video_out(self, pairs: tuple[tuple[str, str], ...]) -> str:
        return self._of_video([out for _, out in pairs])


def tokens_of(captured: CapturedModel, inputs: Mapping[str, Value]) -> int:
    """The number of video tokens of a call of a model whose grid is known."""
    assert captured.grid is not None
    return prod(captured.grid.of_call(inputs))


def masked_by_input(captured: CapturedModel) -> bool:
    """An input says which keys each token may see: the chunks of a call are at steps of their own."""
    varied = {Shared(p.name) for p in captured.shared if p.token_axis is not None and p.depends}
    return any(site.mask in varied for k in captured.kinds if k.partial is not None for site in k.partial.attentions)
