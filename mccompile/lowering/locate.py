"""Finds a policy's sources in a captured model by what each value depends on. No model is known by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from mccompile import ir
from mccompile.capture.part import Input, Modulated, Shared
from mccompile.capture.types import Beside, CapturedModel, Port, TokenGrid, ToldGrid
from mccompile.capture.verify import TIMESTEPS
from mccompile.language.walk import all_rules, rule_expressions, walk, weighing_signals
from mccompile.lowering.errors import SourceNotFound
from mccompile.lowering.sources import (
    Located,
    ModelOutput,
    Probe,
    ProbeOutput,
    RegionInput,
    RegionOutput,
    SourceValue,
    VideoStream,
)
from mccompile.lowering.taps import block_streams
from mccompile.lowering.types import LoweredRegion
from mccompile.policy.facts import model_region


def sources_read(policy: ir.PolicyIR) -> tuple[ir.SourceRef, ...]:
    """Returns the sources that rules read, late signals included, and those by which nearest tokens are found."""
    signals = {s.name: s for s in policy.signals}
    rules = (rule for rule in all_rules(policy) if isinstance(rule, ir.Reuse | ir.Top))
    expressions = (*(x for rule in rules for x in rule_expressions(rule)), *weighing_signals(policy))
    measured = (ir.Change, ir.FrameDiff, ir.Similarity)
    found = (e.of for x in expressions for e in walk(x, signals) if isinstance(e, measured))
    near = (region.nearest for region in policy.regions if region.nearest is not None)
    return tuple(dict.fromkeys((*found, *near)))


def locate(
    captured: CapturedModel, policy: ir.PolicyIR, regions: tuple[LoweredRegion, ...], watched: tuple[int, ...] = ()
) -> Mapping[ir.SourceName, Located]:
    """Says where each source that the policy reads lies. Raises SourceNotFound (MC0502) with the reason.

    watched: the blocks of the captured model that are the one which rules look at.
    """
    found = {source.name: _one(captured, policy, regions, source, watched) for source in sources_read(policy)}
    whole = model_region(policy)
    if whole is not None:
        source = ir.SourceRef("output", at=whole.where.at)
        found[source.name] = _one(captured, policy, regions, source, watched)
    return found


def timestep_of(captured: CapturedModel) -> str:
    """The input that tells the model its step; the usual name where there is none."""
    return next((name for name in TIMESTEPS if name in captured.inputs), TIMESTEPS[0])


def model_output(captured: CapturedModel) -> ModelOutput | str:
    """Returns the output of a model that gives one tensor of the layout of its latents, or why there is none."""
    if captured.grid is None or captured.grid.axes != (2, 3, 4):
        return "its latent input is not [batch, channel, frame, height, width]"
    (results,) = captured.module.graph.output_node().args
    assert isinstance(results, list | tuple)
    tensors = [r.meta.get("val") if isinstance(r, fx.Node) else None for r in results]
    if len(tensors) != 1 or not isinstance(tensors[0], torch.Tensor) or tensors[0].dim() != 5:
        return "it does not give one tensor [batch, channel, frame, height, width]"
    channels, source = tensors[0].size(1), captured.grid.source
    if not isinstance(channels, int):
        return "the number of its output channels varies"
    latent = next(n.meta.get("val") for n in captured.module.graph.find_nodes(op="placeholder") if n.name == source)
    own = latent.size(1) if isinstance(latent, torch.Tensor) else None
    if isinstance(own, int) and own < channels:
        return f"its output has {channels} channels and its latent input {own}: a variance is among them"
    return ModelOutput(channels)


def latent_inputs(captured: CapturedModel) -> frozenset[str]:
    """Returns the user inputs that change with the latents: all that the entry streams of tokens depend on.

    Further latents are among them (sound beside the video).
    """
    ports = {p.name: p for p in captured.streams}
    entry = [ports[n] for n in captured.entry if ports[n].beside is not None]
    return frozenset(captured.moving).union(*(p.depends for p in entry)) - {timestep_of(captured)}


def static_sources(captured: CapturedModel, located: Mapping[ir.SourceName, Located]) -> frozenset[str]:
    """Returns the sources that do not depend on latents. The clock and the request's constants determine them."""
    latents = latent_inputs(captured)
    fixed = {Shared(p.name) for p in (*captured.shared, *captured.sources) if not p.depends & latents}
    return frozenset(name for name, where in located.items() if where.value in fixed)


def _one(
    captured: CapturedModel, policy: ir.PolicyIR, regions: tuple[LoweredRegion, ...], source: ir.SourceRef,
    watched: tuple[int, ...],
) -> Located:  # fmt: skip
    name = source.name
    grid = captured.grid
    patch = grid.patch if grid is not None else (1, 1, 1)
    stream = next((p for p in captured.streams if p.name in captured.entry and p.beside is not None), None)

    def missing(reason: str) -> SourceNotFound:
        return SourceNotFound(policy.name, captured.model_class, source, reason)

    if source.gain is not None and not isinstance(grid, TokenGrid | ToldGrid):
        raise missing("a filter needs rows and columns, and the grid of its tokens is not known")
    match name:
        case "latent":
            if grid is None or grid.axes != (2, 3, 4):
                raise missing("its latent input is not [batch, channel, frame, height, width]")
            return Located(name, Input(grid.source), "latent", 2, patch)
        case "output":
            found = model_output(captured)
            if isinstance(found, str):
                raise missing(found)
            return Located(name, found, "latent", 2, patch)
        case "modulation" | "time_embedding":
            port = _timed(captured, in_blocks=name == "modulation")
            if captured.opaque:
                raise missing("its blocks run as the model's own code, which does not tell what the timestep makes")
            if port is None:
                where = "the blocks" if name == "modulation" else "the final layer"
                raise missing(f"no value that {where} read depends on the timestep and not on the latents")
            return _located(captured, name, port, patch)
        case _:
            if stream is None or stream.token_axis is None:
                raise missing("no stream of video tokens enters its blocks")
            if not _locatable(captured, stream.beside):
                raise missing(f"its video tokens lie among others whose number varies ({stream.rows})")
            if name == "block_output" and not _leaves(captured, regions):
                raise missing("no stream of video tokens leaves the cached region")
            if name == "block":
                tap = block_streams(captured, policy, regions, watched)
                if isinstance(tap, str):
                    raise missing(tap)
                return Located(name, tap, "tokens", stream.token_axis, patch)
            if name == "modulated_input":
                modulated = captured.kinds[captured.blocks[0].kind].modulated
                if isinstance(modulated, str):
                    raise missing(modulated)
                if not _locatable(captured, modulated.beside):
                    raise missing("its video tokens lie among others whose number varies")
                return Located(name, Modulated(), "tokens", modulated.token_axis, patch)
            values: dict[ir.SourceName, SourceValue] = {
                "embedded": VideoStream(),
                "probe": Probe(),
                "probe_output": ProbeOutput(),
                "block_output": RegionOutput(),
                "input": RegionInput(),
            }
            if name == "input" and any(s.inside for s in regions):
                raise missing("the output of a part of a block is kept, and that continues no stream")
            if name in ("probe", "probe_output") and (regions[0].keep is not None or len(regions) < 2):
                raise missing("no always-computed blocks come before the cached region")
            return Located(name, values[name], "tokens", stream.token_axis, patch)


def _leaves(captured: CapturedModel, regions: tuple[LoweredRegion, ...]) -> bool:
    """Says whether the last cached region passes the video tokens on, along one axis."""
    ports = {p.name: p for p in captured.streams}
    kept = [s for s in regions if s.keep]
    if not kept or kept[-1].inside or any(region.keep == "increment" for region in kept):
        return False
    return any(_locatable(captured, ports[made].beside) for _, made in kept[-1].pairs)


def _locatable(captured: CapturedModel, beside: Beside | None) -> bool:
    """Says whether a run can tell the video tokens of a value from the rows beside them."""
    if beside is None:
        return False
    counted = beside.before is not None and beside.after is not None
    return counted or (beside.located and captured.grid is not None)


def _timed(captured: CapturedModel, in_blocks: bool) -> Port | None:
    """Returns the value derived from the timestep that the blocks read, or the one that only the postlude reads."""
    latents = latent_inputs(captured)
    read = {s for b in captured.blocks for s in b.shared}
    for port in captured.shared:
        timed = timestep_of(captured) in port.depends and not port.depends & latents
        if timed and (port.name in read) == in_blocks:
            return port
    return None


def _located(captured: CapturedModel, name: ir.SourceName, port: Port, patch: tuple[int, int, int]) -> Located:
    """Returns a shared value as a source. It has an entry for each token, or one for all tokens."""
    if port.token_axis is None:
        return Located(name, Shared(port.name), "constant", 0, patch)
    return Located(name, Shared(port.name), "tokens", port.token_axis, patch)
