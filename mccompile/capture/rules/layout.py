"""Operators that move axes; the token axis may travel, but not be split or merged with another."""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.facts import Extent
from mccompile.capture.rows import Labels, Rows, has_video
from mccompile.capture.scope import Rule, Scope

aten = torch.ops.aten


def permute(scope: Scope, node: fx.Node) -> Labels:
    labels = scope.of(scope.tensor(node))
    order = node.args[1]
    assert isinstance(order, list | tuple)
    return tuple(labels[int(i)] for i in order)


def transpose(scope: Scope, node: fx.Node) -> Labels:
    labels = list(scope.of(scope.tensor(node)))
    first, second = (scope.axis(node, i, len(labels)) for i in (1, 2))
    labels[first], labels[second] = labels[second], labels[first]
    return tuple(labels)


def movedim(scope: Scope, node: fx.Node) -> Labels:
    labels = list(scope.of(scope.tensor(node)))
    source, target = (scope.axis(node, i, len(labels)) for i in (1, 2))
    labels.insert(target, labels.pop(source))
    return tuple(labels)


def matrix_transpose(scope: Scope, node: fx.Node) -> Labels:
    *front, rows, columns = scope.of(scope.tensor(node))
    return (*front, columns, rows)


def unsqueeze(scope: Scope, node: fx.Node) -> Labels:
    labels = list(scope.of(scope.tensor(node)))
    labels.insert(scope.axis(node, 1, len(labels) + 1), None)
    return tuple(labels)


def squeeze(scope: Scope, node: fx.Node) -> Labels:
    value = scope.tensor(node)
    shape, labels = scope.shape(value), scope.of(value)
    axes = {scope.axis(node, 1, len(shape))} if len(node.args) > 1 else set(range(len(shape)))
    gone = {a for a in axes if shape[a] == (1, 1)}
    return tuple(rows for i, rows in enumerate(labels) if i not in gone)


def select(scope: Scope, node: fx.Node) -> Labels:
    labels = scope.of(scope.tensor(node))
    axis = scope.axis(node, 1, len(labels))
    if has_video(labels[axis]):
        raise scope.refusal(node, "picks one token")
    return labels[:axis] + labels[axis + 1 :]


def unbind(scope: Scope, node: fx.Node) -> list[Labels]:
    value = scope.tensor(node)
    labels = scope.of(value)
    axis = scope.axis(node, 1, len(labels))
    if has_video(labels[axis]):
        raise scope.refusal(node, "takes the tokens apart")
    return [labels[:axis] + labels[axis + 1 :]] * scope.shape(value)[axis][0]


def pick(scope: Scope, node: fx.Node) -> Labels:
    """narrow, index_select: keeps some rows of an axis that is not the token axis."""
    labels = scope.of(scope.tensor(node))
    if has_video(labels[scope.axis(node, 1, len(labels))]):
        raise scope.refusal(node, "picks some of the tokens")
    return labels


def expand(scope: Scope, node: fx.Node) -> Labels:
    """expand and repeat: new axes in front; a token axis must keep its length."""
    value = scope.tensor(node)
    old, new = scope.shape(value), scope.shape(node)
    shift = len(new) - len(old)
    for axis, rows in enumerate(scope.of(value)):
        if has_video(rows) and old[axis] != new[axis + shift]:
            raise scope.refusal(node, "repeats the tokens")
    return (None,) * shift + scope.of(value)


def repeat_interleave(scope: Scope, node: fx.Node) -> Labels:
    labels = scope.of(scope.tensor(node))
    if has_video(labels[scope.axis(node, 2, len(labels))]):
        raise scope.refusal(node, "repeats the tokens")
    return labels


def stack(scope: Scope, node: fx.Node) -> Labels:
    operands = node.args[0]
    assert isinstance(operands, list | tuple)
    labels = list(scope.meet(node, [o for o in operands if isinstance(o, fx.Node)]))
    labels.insert(scope.axis(node, 1, len(labels) + 1), None)
    return tuple(labels)


def _times(a: Extent, b: Extent) -> Extent:
    return a[0] * b[0], a[1] * b[1]


def groups(old: tuple[Extent, ...], new: tuple[Extent, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of old and new axes with equal products, from the front; a remainder of ones goes last."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left = [i] if i < len(old) else []
        right = [j] if j < len(new) else []
        size_left = old[i] if left else (1, 1)
        size_right = new[j] if right else (1, 1)
        i, j = i + len(left), j + len(right)
        while size_left != size_right and (i < len(old) or j < len(new)):
            if (size_left < size_right and i < len(old)) or j >= len(new):
                size_left = _times(size_left, old[i])
                left.append(i)
                i += 1
            else:
                size_right = _times(size_right, new[j])
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups


def reshape(scope: Scope, node: fx.Node) -> Labels:
    """view, reshape, flatten, unflatten: a token axis may only absorb or shed axes of size 1."""
    value = scope.tensor(node)
    old, new, labels = scope.shape(value), scope.shape(node), scope.of(value)
    out: list[Rows | None] = [None] * len(new)
    for left, right in groups(old, new):
        for axis in (a for a in left if has_video(labels[a])):
            alone = all(old[a] == (1, 1) for a in left if a != axis)
            kept = [a for a in right if new[a] != (1, 1)]
            if not alone or len(kept) != 1 or new[kept[0]] != old[axis]:
                raise scope.refusal(node, "splits or merges the token axis")
            out[kept[0]] = labels[axis]
    return tuple(out)


RESHAPES = (
    *(aten.view.default, aten.reshape.default, aten._unsafe_view.default),
    *(aten.flatten.using_ints, aten.unflatten.int),
)
RULES: dict[object, Rule] = {
    aten.permute.default: permute,
    **dict.fromkeys((aten.transpose.int, aten.swapaxes.default, aten.swapdims.default), transpose),
    aten.movedim.int: movedim,
    aten.mT.default: matrix_transpose,
    **dict.fromkeys((aten.narrow.default, aten.index_select.default), pick),
    aten.unsqueeze.default: unsqueeze,
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.default), squeeze),
    aten.select.int: select,
    aten.unbind.int: unbind,
    **dict.fromkeys((aten.expand.default, aten.repeat.default, aten.tile.default), expand),
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.stack.default: stack,
    **dict.fromkeys(RESHAPES, reshape),
}
