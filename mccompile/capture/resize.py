"""Rewrites the sizes and cuts that a graph contains at token axes, so that they fit the rows that are present.

before: view(x, [1, 1280, 8, 64]); slice(y, 1, 11, 1291); cat([a, b], 1)            (a, b: video[0:64], video[64:])
after:  view(x, [1, n, 8, 64]);    slice(y, 1, 11, 11 + n); where(index < 64, a, b)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from mccompile.capture.facts import Extent
from mccompile.capture.moves import sizes_listed
from mccompile.capture.rows import RowSpan, RowSpans, between, has_cut, has_video, other, plus, total
from mccompile.capture.rules import segment
from mccompile.capture.scope import Scope

aten = torch.ops.aten
CountRows: TypeAlias = Callable[[RowSpans], fx.Node | int]

SPLITS, CATS = frozenset(segment.SPLITS), frozenset(segment.CATS)


def resized(scope: Scope, node: fx.Node, count: CountRows) -> tuple[object, ...] | None:
    """The arguments after the first with sizes rewritten; None where the node names no size of a token axis.

    count: emits the number of rows present.
    """
    listed = sizes_listed(node, scope.facts)
    if listed is not None and not listed.factors:
        sizes = node.args[listed.place]
        assert isinstance(sizes, list | tuple)
        rows = _with_counts(sizes, scope.of(node)[listed.first : listed.first + len(sizes)], count)
        return (*node.args[1 : listed.place], rows, *node.args[listed.place + 1 :])
    if node.target is aten.slice.Tensor:
        axis, start, stop = segment.bounds(scope, node)
        tokens = scope.of(scope.tensor(node))[axis]
        return None if tokens is None else (axis, *_present(tokens, start, stop, count))
    return None


def _with_counts(sizes: object, labels: tuple[RowSpans | None, ...], count: CountRows) -> list[object]:
    assert isinstance(sizes, list | tuple)
    return [count(r) if r is not None and has_video(r) else s for s, r in zip(sizes, labels, strict=True)]


def _present(rows: RowSpans, start: Extent, stop: Extent, count: CountRows) -> tuple[fx.Node | int, fx.Node | int]:
    """Where rows `start` to `stop` lie among the rows present; a cut inside the video tokens keeps them all."""
    before = between(rows, (0, 0), start)
    if before and before[-1].video and before[-1] not in rows:
        before = before[:-1]
    return count(before), count(between(rows, (0, 0), stop))


@dataclass(frozen=True, slots=True)
class Cutting:
    """Emits the operators on segments whose partial form is another one. `index`: the selected tokens."""

    scope: Scope
    graph: fx.Graph
    count: CountRows
    size: Callable[[Extent], fx.Node | int]
    index: fx.Node | None

    def split(self, node: fx.Node, value: fx.Node) -> list[fx.Node]:
        """The pieces of a split, each as a slice of the rows present."""
        labels = self.scope.of(self.scope.tensor(node))
        axis = self.scope.axis(node, 2, len(labels))
        rows = labels[axis]
        assert rows is not None
        pieces, at = [], (0, 0)
        for shape in self.scope.pieces(node):
            end = plus(at, shape[axis])
            pieces.append(self._slice(value, axis, rows, at, end))
            at = end
        return pieces

    def along_tokens(self, node: fx.Node) -> bool:
        """Whether a split goes along the token axis."""
        labels = self.scope.of(self.scope.tensor(node))
        return has_video(labels[self.scope.axis(node, 2, len(labels))])

    def _slice(self, value: fx.Node, axis: int, rows: RowSpans, start: Extent, stop: Extent) -> fx.Node:
        if (start, stop) == ((0, 0), total(rows)):
            return value
        bounds = _present(rows, start, stop, self.count)
        return self.graph.call_function(aten.slice.Tensor, (value, axis, *bounds))

    def joins_parts(self, node: fx.Node) -> bool:
        """Whether a cat puts parts of the video tokens together."""
        operands, axis = self._operands(node)
        return sum(has_cut(self.scope.of(o)[axis]) for o in operands) > 1

    def _operands(self, node: fx.Node) -> tuple[list[fx.Node], int]:
        assert isinstance(node.args[0], list | tuple)
        operands = [o for o in node.args[0] if isinstance(o, fx.Node)]
        return operands, self.scope.axis(node, 1, len(self.scope.shape(node)))

    def cat(self, node: fx.Node, values: Sequence[fx.Node]) -> fx.Node:
        """A cat whose video parts are chosen row by row."""
        operands, axis = self._operands(node)
        merged: list[tuple[RowSpan, fx.Node]] = []
        for operand, value in zip(operands, values, strict=True):
            rows = self.scope.of(operand)[axis] or other(self.scope.shape(operand)[axis])
            at: Extent = (0, 0)
            for span in rows:
                piece = self._slice(value, axis, rows, at, plus(at, span.size))
                at = plus(at, span.size)
                if merged and span.cut and merged[-1][0].video:
                    piece = self._choose(node, axis, span, merged.pop()[1], piece)
                merged.append((span, piece))
        if len(merged) == 1:
            return merged[0][1]
        return self.graph.call_function(aten.cat.default, ([piece for _, piece in merged], axis))

    def _choose(self, node: fx.Node, axis: int, span: RowSpan, first: fx.Node, second: fx.Node) -> fx.Node:
        """Rows of tokens below `span.start` from `first`, the others from `second`."""
        assert self.index is not None
        shape = [-1 if i == axis else 1 for i in range(len(self.scope.shape(node)))]
        target = aten.lt.Scalar
        below = self.graph.call_function(target, (self.index, self.size(span.start)))
        below = self.graph.call_function(aten.view.default, (below, shape))
        return self.graph.call_function(aten.where.self, (below, first, second))
