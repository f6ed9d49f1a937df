"""Cuts out the modulated input: what enters the query projection of the first self-attention (TeaCache's indicator).

before: block 0: x -> norm, scale, shift -> %m -> linear -> ... -> sdpa
after:  the same block, and beside it a part that gives %m
refuses when: the queries of the first block's attention come from no linear layer that the video stream enters
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.part import Modulated, Part, Stream
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Rewritten, inputs_of
from mccompile.lowering.strip import cut

aten = torch.ops.aten


def modulated_input(part: Part, video: Stream) -> Rewritten | Refusal:
    """Cuts the first block on all rows at its modulated input. video: the block's stream of video tokens."""
    stream = part.holders()[video]
    attention = next((n for n in part.graph.nodes if n.target is aten.scaled_dot_product_attention.default), None)
    todo = [attention.args[0]] if attention is not None else []
    seen = set(todo)
    while todo:  # breadth first: the nearest linear layer whose input is made from the video stream
        node = todo.pop(0)
        assert isinstance(node, fx.Node)
        if node.target is aten.linear.default:
            enters = node.args[0]
            assert isinstance(enters, fx.Node)
            if stream in inputs_of(enters):
                return Rewritten(part, (cut(part, {Modulated(): enters}),))
            continue
        todo += [n for n in node.all_input_nodes if n not in seen]
        seen.update(node.all_input_nodes)
    return Refusal("modulated_input", "the queries of its first block come from no linear layer")
