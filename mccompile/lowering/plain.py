"""The block without its key and value buffers: for runs that never select rows.

before: %copy = copy_(%buffer, %k);  after: gone, and the buffer placeholders with it
refuses when: never
"""

from __future__ import annotations

import copy

import torch
from torch import fx

from mccompile.capture.types import BlockKind


def drop_buffers(kind: BlockKind, streams_and_shared: int) -> fx.GraphModule:
    """`kind.full` as (*streams, *shared, *weights) -> (*streams,)."""
    module = fx.GraphModule(kind.full, copy.deepcopy(kind.full.graph))
    holders = module.graph.find_nodes(op="placeholder")
    buffers = set(holders[streams_and_shared : streams_and_shared + len(kind.buffers)])
    for node in reversed(list(module.graph.nodes)):
        if node.op == "call_function" and node.target is torch.ops.aten.copy_.default and node.args[0] in buffers:
            module.graph.erase_node(node)
    for node in buffers:
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    return module
