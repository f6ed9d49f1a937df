"""Three laws of a captured model's parts, on numbers: rows, kept rows, reuse. They use none of the runtime's own code.

rows   the partial form of each block gives the rows, and the buffers, of its full form
kept   on other streams it gives those of a full form whose buffered values are the kept ones at all other rows
reuse  a step that computes none of the kept regions gives their input plus the residual that was kept
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar

import torch
from torch import fx

from mccompile.capture.part import Buffer
from mccompile.capture.run import FullRun, block_weights, run_full
from mccompile.capture.types import BlockKind, BlockSite, CapturedModel
from mccompile.capture.verify import gathered_rows, row_pairs, run_rows, stream_rows
from mccompile.lowering.types import LoweredModel
from mccompile.runtime.clock import Moment
from mccompile.runtime.exercise import first_moment
from mccompile.runtime.runner import Runner
from mccompile.runtime.shared import Value

Inputs = Mapping[str, Value]
T = TypeVar("T")
aten = torch.ops.aten


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry; infinite where shapes differ or numbers are missing."""
    if found.shape != wanted.shape:
        return float("inf")
    if found.numel() == 0:
        return 0.0
    off = float((found.double() - wanted.double()).abs().max())
    scale = max(float(wanted.double().abs().max()), 1e-12)
    return off / scale if off == off and scale == scale else float("inf")


@torch.no_grad()
def rows_apart(captured: CapturedModel, inputs: Inputs) -> tuple[float, str]:
    """The largest difference between rows of partial and of full forms, and where it is. All blocks have both.

    Selections of one token, of two in descending order, of a third at random, and of all are tried at every block.
    """
    flat = tuple(inputs.values())
    run = run_full(captured, flat)
    count, device = _tokens(captured, inputs, run)
    worst, place = 0.0, ""
    for index in _selections(count, device):
        rows = gathered_rows(captured, flat, index)
        for site in captured.blocks:
            for what, expected, given in row_pairs(captured, site, run, rows):
                off = difference(given, expected)
                if off > worst:
                    worst, place = off, f"{what} at {site.path}, {len(index)} of {count} tokens"
    return worst, place


@torch.no_grad()
def kept_apart(captured: CapturedModel, inputs: Inputs) -> tuple[float, str]:
    """The largest difference between rows of partial forms and of full forms that read the kept rows, and where it is.

    The kept rows are those of a call on `inputs`. Then the streams that enter each block are others, and a third of the
    tokens is selected. All blocks have both forms.
    """
    flat = tuple(inputs.values())
    run = run_full(captured, flat)
    count, device = _tokens(captured, inputs, run)
    rows = gathered_rows(captured, flat, _selections(count, device)[2])
    noise, worst, place = torch.Generator().manual_seed(2), 0.0, ""
    for site in captured.blocks:
        kind, kept = captured.kinds[site.kind], run.buffers[site.index]
        values = {n: _other(run.values[n], noise) for n in site.streams_in}
        operands = [*values.values(), *(run.values[n] for n in site.shared)]
        reading = _Keeping(kind, rows, kept)
        wanted = reading.run(*operands, *kind.allocate(*operands), *block_weights(captured, site))
        found = run_rows(captured, site, values, rows, [b.clone() for b in kept])
        for name, one, whole in zip(site.streams_out, found, wanted, strict=True):
            other = stream_rows(captured, name, whole, rows)
            assert isinstance(other, torch.Tensor)
            off = difference(one, other)
            if off > worst:
                worst, place = off, f"`{name}` at {site.path}, {len(rows['video'])} of {count} tokens"
    return worst, place


def _other(value: object, noise: torch.Generator) -> object:
    """A stream that is far from the one of the call."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value + torch.randn(value.shape, generator=noise).to(value)


class _Keeping(fx.Interpreter):
    """Runs a full form with kept rows, outside of a selection, in each value that it writes into a buffer."""

    def __init__(self, kind: BlockKind, rows: Mapping[str, torch.Tensor], kept: Sequence[torch.Tensor]) -> None:
        super().__init__(kind.full.module)
        holders = kind.full.holders()
        buffers = {holders[Buffer(s.name)]: (s, rows[s.rows], b) for s, b in zip(kind.buffers, kept, strict=True)}
        self._kept = {}
        for node in kind.full.graph.find_nodes(op="call_function", target=aten.copy_.default):
            if node.args[0] in buffers:
                source, turned = _written(node.args[1])
                self._kept[source] = *buffers[node.args[0]], turned

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n not in self._kept or not isinstance(value, torch.Tensor):
            return value
        spec, rows, buffer, turned = self._kept[n]
        fresh = value.mT if turned else value
        blended = buffer.index_copy(spec.token_axis, rows, fresh.index_select(spec.token_axis, rows))
        return blended.mT if turned else blended


def _written(value: fx.node.Argument) -> tuple[fx.Node, bool]:
    """The value of a block that is written into a buffer, and whether with its last two axes exchanged."""
    assert isinstance(value, fx.Node)
    turned = value.target is aten.transpose.int and value.args[1:] == (-2, -1) and len(value.users) == 1
    source = value.args[0] if turned else value
    assert isinstance(source, fx.Node)
    return source, turned


def _tokens(captured: CapturedModel, inputs: Inputs, run: FullRun) -> tuple[int, torch.device]:
    """How many video tokens a call has, by the grid or by the stream that holds nothing else; and where they are."""
    streams = [(p, run.values[p.name]) for p in captured.streams if p.name in captured.entry]
    held = [(p, x) for p, x in streams if isinstance(x, torch.Tensor) and p.beside is not None]
    port, stream = next((pair for pair in held if pair[0].rows == "video"), held[0])
    assert port.token_axis is not None
    count = prod(captured.grid.of_call(inputs)) if captured.grid is not None else stream.size(port.token_axis)
    return count, stream.device


def _selections(count: int, device: torch.device) -> list[torch.Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    found = [order[:1], torch.tensor([count - 1, 0]), order[: max(1, count // 3)], order]
    return [index.to(device) for index in found]


@torch.no_grad()
def reuse_apart(runner: Runner, inputs: Inputs, latents: frozenset[str]) -> float:
    """How far a step that reuses everything is from the residuals of the step before.

    runner: under a policy that computes the first step and reuses the second one. inputs: of one call, flat by name;
    in the second step the values of `latents` differ.
    """
    lowered = runner.lowered
    noise = torch.Generator()
    later = {k: moved(v, noise.manual_seed(1)) if k in latents else v for k, v in inputs.items()}
    engine = runner.engine
    first = first_moment(engine, inputs, engine.entry(engine.values.get(inputs)))
    grid = replace(first.grid, steps=2, timesteps=(1000.0, 500.0), sigmas=(1.0, 0.5))
    moments = [
        Moment("law", row, "cond", grid, tuple(replace(c, step=row) for c in first.chunks), first.total)
        for row in (0, 1)
    ]
    runner.call(inputs, moments[0])
    found = runner.call(later, moments[1])
    wanted = _reused(lowered, run_full(lowered.captured, tuple(inputs.values())), later)
    pairs = zip(found, wanted, strict=True)
    return max((difference(a, b) for a, b in pairs if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)))


def moved(value: T, noise: torch.Generator) -> T | torch.Tensor:
    """Latents a little further on: a tenth of the noise is added. What is no tensor of floats stays as it is."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value + 0.1 * torch.randn(value.shape, generator=noise).to(value)


def _reused(lowered: LoweredModel, before: FullRun, inputs: Inputs) -> tuple[object, ...]:
    """The model's flat outputs on `inputs` where every kept region adds what it added in the run before."""
    captured = lowered.captured
    names = (*captured.entry, *(p.name for p in captured.shared))
    env: dict[str, object] = dict(zip(names, captured.prelude(*inputs.values()), strict=True))
    for region in lowered.regions:
        if region.keep is None:
            for site in captured.blocks[region.first : region.last + 1]:
                env.update(_block(captured, site, env))
            continue
        for source, made in region.pairs:
            kept = before.values[made]
            if region.keep == "residual" and source:
                kept = env[source] + (kept - before.values[source])  # type: ignore[operator]
            env[made] = kept
    shared = [env[p.name] for p in captured.shared]
    return tuple(captured.postlude(*(env[n] for n in captured.exit), *shared, *inputs.values()))


def _block(captured: CapturedModel, site: BlockSite, env: Mapping[str, object]) -> dict[str, object]:
    kind = captured.kinds[site.kind]
    operands = [env[n] for n in (*site.streams_in, *site.shared)]
    made = kind.full(*operands, *kind.allocate(*operands), *block_weights(captured, site))
    return dict(zip(site.streams_out, made, strict=True))
