"""Joins rotary embeddings that are written half by half into one expression, which Inductor turns into vector code.

before: %e = empty_like(%x); copy_(%e[..., 0::2], %even); copy_(%e[..., 1::2], %odd)
after:  %e = flatten(stack([%even, %odd], -1), -2) in the dtype of %x
refuses when: nothing is written half by half, the halves are not exactly the even and the odd entries of one axis,
              or %e is read before both are there
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.part import Part
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Draft, Rewritten

aten = torch.ops.aten
_END = 2**62  # slices that run to the end are written with any number from here on


def interleave(part: Part, setting: None) -> Rewritten | Refusal:
    """Returns the part with every pair of halves joined in one expression."""
    draft = Draft(part)
    graph, joined = draft.graph, False
    order = {n: i for i, n in enumerate(graph.nodes)}
    for node in [n for n in graph.nodes if n.target is aten.empty_like.default]:
        writes = [(half, copy) for half in node.users for copy in half.users if copy.target is aten.copy_.default]
        halves = {half.args[2]: (half, copy) for half, copy in writes if _is_half(half, copy)}
        if len(writes) != 2 or set(halves) != {0, 1}:
            continue
        (even, first), (odd, second) = halves[0], halves[1]
        readers = [n for n in node.users if n not in (even, odd)]
        axis = even.args[1]
        if odd.args[1] != axis or first.users or second.users:
            continue
        last = max(first, second, key=order.__getitem__)
        if any(order[n] <= order[last] for n in readers):
            continue
        with graph.inserting_after(last):
            pairs = graph.call_function(aten.stack.default, ([first.args[1], second.args[1]], axis + 1))
        with graph.inserting_after(pairs):
            whole = graph.call_function(aten.flatten.using_ints, (pairs, axis, axis + 1))
        with graph.inserting_after(whole):
            typed = graph.call_function(aten.type_as.default, (whole, node.args[0]))
        for reader in readers:
            reader.replace_input_with(node, typed)
        draft.gives = {r: typed if v is node else v for r, v in draft.gives.items()}
        for dead in (first, second, even, odd, node):
            graph.erase_node(dead)
        joined = True
    return Rewritten(draft.part()) if joined else Refusal("writes", "no value is written in two halves of one axis")


def _is_half(part: fx.Node, copy: fx.Node) -> bool:
    """Whether every other entry of an axis, and nothing else of it, is what a copy writes to."""
    if part.target is not aten.slice.Tensor or len(part.args) != 5:
        return False
    axis, _, end, step = part.args[1:]
    to_the_end = isinstance(end, int) and end >= _END and step == 2
    return to_the_end and isinstance(axis, int) and axis >= 0 and len(part.users) == 1 and copy.args[0] is part
