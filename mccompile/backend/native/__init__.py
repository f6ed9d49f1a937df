"""Attention over prefixes on the CPU, for compiled graphs: torch's or the project's kernel, whichever is faster here.

before: mccompile::prefix_attention(q, k, v, bounds, seen);  after: mccompile::prefix_attention_native(q, k, v, bounds)
before: mccompile::window_attention(q, k, v, ranges, spans);  after: mccompile::window_attention_native(q, k, v, ranges)
refuses when: the graph is not on the CPU, or there is no kernel for this machine (kernel.py)

Each group of rows goes to the one that was faster for its class of shapes (choice.py). What the kernel does not cover
(other dtypes than float32, heads whose width is no multiple of 16 or above 256) is torch's.
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.backend.native.choice import table_for
from mccompile.backend.native.kernel import attend_natively, covers, kernel
from mccompile.lowering.attention import LIBRARY, attend, attend_groups, empty_result, picked

LIBRARY.define("prefix_attention_native(Tensor q, Tensor k, Tensor v, Tensor bounds, float? scale=None) -> Tensor")
LIBRARY.define("window_attention_native(Tensor q, Tensor k, Tensor v, Tensor ranges, float? scale=None) -> Tensor")


def _attend_as_measured(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """As `attention.attend`, to float rounding."""
    table = table_for(q.size(3), torch.get_num_threads()) if covers(q, k, v) else None
    groups = bounds.tolist()
    ours = [g for g in groups if table is not None and table.own_is_faster(g[1] - g[0], g[2])]
    if not ours:
        return attend(q, k, v, bounds, scale)
    out = empty_result(q, v)
    if len(ours) < len(groups):
        attend_groups(q, k, v, [g for g in groups if g not in ours], scale, out)
        bounds = torch.tensor(ours)
    attend_natively(q, k, v, bounds, scale, out)
    return out


LIBRARY.impl("prefix_attention_native", _attend_as_measured, "CPU")
torch.library.register_fake("mccompile::prefix_attention_native", lambda q, k, v, *_: empty_result(q, v), lib=LIBRARY)


def _attend_windows_as_measured(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranges: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """As `attention.attend_windows`, to float rounding."""
    table = table_for(q.size(3), torch.get_num_threads()) if covers(q, k, v) else None
    out = empty_result(q, v)
    for first, end, *seen in ranges.tolist():
        rows, into, keys, values = q[:, :, first:end], out[:, :, first:end], picked(k, seen), picked(v, seen)
        group = [(0, end - first, keys.size(2))]
        if table is not None and table.own_is_faster(end - first, keys.size(2)):
            attend_natively(rows, keys, values, torch.tensor(group), scale, into)
        else:
            attend_groups(rows, keys, values, group, scale, into)
    return out


LIBRARY.impl("window_attention_native", _attend_windows_as_measured, "CPU")
torch.library.register_fake("mccompile::window_attention_native", lambda q, k, v, *_: empty_result(q, v), lib=LIBRARY)

_NATIVE = {
    torch.ops.mccompile.prefix_attention.default: torch.ops.mccompile.prefix_attention_native.default,
    torch.ops.mccompile.window_attention.default: torch.ops.mccompile.window_attention_native.default,
}


def use_native(graph: fx.Graph, device: torch.device) -> None:
    """Rewrites `graph`, in place. device: of all its tensors."""
    nodes = [n for n in graph.nodes if n.target in _NATIVE]
    if nodes and device.type == "cpu" and kernel() is not None:
        for node in nodes:
            q, k, v, bounds, _, *scale = node.args
            node.target = _NATIVE[node.target]
            node.args = (q, k, v, bounds, *scale)
