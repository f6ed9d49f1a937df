"""The modulated input: what enters the first self-attention's query projection (TeaCache's indicator).

before: block 0: x -> norm, scale, shift -> %m -> linear -> ... -> sdpa;  after: (streams, shared, weights) -> (%m,)
refuses when: the queries of the first block's attention come from no linear layer
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.lowering.strip import Slim, cut, inputs_of

aten = torch.ops.aten


def modulated_input(plain: Slim, video: int) -> Slim | None:
    """Block 0 cut at its modulated input, or None where there is no such value.

    plain: the block, (*streams, *shared, *weights). video: the place of the stream of video tokens.
    """
    graph = plain.module.graph
    holders = dict(zip(graph.find_nodes(op="placeholder"), plain.kept, strict=True))
    attention = next((n for n in graph.nodes if n.target is aten.scaled_dot_product_attention.default), None)
    todo = [attention.args[0]] if attention is not None else []
    seen = set(todo)
    while todo:  # breadth first: the nearest linear layer whose input is made from the video stream
        node = todo.pop(0)
        if not isinstance(node, fx.Node):
            continue
        if node.target is aten.linear.default and isinstance(node.args[0], fx.Node):
            if video in {holders[h] for h in inputs_of(node.args[0])}:
                return cut(plain, (node.args[0],))
            continue
        todo += [n for n in node.all_input_nodes if n not in seen]
        seen.update(node.all_input_nodes)
    return None

