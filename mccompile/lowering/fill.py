"""Gives tokens that are not computed the keys and values of the computed token that is nearest to them.

before: rows: %b = index_copy_(%buffer, axis, %rows, %k)
after:  rows: takes filled and taken too; %b = index_copy_(%buffer, axis, %filled, gather(%k, axis, %taken))
refuses when: the block keeps no keys and values, or keeps them of other rows than the video's tokens

So attention sees each computed token as often as there are tokens that take its results: it counts as many times as it
stands for, which is the proportional attention of ToMe (arXiv 2210.09461). No key is older than the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from mccompile.capture.part import Buffer, Filled, Part, Positions, TakenFrom
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Draft, Rewritten

aten = torch.ops.aten


def fill_rows(part: Part, dims: Mapping[str, int]) -> Rewritten | Refusal:
    """Lets a row form write keys and values of all tokens that have results. dims: how many axes each buffer has."""
    draft = Draft(part)
    buffers = {n: o.name for o, n in draft.takes.items() if isinstance(o, Buffer)}
    writes = [n for n in draft.graph.nodes if n.target is aten.index_copy_.default and n.args[0] in buffers]
    if not writes or {n.args[2] for n in writes} != {draft.takes.get(Positions("video"))}:
        return Refusal("keys and values", "the block keeps none of the video's tokens alone")
    filled, taken = draft.take(Filled(), "filled"), draft.take(TakenFrom(), "taken")
    for node in writes:
        buffer, axis, _, made = node.args
        with draft.graph.inserting_before(node):
            chosen = _chosen(draft.graph, made, taken, axis, dims[buffers[buffer]])
        node.args = (buffer, axis, filled, chosen)
    return Rewritten(draft.part())


def _chosen(graph: fx.Graph, made: fx.Node, taken: fx.Node, axis: int, dims: int) -> fx.Node:
    """The rows of `made` that are taken along an axis, sample by sample."""
    index = taken
    for at in [d for d in range(1, dims) if d != axis]:
        index = graph.call_function(aten.unsqueeze.default, (index, at))
    sizes = [-1 if d in (0, axis) else graph.call_function(aten.sym_size.int, (made, d)) for d in range(dims)]
    wide = graph.call_function(aten.expand.default, (index, sizes))
    return graph.call_function(aten.gather.default, (made, axis, wide))
