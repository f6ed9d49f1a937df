"""The modulated input: what enters the first self-attention's query projection (TeaCache's indicator).

before: block 0: x -> norm, scale, shift -> %m -> linear -> ... -> sdpa;  after: (streams, shared, weights) -> (%m,)
refuses when: the queries of the first block's attention come from no linear layer
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.lowering.strip import Slim, strip_unused

aten = torch.ops.aten


def modulated_input(plain: Slim, video: int) -> Slim | None:
    """Block 0 cut at its modulated input, or None where there is no such value.

    plain: the block, (*streams, *shared, *weights). video: the place of the stream of video tokens.
    """
    graph = plain.module.graph
    holders = dict(zip((n for n in graph.nodes if n.op == "placeholder"), plain.kept, strict=True))
    attention = next((n for n in graph.nodes if n.target is aten.scaled_dot_product_attention.default), None)
    todo = [attention.args[0]] if attention is not None else []
    seen = set(todo)
    while todo:  # breadth first: the nearest linear layer whose input is made from the video stream
        node = todo.pop(0)
        if not isinstance(node, fx.Node):
            continue
        if node.target is aten.linear.default and isinstance(node.args[0], fx.Node):
            if video in {holders[h] for h in _holders(node.args[0])}:
                return _cut(plain, node.args[0])
            continue
        todo += [n for n in node.all_input_nodes if n not in seen]
        seen.update(node.all_input_nodes)
    return None


def _holders(node: fx.Node) -> set[fx.Node]:
    """The placeholders that a value is made from."""
    found, todo = set(), [node]
    while todo:
        at = todo.pop()
        if at not in found:
            found.add(at)
            todo += at.all_input_nodes
    return {n for n in found if n.op == "placeholder"}


def _cut(plain: Slim, at: fx.Node) -> Slim:
    """`plain` with `at` as its only output; `kept` counts places of the uncut block."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in plain.module.graph.nodes:
        if node.op == "output":
            break
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output((copies[at],))
    slim = strip_unused(fx.GraphModule(plain.module, graph))
    return Slim(slim.module, tuple(plain.kept[i] for i in slim.kept))
