"""Attention over prefixes on a GPU, for all rows in one launch: the operator of the Triton kernel (kernel.py).

before: mccompile::prefix_attention(q, k, v, bounds, seen);  after: ...::prefix_attention_rows(q, k, v, seen, tile)
before: mccompile::window_attention(q, k, v, ranges, spans);  after: ...::window_attention_rows(q, k, v, spans, tile)
refuses when: the graph is not on a GPU, or torch's attention, group by group, was chosen there (choice.py)

The operator is transparent to compilers: in a package the kernel is launched without Python.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from mccompile.backend.rows.choice import Tile, choice_for, for_windows
from mccompile.backend.rows.operator import dense, rows_operator, windows_operator
from mccompile.lowering.attention import LIBRARY, attend, attend_windows


def _tile(q: torch.Tensor, v: torch.Tensor, windows: bool) -> Tile | None:
    """That of the Triton kernel; None where torch's attention was chosen."""
    tile = choice_for(int(q.size(3)), int(v.size(3)), q.dtype, q.device).tile
    return for_windows(tile, torch.cuda.get_device_capability(q.device)) if tile is not None and windows else tile


def _attend_as_chosen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, seen: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """In a graph that runs as it is."""
    tile = _tile(q, v, windows=False)
    if tile is None:
        return attend(q, k, v, bounds, scale)
    return rows_operator()(*map(dense, (q, k, v)), seen, scale, *tile.sizes)


def _attend_windows_as_chosen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranges: torch.Tensor, spans: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """In a graph that runs as it is. The tile is that of prefixes: it is measured on the keys of a whole video."""
    tile = _tile(q, v, windows=True)
    if tile is None:
        return attend_windows(q, k, v, ranges, scale)
    return windows_operator()(*map(dense, (q, k, v)), spans, scale, *tile.sizes)


LIBRARY.impl("prefix_attention", _attend_as_chosen, "CUDA")
LIBRARY.impl("window_attention", _attend_windows_as_chosen, "CUDA")
_OPERATORS = {
    torch.ops.mccompile.prefix_attention.default: rows_operator,
    torch.ops.mccompile.window_attention.default: windows_operator,
}


def use_rows_kernel(program: ExportedProgram) -> None:
    """Rewrites the graph of `program`, in place, where it attends on a GPU."""
    attending = [node for node in program.graph.nodes if node.target in _OPERATORS]
    nodes = [node for node in attending if node.args[0].meta["val"].device.type == "cuda"]
    for node in nodes:
        q, k, v, _, of_rows, *scale = node.args
        tile = _tile(q.meta["val"], v.meta["val"], node.target is torch.ops.mccompile.window_attention.default)
        if tile is not None:
            node.target = _OPERATORS[node.target]()
            node.args = (q, k, v, of_rows, *(scale or (None,)), *tile.sizes)
    if nodes:
        program.graph_module.recompile()
