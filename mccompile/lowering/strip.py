"""Placeholders that nothing reads are not computed for.

before: (a, b, c) -> a + c;  after: (a, c) -> a + c, kept (0, 2)
refuses when: never
"""

from __future__ import annotations

import copy

from torch import fx


def strip_unused(module: fx.GraphModule) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """`module` without its unused placeholders, and the places of those that remain."""
    slim = fx.GraphModule(module, copy.deepcopy(module.graph))
    holders = [n for n in slim.graph.nodes if n.op == "placeholder"]
    kept = tuple(i for i, n in enumerate(holders) if n.users)
    for node in holders:
        if not node.users:
            slim.graph.erase_node(node)
    slim.recompile()
    return slim, kept
