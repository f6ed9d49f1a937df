"""Sizes that a graph writes out at token axes, rewritten to the number of rows present.

before: view(x, [1, 1280, 8, 64]); slice(y, 1, 11, 1291); split_with_sizes(z, [1280, 11], 1)
after:  view(x, [1, n, 8, 64]);    slice(y, 1, 11, 11 + n); split_with_sizes(z, [n, 11], 1)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from mccompile.capture.facts import Extent
from mccompile.capture.rows import Rows, between, has_video
from mccompile.capture.rules import segment
from mccompile.capture.scope import Scope

aten = torch.ops.aten

_SIZED = frozenset((aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default))
_SPLITS = frozenset(segment.SPLITS)


def resized(
    scope: Scope, node: fx.Node, count: Callable[[Rows], fx.Node | int]
) -> tuple[object, tuple[object, ...]] | None:
    """(target, arguments after the first) with sizes rewritten; None where the node names no size of a token axis.

    count: emits the number of rows present.
    """
    if node.target in _SIZED:
        return _sized(scope, node, count)
    if node.target is aten.unflatten.int:
        return _unflatten(scope, node, count)
    if node.target is aten.slice.Tensor:
        return _slice(scope, node, count)
    if node.target in _SPLITS:
        return _split(scope, node, count)
    return None


def _with_counts(
    sizes: object, labels: tuple[Rows | None, ...], count: Callable[[Rows], fx.Node | int]
) -> list[object]:
    assert isinstance(sizes, list | tuple)
    return [count(r) if r is not None and has_video(r) else s for s, r in zip(sizes, labels, strict=True)]


def _sized(
    scope: Scope, node: fx.Node, count: Callable[[Rows], fx.Node | int]
) -> tuple[object, tuple[object, ...]] | None:
    return node.target, (_with_counts(node.args[1], scope.of(node), count), *node.args[2:])


def _unflatten(
    scope: Scope, node: fx.Node, count: Callable[[Rows], fx.Node | int]
) -> tuple[object, tuple[object, ...]] | None:
    sizes = node.args[2]
    assert isinstance(sizes, list | tuple)
    axis = scope.axis(node, 1, len(scope.shape(scope.tensor(node))))
    labels = scope.of(node)[axis : axis + len(sizes)]
    return node.target, (axis, _with_counts(sizes, labels, count))


def _slice(
    scope: Scope, node: fx.Node, count: Callable[[Rows], fx.Node | int]
) -> tuple[object, tuple[object, ...]] | None:
    axis, start, stop = segment.bounds(scope, node)
    rows = scope.of(scope.tensor(node))[axis]
    if rows is None:
        return None
    before, upto = _rows(scope, node, rows, (0, 0), start), _rows(scope, node, rows, (0, 0), stop)
    return node.target, (axis, count(before), count(upto))


def _split(
    scope: Scope, node: fx.Node, count: Callable[[Rows], fx.Node | int]
) -> tuple[object, tuple[object, ...]] | None:
    labels = scope.of(scope.tensor(node))
    axis = scope.axis(node, 2, len(labels))
    rows = labels[axis]
    if rows is None:
        return None
    sizes: list[fx.Node | int] = []
    at: Extent = (0, 0)
    for piece in scope.pieces(node):
        end = at[0] + piece[axis][0], at[1] + piece[axis][1]
        sizes.append(count(_rows(scope, node, rows, at, end)))
        at = end
    return aten.split_with_sizes.default, (sizes, axis)


def _rows(scope: Scope, node: fx.Node, rows: Rows, start: Extent, stop: Extent) -> Rows:
    found = between(rows, start, stop)
    if found is None:
        raise scope.refusal(node, "cuts inside the video tokens")
    return found
