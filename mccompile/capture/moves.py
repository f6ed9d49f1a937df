"""Where each axis of a result comes from, for every operator that only moves axes: the one place that knows them.

Labels (`rules.layout`), origins (`Scope.demanded`) and sinks (`sink`) are read off the same map. A new layout
operator is an entry of LAYOUTS and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from mccompile.capture.facts import Extent, Fact, TensorFact, TupleFact

aten = torch.ops.aten
Shape: TypeAlias = tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class AxisGroup:
    """Old axes that together become new axes. None old: the axes are new. None new: the axes end here."""

    old: tuple[int, ...]
    new: tuple[int, ...]


AxisMap: TypeAlias = tuple[AxisGroup, ...]


class Unmapped(Exception):
    """An axis is given by a value of the graph."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A layout operator as it is called, with the shapes of its operand and of one result."""

    node: fx.Node
    old: Shape
    new: Shape

    def axis(self, position: int, rank: int, name: str = "dim", default: int = 0) -> int:
        """An axis argument, counted from the front. Raises Unmapped where it is no constant."""
        args = self.node.args
        value = args[position] if len(args) > position else self.node.kwargs.get(name, default)
        if not isinstance(value, int):
            raise Unmapped
        return value % rank


@dataclass(frozen=True, slots=True)
class LayoutOperator:
    """What a layout operator does to axes, and what is said where it does so to the token axis.

    sizes: place of the argument that lists sizes of the result, for it must change with the rows.
    first: place of the argument that says at which axis that list begins; without one it begins at the first.
    factors: the list holds factors and not sizes.
    again: whether the operator, called anew on some rows, moves the same axes.
    """

    axes: Callable[[Moved], AxisMap]
    refuses: str = "splits or merges the token axis"
    sizes: int | None = None
    first: int | None = None
    factors: bool = False
    again: bool = True


def _order(order: Sequence[int]) -> AxisMap:
    return tuple(AxisGroup((old,), (new,)) for new, old in enumerate(order))


def _permute(call: Moved) -> AxisMap:
    order = call.node.args[1]
    assert isinstance(order, list | tuple)
    return _order([int(a) % len(call.old) for a in order])


def _transpose(call: Moved) -> AxisMap:
    order = list(range(len(call.old)))
    first, second = call.axis(1, len(order), "dim0"), call.axis(2, len(order), "dim1")
    order[first], order[second] = order[second], order[first]
    return _order(order)


def _movedim(call: Moved) -> AxisMap:
    order = list(range(len(call.old)))
    source, target = call.axis(1, len(order), "source"), call.axis(2, len(order), "destination")
    order.insert(target, order.pop(source))
    return _order(order)


def _matrix_transpose(call: Moved) -> AxisMap:
    *front, rows, columns = range(len(call.old))
    return _order([*front, columns, rows])


def _new_axis(call: Moved) -> AxisMap:
    at = call.axis(1, len(call.new))
    return (*_order_around(range(len(call.old)), at), AxisGroup((), (at,)))


def _order_around(old: Sequence[int], new: int) -> AxisMap:
    """The axes `old` in order, around a new axis."""
    return tuple(AxisGroup((a,), (i + (i >= new),)) for i, a in enumerate(old))


def _squeeze(call: Moved) -> AxisMap:
    rank = len(call.old)
    axes = {call.axis(1, rank)} if len(call.node.args) > 1 else set(range(rank))
    return _without([a for a in axes if call.old[a] == (1, 1)], rank)


def _without(gone: Sequence[int], rank: int) -> AxisMap:
    left = [a for a in range(rank) if a not in gone]
    return (*_order(left), *(AxisGroup((a,), ()) for a in gone))


def _pick_one(call: Moved) -> AxisMap:
    """select, unbind."""
    return _without([call.axis(1, len(call.old))], len(call.old))


def _pick_some(position: int) -> Callable[[Moved], AxisMap]:
    """narrow, index_select, repeat_interleave: the axis ends, and another of rows of it begins."""

    def axes(call: Moved) -> AxisMap:
        at = call.axis(position, len(call.old))
        kept = tuple(AxisGroup((a,), (a,)) for a in range(len(call.old)) if a != at)
        return (*kept, AxisGroup((at,), ()), AxisGroup((), (at,)))

    return axes


def _repeat(call: Moved) -> AxisMap:
    """expand and repeat: new axes in front, others as long or longer."""
    shift = len(call.new) - len(call.old)
    fresh = tuple(AxisGroup((), (a,)) for a in range(shift))
    return (*fresh, *(AxisGroup((a,), (a + shift,)) for a in range(len(call.old))))


def _reshape(call: Moved) -> AxisMap:
    """Smallest runs of old and new axes with equal products, from the front; a remainder of ones goes last."""
    old, new = call.old, call.new
    found: list[AxisGroup] = []
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
        found.append(AxisGroup(tuple(left), tuple(right)))
    return tuple(found)


def _times(a: Extent, b: Extent) -> Extent:
    return a[0] * b[0], a[1] * b[1]


LAYOUTS: dict[object, LayoutOperator] = {
    aten.permute.default: LayoutOperator(_permute),
    **dict.fromkeys((aten.transpose.int, aten.swapaxes.default, aten.swapdims.default), LayoutOperator(_transpose)),
    aten.movedim.int: LayoutOperator(_movedim),
    aten.mT.default: LayoutOperator(_matrix_transpose),
    aten.unsqueeze.default: LayoutOperator(_new_axis),
    aten.squeeze.dim: LayoutOperator(_squeeze),
    aten.squeeze.default: LayoutOperator(_squeeze, again=False),
    aten.select.int: LayoutOperator(_pick_one, "picks one token"),
    aten.unbind.int: LayoutOperator(_pick_one, "takes the tokens apart"),
    aten.narrow.default: LayoutOperator(_pick_some(1), "picks some of the tokens"),
    aten.index_select.default: LayoutOperator(_pick_some(1), "picks some of the tokens"),
    aten.repeat_interleave.self_int: LayoutOperator(_pick_some(2), "repeats the tokens"),
    aten.expand.default: LayoutOperator(_repeat, "repeats the tokens", sizes=1),
    **dict.fromkeys(
        (aten.repeat.default, aten.tile.default), LayoutOperator(_repeat, "repeats the tokens", sizes=1, factors=True)
    ),
    **dict.fromkeys(
        (aten.view.default, aten.reshape.default, aten._unsafe_view.default), LayoutOperator(_reshape, sizes=1)
    ),
    aten.flatten.using_ints: LayoutOperator(_reshape),
    aten.unflatten.int: LayoutOperator(_reshape, sizes=2, first=1),
}


def axis_map(node: fx.Node, facts: Mapping[fx.Node, Fact]) -> AxisMap | None:
    """The groups of axes of a layout operator (for unbind, of each result); None for any other operator.

    Raises Unmapped where an axis is given by a value of the graph.
    """
    layout, source = LAYOUTS.get(node.target), node.args[0] if node.args else None
    if layout is None or not isinstance(source, fx.Node):
        return None
    old, new = facts.get(source), facts.get(node)
    if isinstance(new, TupleFact):
        new = new.items[0]
    if not isinstance(old, TensorFact) or not isinstance(new, TensorFact):
        return None
    return layout.axes(Moved(node, old.shape, new.shape))


@dataclass(frozen=True, slots=True)
class Listed:
    """The argument of a layout operator that lists sizes of its result (or factors), from the axis `first` on."""

    place: int
    first: int
    factors: bool


def sizes_listed(node: fx.Node, facts: Mapping[fx.Node, Fact]) -> Listed | None:
    """Where a layout operator lists sizes; None for any other operator, and where it lists none."""
    layout, source = LAYOUTS.get(node.target), node.args[0] if node.args else None
    fact = facts.get(source) if isinstance(source, fx.Node) else None
    if layout is None or layout.sizes is None or not isinstance(fact, TensorFact):
        return None
    first = node.args[layout.first] if layout.first is not None else 0
    assert isinstance(first, int)
    return Listed(layout.sizes, first % max(len(fact.shape), 1), layout.factors)
