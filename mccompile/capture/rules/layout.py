"""Operators that move axes. The token axis may move, but it may not be split or merged with another axis."""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.facts import TupleFact
from mccompile.capture.moves import LAYOUTS, Unmapped, axis_map
from mccompile.capture.rows import Labels, RowSpans, has_video
from mccompile.capture.scope import LabelRule, Scope

aten = torch.ops.aten


def layout(scope: Scope, node: fx.Node) -> Labels | list[Labels]:
    """Any operator of LAYOUTS: a token axis may only move, and absorb or shed axes of size 1."""
    value = scope.tensor(node)
    try:
        groups = axis_map(node, scope.facts)
    except Unmapped:
        raise scope.refusal(node, "its dim is no constant") from None
    if groups is None:
        raise scope.refusal(node, "a tensor of one rank was expected")
    fact = scope.facts[node]
    pieces = scope.pieces(node) if isinstance(fact, TupleFact) else [scope.shape(node)]
    old, new, labels = scope.shape(value), pieces[0], scope.of(value)
    out: list[RowSpans | None] = [None] * len(new)
    for group in groups:
        for axis in (a for a in group.old if labels[a] is not None):
            alone = all(old[a] == (1, 1) for a in group.old if a != axis)
            kept = [a for a in group.new if new[a] != (1, 1)]
            if alone and len(kept) == 1 and new[kept[0]] == old[axis]:
                out[kept[0]] = labels[axis]
            elif has_video(labels[axis]):
                raise scope.refusal(node, LAYOUTS[node.target].refuses)
    return [tuple(out)] * len(pieces) if isinstance(fact, TupleFact) else tuple(out)


def stack(scope: Scope, node: fx.Node) -> Labels:
    operands = node.args[0]
    assert isinstance(operands, list | tuple)
    labels = list(scope.meet(node, [o for o in operands if isinstance(o, fx.Node)]))
    labels.insert(scope.axis(node, 1, len(labels) + 1), None)
    return tuple(labels)


RULES: dict[object, LabelRule] = {aten.stack.default: stack}
