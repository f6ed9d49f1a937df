"""Moves the gather of a shared value to the smaller tensor that the value repeats over tokens.

before: value = transpose(flatten(repeat(view(small, [B, F, 1, 1, 6, C]), [1, 1, h, w, 1, 1]), 1, 3), 1, 2)
        index_select(value, 2, i)
after:  rows = index_select(view(small, ...), 1, i // (h * w)); transpose(flatten(repeat(rows, ones), 1, 3), 1, 2)

The walk back follows the token axis through layout operators. If one axis came from several, their indices are
quotients and remainders of the token's index. If an axis was repeated from size 1, its index disappears. The walk ends
at the first operator of another sort.
refuses when: more than one axis keeps an index, or nothing is saved. The value itself is then gathered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from mccompile.capture.errors import CaptureBug
from mccompile.capture.facts import Extent, Facts, TensorFact
from mccompile.capture.moves import LAYOUTS, AxisGroup, AxisMap, Unmapped, axis_map
from mccompile.capture.rules.pointwise import CASTS, POINTWISE
from mccompile.capture.sizes import Holder, find_size

aten = torch.ops.aten

_ELEMENTWISE = frozenset((*CASTS, *POINTWISE)) - {aten.empty_like.default, aten.copy_.default}


@dataclass(frozen=True, slots=True)
class GraphSize:
    """A size at both probes, and the value of the graph that has it: a constant or a scalar node."""

    extent: Extent
    value: fx.Node | int


@dataclass(frozen=True, slots=True)
class TokenIndex:
    """token index // product(`over`) % `modulo`."""

    over: tuple[GraphSize, ...]
    modulo: GraphSize | None


@dataclass(frozen=True, slots=True)
class Replay:
    """An operator to run again on the rows: `rows` are the axes of its result that one token axis became."""

    node: fx.Node
    rows: frozenset[int]
    carrier: int  # the one of them that holds the selected rows; the others get size 1


@dataclass(frozen=True, slots=True)
class Sunk:
    """Gather `leaf` along `axis` at `index`, then replay."""

    leaf: fx.Node
    axis: int
    index: TokenIndex
    replay: tuple[Replay, ...]  # in order of execution

    @property
    def scalars(self) -> tuple[fx.Node, ...]:
        """Numbers of the prelude that the index and the replay read."""
        sizes = [s.value for s in (*self.index.over, self.index.modulo) if s is not None]
        read = [a for step in self.replay for a in step.node.all_input_nodes[1:]]
        return tuple(dict.fromkeys(x for x in (*sizes, *read) if isinstance(x, fx.Node)))


class _Stop(Exception):
    """The walk cannot pass this operator."""


@dataclass(slots=True)
class _Walk:
    facts: Facts
    scalars: list[fx.Node]  # numbers that the prelude computes

    def shape(self, node: fx.Node) -> tuple[Extent, ...]:
        fact = self.facts[node]
        if not isinstance(fact, TensorFact):
            raise _Stop
        return fact.shape

    def size(self, node: fx.Node, axis: int) -> GraphSize:
        """The size of an axis as a number of the graph, of the same symbolic size if there is one."""
        extent = self.shape(node)[axis]
        if extent[0] == extent[1]:
            return GraphSize(extent, extent[0])
        found = find_size(extent, self.facts, (), self.scalars, Holder(node, axis).symbol)
        if found is None:
            raise _Stop
        return GraphSize(extent, found.node)

    def back(
        self, node: fx.Node, rows: Mapping[int, TokenIndex | None]
    ) -> tuple[fx.Node, dict[int, TokenIndex | None]]:
        """The operand of `node` and its row axes; an axis without an index (None) has size 1 there."""
        source = node.args[0] if node.args else None
        tensors = [a for a in node.all_input_nodes if isinstance(self.facts[a], TensorFact)]
        if not isinstance(source, fx.Node) or tensors != [source]:
            raise _Stop
        return source, self._before(node, source, rows)

    def groups(self, node: fx.Node, source: fx.Node) -> AxisMap:
        """The axes of `source` that become axes of `node`. Raises _Stop where that is not all that happens."""
        rank = len(self.shape(node))
        if node.target in _ELEMENTWISE and len(self.shape(source)) == rank:
            return tuple(AxisGroup((a,), (a,)) for a in range(rank))
        try:
            found = axis_map(node, self.facts)
        except Unmapped:
            raise _Stop from None
        if found is None or not LAYOUTS[node.target].again:
            raise _Stop
        return found

    def _before(
        self, node: fx.Node, source: fx.Node, rows: Mapping[int, TokenIndex | None]
    ) -> dict[int, TokenIndex | None]:
        """The row axes of the operand, from those of the result."""
        old, new = self.shape(source), self.shape(node)
        found: dict[int, TokenIndex | None] = {}
        for group in self.groups(node, source):
            if len(group.old) == len(group.new) == 1:
                (before,), (after,) = group.old, group.new
                if after in rows and old[before] not in ((1, 1), new[after]):
                    raise _Stop
                if after in rows:
                    found[before] = rows[after] if old[before] == new[after] != (1, 1) else None
            else:
                found |= self._parted(source, group, new, rows)
        return found

    def _parted(
        self, source: fx.Node, group: AxisGroup, new: tuple[Extent, ...], rows: Mapping[int, TokenIndex | None]
    ) -> dict[int, TokenIndex | None]:
        """As `_before`, for several axes that become one, or one that becomes several."""
        old, found = self.shape(source), dict[int, TokenIndex | None]()
        inside = [a for a in group.new if rows.get(a) is not None]
        if not inside:
            return found
        index, wide = rows[inside[0]], [a for a in group.old if old[a] != (1, 1)]
        if [a for a in group.new if new[a] != (1, 1)] != inside or index is None or not group.old:
            raise _Stop
        if len(wide) > 1 and index.modulo is not None:
            raise _Stop
        for i, axis in enumerate(wide):
            over = tuple(self.size(source, a) for a in wide[i + 1 :])
            modulo = self.size(source, axis) if i > 0 else index.modulo
            found[axis] = TokenIndex((*index.over, *over), modulo)
        return found | dict.fromkeys((a for a in group.old if old[a] == (1, 1)), None)


def _numel(shape: tuple[Extent, ...]) -> Extent:
    return prod(e[0] for e in shape), prod(e[1] for e in shape)


def sink_gather(facts: Facts, scalars: list[fx.Node], value: fx.Node, axis: int) -> Sunk | None:
    """The smallest tensor whose rows give those of `value` along `axis`; None if that is `value` itself.

    scalars: nodes of the prelude that are numbers.
    """
    walk = _Walk(facts, scalars)
    states: list[tuple[fx.Node, dict[int, TokenIndex | None]]] = [(value, {axis: TokenIndex((), None)})]
    best: Sunk | None = None
    while True:
        try:
            node, rows = walk.back(*states[-1])
        except _Stop:
            return best
        states.append((node, rows))
        real = [(a, index) for a, index in rows.items() if index is not None]
        if not real:
            return best
        smaller = all(a < b for a, b in zip(_numel(walk.shape(node)), _numel(walk.shape(value)), strict=True))
        if len(real) == 1 and smaller:
            best = Sunk(node, *real[0], _replay(walk, states, real[0][0]))


def _replay(
    walk: _Walk, states: list[tuple[fx.Node, dict[int, TokenIndex | None]]], carrier: int
) -> tuple[Replay, ...]:
    """The operators from the leaf (last state) to the value (first), with the axis that carries the rows."""
    steps = []
    for (node, rows), (source, _) in zip(states[-2::-1], states[:0:-1], strict=True):
        carrier = _forward(walk, node, source, rows, carrier)
        steps.append(Replay(node, frozenset(rows), carrier))
    return tuple(steps)


def _forward(walk: _Walk, node: fx.Node, source: fx.Node, rows: Mapping[int, TokenIndex | None], carrier: int) -> int:
    """The axis of `node` that an axis of its operand becomes."""
    for group in walk.groups(node, source):
        for axis in group.new if carrier in group.old else ():
            if rows.get(axis) is not None:
                return axis
    raise CaptureBug(f"the rows of `{node.name}` came from nowhere")
