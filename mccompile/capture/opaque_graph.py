"""Writes the graph of a model whose blocks are its own code, and cuts it into parts like any other.

Its nodes call the modules of opaque.py: the prelude, each block, the postlude.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mccompile.capture.export import Pair
from mccompile.capture.facts import TensorFact
from mccompile.capture.grid import embedding_of, latent_range
from mccompile.capture.opaque import OpaqueBlock, OpaquePostlude, OpaquePrelude, ReachedBlock, Stack
from mccompile.capture.part import Input, Operand, Output, Part, Shared, Stream
from mccompile.capture.rows import RowSpans, beside_video, joined, key, other, video
from mccompile.capture.split import subgraph
from mccompile.capture.streams import token_axis
from mccompile.capture.types import Assembled, BlockKind, BlockSite, Port, Refusal

OWN = "its blocks run as the model's own code, uncompiled"


@dataclass(frozen=True, slots=True)
class WholeGraphPlan:
    """Which values the prelude gives, and which blocks directly follow the one before.

    wanted: (block, place) of the values. paths: of the blocks. at: for each block the number among `wanted` of each of
    its shared values; None for a block that is reached through the model's forward. made: for each block after the
    first, which results of which blocks its streams are, as (block, place among the tensors it returns). continues:
    for each block and each tensor that it returns, the number of the stream that stands for it, None for none.
    """

    wanted: tuple[tuple[int, int], ...]
    paths: tuple[str, ...]
    at: tuple[tuple[int, ...] | None, ...]
    made: tuple[tuple[tuple[int, int], ...], ...]
    continues: tuple[tuple[int | None, ...], ...]


class OpaqueGraph:
    """Writes the captured graph: placeholders, the prelude, one call a block, the postlude."""

    def __init__(self, stack: Stack, plan: WholeGraphPlan, pair: Pair) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()
        self.stack, self.plan = stack, plan
        named = [self.graph.placeholder(re.sub(r"\W+", "_", path).strip("_")) for path in pair.paths]
        self.placeholders = named
        self.inputs = [named[i] for i in stack.inputs]
        self.shared = self._call("prelude", OpaquePrelude(stack, plan.wanted), self.inputs, len(plan.wanted))
        self.streams: list[list[fx.Node]] = []
        self.operands: list[tuple[list[fx.Node], list[fx.Node]]] = []  # of each block: streams, shared values
        for index in range(len(stack.blocks)):
            self._block(index)

    def _call(self, name: str, module: nn.Module, operands: Sequence[fx.Node], count: int) -> list[fx.Node]:
        self.root.add_module(name, module)
        made = self.graph.call_module(name, tuple(operands))
        pick = operator.getitem
        return [self.graph.create_node("call_function", pick, (made, i), name=f"{name}_{i}") for i in range(count)]

    def _block(self, index: int) -> None:
        shape, at = self.stack.blocks[index], self.plan.at[index]
        name = f"block_{index}"
        made = [self.streams[block][place] for block, place in self.plan.made[index]]
        if at is not None:
            entering = made if index else self.shared[: len(shape.streams)]
            shared = [self.shared[i] for i in at]
            module: nn.Module = OpaqueBlock(shape)
        else:
            entering = self.streams[index - 1] if index else self.shared[: len(shape.streams)]
            shared, module = self.inputs, ReachedBlock(self.stack, index)
        self.operands.append((entering, shared))
        self.streams.append(self._call(name, module, [*entering, *shared], len(shape.results)))

    def finish(self, count: int) -> tuple[fx.GraphModule, list[fx.Node]]:
        """The captured graph, and its `count` outputs."""
        outputs = self._call("postlude", OpaquePostlude(self.stack), [*self.streams[-1], *self.inputs], count)
        self.graph.output(tuple(outputs))
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, class_name="OpaqueModel"), outputs


def assembled_of(
    builder: OpaqueGraph,
    module: fx.GraphModule,
    outputs: list[fx.Node],
    pair: Pair,
    out_spec: pytree.TreeSpec,
    why: str,
) -> Assembled:
    inputs, stack = builder.inputs, builder.stack
    entry = builder.operands[0][0]
    shared = list(dict.fromkeys(n for _, own in builder.operands for n in own))
    told = tuple(Input(n.name) for n in inputs)
    leaving = builder.streams[-1]
    tensors = [n for n, i in zip(inputs, stack.inputs, strict=True) if isinstance(pair.probe[i], torch.Tensor)]
    everything = frozenset(n.name for n in tensors)

    def depends(node: fx.Node) -> frozenset[str]:
        return (everything & {node.name}) if node in inputs else everything

    streams = [*entry, *(n for made in builder.streams for n in made)]
    kinds, sites = zip(*(_block(builder, module, i) for i in range(len(stack.blocks))), strict=True)
    return Assembled(
        module=module,
        model_class=type(stack.model).__name__,
        inputs=tuple(n.name for n in inputs),
        constants=tuple((builder.placeholders[i].name, x) for i, x in stack.fixed.items()),
        in_spec=pytree.tree_flatten(((), pair.call))[1],
        out_spec=out_spec,
        prelude=Part(
            subgraph(module, inputs, [*entry, *shared], "Prelude"),
            told, (*(Stream(n.name) for n in entry), *(Shared(n.name) for n in shared)),
        ),
        gather=None,
        postlude=Part(
            subgraph(module, [*leaving, *shared, *inputs], outputs, "Postlude"),
            (*(Stream(n.name) for n in leaving), *(Shared(n.name) for n in shared), *told),
            tuple(Output(i) for i in range(len(outputs))),
        ),
        entry=tuple(n.name for n in entry),
        exit=tuple(n.name for n in leaving),
        shared=tuple(Port(n.name, None, "", depends(n)) for n in shared),
        sources=(),
        gathered=tuple(n.name for n in shared),
        streams=tuple(Port(n.name, None, "", everything) for n in streams),
        row_keys=(),
        kinds=kinds,
        blocks=sites,
        refusals=(Refusal("forward", why),),
        samples=(),
        opaque=why,
    )  # fmt: skip


def _block(builder: OpaqueGraph, module: fx.GraphModule, index: int) -> tuple[BlockKind, BlockSite]:
    entering, shared = builder.operands[index]
    leaving = builder.streams[index]
    takes: tuple[Operand, ...] = (*(Stream(n.name) for n in entering), *(Shared(n.name) for n in shared))
    gives = tuple(Stream(n.name) for n in leaving)
    full = Part(subgraph(module, [*entering, *shared], leaving, "FullBlock"), takes, gives)
    nothing = Part(subgraph(module, [*entering, *shared], [], "AllocateBuffers"), takes, ())
    continued = (entering[i].name if i is not None else "" for i in builder.plan.continues[index])
    site = BlockSite(
        index=index,
        path=builder.plan.paths[index],
        kind=index,
        streams_in=tuple(n.name for n in entering),
        streams_out=tuple(n.name for n in leaving),
        continues=tuple(continued),
        shared=tuple(n.name for n in shared),
        weights=(),
    )
    return BlockKind(full, None, nothing, (), (), OWN), site


def located(assembled: Assembled, inputs: Sequence[Sequence[object]], source: str) -> Assembled:
    """With the token axis of the stream that enters, and of those that continue it, where there is one."""
    first = assembled.streams[0].name
    with torch.no_grad():
        one, two = (assembled.prelude(*leaves)[0] for leaves in inputs)
    extents = tuple(zip(one.shape, two.shape, strict=True))
    axis = token_axis(TensorFact(extents, one.dtype))
    if axis is None and one.shape == two.shape:
        axis = _padded_axis(assembled, inputs, source, one.dim())
    if axis is None:
        return assembled
    rows = _rows(_along(assembled, axis), inputs, source)
    own = {first}
    for site in assembled.blocks:
        own |= {made for made, before in zip(site.streams_out, site.continues, strict=True) if before in own}
    known = Port(first, axis, key(rows), assembled.streams[0].depends, beside=beside_video(rows))
    ports = (replace(known, name=p.name) if p.name in own else p for p in assembled.streams)
    return replace(assembled, streams=tuple(ports))


def _along(assembled: Assembled, axis: int) -> Assembled:
    """With the tokens of the first stream along an axis."""
    return replace(assembled, streams=(replace(assembled.streams[0], token_axis=axis),))


def _padded_axis(assembled: Assembled, inputs: Sequence[Sequence[object]], source: str, rank: int) -> int | None:
    """The axis along which the latent reaches another number of rows at each call: its tokens are padded there."""
    for axis in range(1, rank):
        embeddings = [embedding_of(_along(assembled, axis), leaves, source) for leaves in inputs]
        (start, stop), (other_start, other_stop) = (latent_range(e) for e in embeddings)
        if stop - start != other_stop - other_start:
            return axis
    return None


def _rows(assembled: Assembled, inputs: Sequence[Sequence[object]], source: str) -> RowSpans:
    """Rows of the first stream: the tokens that the latent reaches, and others in front or behind."""
    embeddings = [embedding_of(assembled, leaves, source) for leaves in inputs]
    one, two = (latent_range(e) for e in embeddings)
    counts = [len(e.run(e.latent)) for e in embeddings]
    behind = counts[0] - one[1], counts[1] - two[1]
    tokens = video((one[1] - one[0], two[1] - two[0]))
    return joined([other((one[0], two[0])), (tokens,), other(behind)])
