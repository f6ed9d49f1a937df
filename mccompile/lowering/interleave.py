"""Rotary embeddings written half by half become one expression, which Inductor turns into vector code.

before: %e = empty_like(%x); copy_(%e[..., 0::2], %even); copy_(%e[..., 1::2], %odd)
after:  %e = flatten(stack([%even, %odd], -1), -2) in the dtype of %x
refuses when: the halves are not exactly the even and the odd entries of one axis, or %e is read before both are there
"""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten
_END = 2**62  # slices that run to the end are written with any number from here on


def interleave(graph: fx.Graph) -> None:
    """Rewrites `graph`, in place."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    for node in [n for n in graph.nodes if n.target is aten.empty_like.default]:
        writes = [(part, copy) for part in node.users for copy in part.users if copy.target is aten.copy_.default]
        halves = {part.args[2]: (part, copy) for part, copy in writes if _is_half(part, node, copy)}
        if len(writes) != 2 or set(halves) != {0, 1}:
            continue
        (even, first), (odd, second) = halves[0], halves[1]
        readers = [n for n in node.users if n not in (even, odd)]
        axis = even.args[1]
        if odd.args[1] != axis or first.users or second.users or not readers or not isinstance(axis, int):
            continue
        if min(order[n] for n in readers) < max(order[first], order[second]):
            continue
        last = first if order[first] > order[second] else second
        with graph.inserting_after(last):
            pairs = graph.call_function(aten.stack.default, ([first.args[1], second.args[1]], axis + 1))
        with graph.inserting_after(pairs):
            whole = graph.call_function(aten.flatten.using_ints, (pairs, axis, axis + 1))
        with graph.inserting_after(whole):
            typed = graph.call_function(aten.type_as.default, (whole, node.args[0]))
        for reader in readers:
            reader.replace_input_with(node, typed)
        for dead in (first, second, even, odd, node):
            graph.erase_node(dead)


def _is_half(part: fx.Node, whole: fx.Node, copy: fx.Node) -> bool:
    if part.target is not aten.slice.Tensor or len(part.args) != 5 or part.args[0] is not whole:
        return False
    axis, _, end, step = part.args[1:]
    to_the_end = isinstance(end, int) and end >= _END and step == 2
    return to_the_end and isinstance(axis, int) and axis >= 0 and len(part.users) == 1 and copy.args[0] is part
