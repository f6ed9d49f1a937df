"""Attention over prefixes on the CPU, for compiled graphs: torch's or the project's kernel, whichever is faster here.

before: mccompile::prefix_attention(q, k, v, bounds, seen);  after: mccompile::prefix_attention_native(q, k, v, bounds)
before: mccompile::window_attention(q, k, v, ranges, spans);  after: mccompile::window_attention_native(q, k, v, ranges)
before: mccompile::picked_attention(q, k, v, chosen, readers);  after: ...::picked_attention_native of the same
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
from mccompile.lowering.key_picks import read_by

LIBRARY.define("prefix_attention_native(Tensor q, Tensor k, Tensor v, Tensor bounds, float? scale=None) -> Tensor")
LIBRARY.define("window_attention_native(Tensor q, Tensor k, Tensor v, Tensor ranges, float? scale=None) -> Tensor")
LIBRARY.define(
    "picked_attention_native(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor readers, float? scale=None) -> Tensor"
)


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
    out = empty_result(q, v)
    for first, end, *seen in ranges.tolist():
        _attend_group(q[:, :, first:end], picked(k, seen), picked(v, seen), scale, out[:, :, first:end])
    return out


def _attend_picked_as_measured(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, readers: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `key_picks.attend_picked`, to float rounding."""
    out = empty_result(q, v)
    for first, end, *seen in readers.tolist():
        keys, values = read_by(k, chosen, seen), read_by(v, chosen, seen)
        _attend_group(q[:, :, first:end], keys, values, scale, out[:, :, first:end])
    return out


def _attend_group(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, out: torch.Tensor
) -> None:
    """Writes the rows of a group, which attends to all of these keys, to `out`."""
    group = [(0, q.size(2), k.size(2))]
    table = table_for(q.size(3), torch.get_num_threads()) if covers(q, k, v) else None
    if table is not None and table.own_is_faster(q.size(2), k.size(2)):
        attend_natively(q, k, v, torch.tensor(group), scale, out)
    else:
        attend_groups(q, k, v, group, scale, out)


LIBRARY.impl("window_attention_native", _attend_windows_as_measured, "CPU")
torch.library.register_fake("mccompile::window_attention_native", lambda q, k, v, *_: empty_result(q, v), lib=LIBRARY)
LIBRARY.impl("picked_attention_native", _attend_picked_as_measured, "CPU")
torch.library.register_fake("mccompile::picked_attention_native", lambda q, k, v, *_: empty_result(q, v), lib=LIBRARY)

_NATIVE = {
    torch.ops.mccompile.prefix_attention.default: torch.ops.mccompile.prefix_attention_native.default,
    torch.ops.mccompile.window_attention.default: torch.ops.mccompile.window_attention_native.default,
    torch.ops.mccompile.picked_attention.default: torch.ops.mccompile.picked_attention_native.default,
}


def use_native(graph: fx.Graph, device: torch.device) -> None:
    """Rewrites `graph`, in place. device: of all its tensors."""
    nodes = [n for n in graph.nodes if n.target in _NATIVE]
    if nodes and device.type == "cpu" and kernel() is not None:
        for node in nodes:
            native = _NATIVE[node.target]
            names = [argument.name for argument in node.target._schema.arguments][: len(node.args)]
            given = dict(zip(names, node.args, strict=True))
            node.args = tuple(given[a.name] for a in native._schema.arguments if a.name in given)
            node.target = native
