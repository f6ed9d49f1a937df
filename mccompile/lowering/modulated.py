"""The modulated input: what enters the first self-attention's query projection (TeaCache's indicator).

before: block 0: x -> norm, scale, shift -> %m -> linear -> ... -> sdpa;  after: (streams, shared, weights) -> (%m,)
refuses when: the queries of the first block's attention come from no linear layer
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.lowering.strip import Slim, strip_unused

aten = torch.ops.aten


def modulated_input(plain: fx.GraphModule) -> Slim | None:
    """The graph of block 0 cut at its modulated input, or None where there is no such value."""
    attention = next(
        (n for n in plain.graph.nodes if n.target is aten.scaled_dot_product_attention.default), None
    )
    node = attention.args[0] if attention is not None else None
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target is aten.linear.default:
            return _cut(plain, node.args[0])
        node = next((a for a in node.args if isinstance(a, fx.Node)), None)
        if isinstance(node, fx.Node) and node.op == "placeholder":
            return None
    return None


def _cut(plain: fx.GraphModule, at: object) -> Slim | None:
    if not isinstance(at, fx.Node):
        return None
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in plain.graph.nodes:
        if node.op == "output":
            break
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output((copies[at],))
    return strip_unused(fx.GraphModule(plain, graph))
