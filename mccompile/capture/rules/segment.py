"""Operators that join and cut along an axis: text in front of or behind the video tokens, padding."""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.facts import Extent
from mccompile.capture.rows import Labels, RowSpans, between, has_cut, has_video, joined, other
from mccompile.capture.scope import LabelRule, Scope

aten = torch.ops.aten
_FAR = 2**62  # slice ends are written as the largest int64


def bounds(scope: Scope, node: fx.Node) -> tuple[int, Extent, Extent]:
    """(axis, start, stop) of a slice, clamped to the operand's size at both probes."""
    value = scope.tensor(node)
    shape = scope.shape(value)
    axis = scope.axis(node, 1, len(shape))
    size = shape[axis]
    given = [node.args[i] if len(node.args) > i else None for i in (2, 3)]
    start = scope.extent(given[0] if given[0] is not None else 0, node)
    stop = scope.extent(given[1] if given[1] is not None else _FAR, node)

    def clamp(x: Extent) -> Extent:
        one, two = (max(0, min(v + s if v < 0 else v, s)) for v, s in zip(x, size, strict=True))
        return one, two

    return axis, clamp(start), clamp(stop)


def part(rows: RowSpans, start: Extent, stop: Extent) -> RowSpans | None:
    """Rows of a cut; None where no video token is left."""
    found = between(rows, start, stop)
    return found if has_video(found) else None


def slice_(scope: Scope, node: fx.Node) -> Labels:
    axis, start, stop = bounds(scope, node)
    labels = list(scope.of(scope.tensor(node)))
    rows = labels[axis]
    if rows is not None:
        if len(node.args) > 4 and node.args[4] != 1:
            raise scope.refusal(node, "takes every n-th token")
        labels[axis] = part(rows, start, stop)
    return tuple(labels)


def cat(scope: Scope, node: fx.Node) -> Labels:
    operands = node.args[0]
    assert isinstance(operands, list | tuple)
    tensors = [o for o in operands if isinstance(o, fx.Node)]
    axis = scope.axis(node, 1, len(scope.shape(tensors[0])))
    along = [scope.of(o)[axis] for o in tensors]
    labels: list[RowSpans | None] = []
    for i in range(len(scope.shape(tensors[0]))):
        across = [scope.of(o)[i] for o in tensors]
        rows = next((r for r in across if r is not None), None)
        for operand, own in zip(tensors, across, strict=True):
            if i != axis and rows is not None and own is None:
                raise scope.demanded(node, operand, i, rows)
            if i != axis and own != rows:
                raise scope.refusal(node, "token axes of different rows meet")
        labels.append(rows)
    spans = [r if r is not None else other(scope.shape(o)[axis]) for o, r in zip(tensors, along, strict=True)]
    labels[axis] = joined(spans) if any(has_video(r) for r in along) else None
    scope.chooses |= sum(has_cut(r) for r in along) > 1
    videos = [s for s in labels[axis] or () if s.video]
    if len(videos) > 1 and any(s.cut for s in videos):  # whole ones are the tokens of two streams
        raise scope.refusal(node, "joins parts of the video tokens in another order")
    return tuple(labels)


def split(scope: Scope, node: fx.Node) -> list[Labels]:
    """split, split_with_sizes, chunk: the pieces' sizes are those measured."""
    value = scope.tensor(node)
    labels = scope.of(value)
    axis = scope.axis(node, 2, len(labels))
    out: list[Labels] = []
    at: Extent = (0, 0)
    for piece in scope.pieces(node):
        end = at[0] + piece[axis][0], at[1] + piece[axis][1]
        own = list(labels)
        rows = labels[axis]
        own[axis] = None if rows is None else part(rows, at, end)
        out.append(tuple(own))
        at = end
    return out


def pad(scope: Scope, node: fx.Node) -> Labels:
    """Constant padding, given from the last axis on as (before, after) pairs."""
    value = scope.tensor(node)
    labels = list(scope.of(value))
    pads = node.args[1]
    assert isinstance(pads, list | tuple)
    for k in range(len(pads) // 2):
        axis = len(labels) - 1 - k
        before, after = (scope.extent(pads[2 * k + i], node) for i in (0, 1))
        rows = labels[axis]
        if rows is not None and (before, after) != ((0, 0), (0, 0)):
            if len(node.args) > 2 and node.args[2] != "constant":
                raise scope.refusal(node, "pads with neighbouring tokens")
            if min(*before, *after) < 0:
                raise scope.refusal(node, "pads by a negative count")
            labels[axis] = joined([other(before), rows, other(after)])
    return tuple(labels)


SPLITS = (aten.split_with_sizes.default, aten.split.Tensor, aten.split.sizes, aten.chunk.default)
CATS = (aten.cat.default, aten.concat.default, aten.concatenate.default)
RULES: dict[object, LabelRule] = {
    aten.slice.Tensor: slice_,
    **dict.fromkeys(CATS, cat),
    **dict.fromkeys(SPLITS, split),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), pad),
}
