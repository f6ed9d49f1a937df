"""Attention over prefixes on a GPU, for all rows in one launch: the operator of the Triton kernel (kernel.py).

before: mccompile::prefix_attention(q, k, v, bounds, seen);  after: ...::prefix_attention_rows(q, k, v, seen, tile)
refuses when: the graph is not on a GPU, or torch's attention, group by group, was chosen there (choice.py)

The operator is transparent to compilers: in a package the kernel is launched without Python.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from mccompile.backend.rows.choice import choice_for
from mccompile.backend.rows.operator import dense, rows_operator
from mccompile.lowering.attention import LIBRARY, attend


def _attend_as_chosen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, seen: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """In a graph that runs as it is."""
    tile = choice_for(q.size(3), v.size(3), q.dtype, q.device).tile
    if tile is None:
        return attend(q, k, v, bounds, scale)
    return rows_operator()(*map(dense, (q, k, v)), seen, scale, *tile.sizes)


LIBRARY.impl("prefix_attention", _attend_as_chosen, "CUDA")


def use_rows_kernel(program: ExportedProgram) -> None:
    """Rewrites the graph of `program`, in place, where it attends on a GPU."""
    attending = program.graph.find_nodes(op="call_function", target=torch.ops.mccompile.prefix_attention.default)
    nodes = [node for node in attending if node.args[0].meta["val"].device.type == "cuda"]
    for node in nodes:
        q, k, v, _, seen, *scale = node.args
        of_q, of_v = q.meta["val"], v.meta["val"]
        tile = choice_for(int(of_q.size(3)), int(of_v.size(3)), of_q.dtype, of_q.device).tile
        if tile is not None:
            node.target = rows_operator()
            node.args = (q, k, v, seen, *(scale or (None,)), *tile.sizes)
    if nodes:
        program.graph_module.recompile()
