"""Pushes the gather of a shared value back to the smaller tensor that the value repeats over tokens.

before: value = transpose(flatten(repeat(view(small, [B, F, 1, 1, 6, C]), [1, 1, h, w, 1, 1]), 1, 3), 1, 2)
        index_select(value, 2, i)
after:  rows = index_select(view(small, ...), 1, i // (h * w)); transpose(flatten(repeat(rows, ones), 1, 3), 1, 2)

The walk back follows the token axis through layout operators: where one axis came from several, their indices
are quotients and remainders of the token's; where an axis was repeated from size 1, its index vanishes. It ends
at the first operator that does anything else. refuses when: more than one axis keeps an index, or nothing is
saved; then the value is gathered as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from mccompile.capture.errors import CaptureBug
from mccompile.capture.facts import Extent, Facts, ScalarFact, TensorFact
from mccompile.capture.rules.layout import RESHAPES, groups
from mccompile.capture.rules.pointwise import CASTS, POINTWISE

aten = torch.ops.aten

_ELEMENTWISE = frozenset((*CASTS, *POINTWISE)) - {aten.empty_like.default, aten.copy_.default}


@dataclass(frozen=True, slots=True)
class Size:
    """A size at both probes, and the value of the graph that has it: a constant or a scalar node."""

    extent: Extent
    value: fx.Node | int


@dataclass(frozen=True, slots=True)
class Index:
    """token index // product(`over`) % `modulo`."""

    over: tuple[Size, ...]
    modulo: Size | None


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
    index: Index
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

    def size(self, node: fx.Node, axis: int) -> Size:
        """The size of an axis as a number of the graph, of the same symbolic size if there is one."""
        extent = self.shape(node)[axis]
        if extent[0] == extent[1]:
            return Size(extent, extent[0])
        val = node.meta.get("val")
        wanted = str(val.shape[axis]) if isinstance(val, torch.Tensor) else ""
        equal = [s for s in self.scalars if self.facts[s] == ScalarFact(extent)]
        best = next((s for s in equal if str(s.meta.get("val")) == wanted), equal[0] if equal else None)
        if best is None:
            raise _Stop
        return Size(extent, best)

    def back(self, node: fx.Node, rows: Mapping[int, Index | None]) -> tuple[fx.Node, dict[int, Index | None]]:
        """The operand of `node` and its row axes; an axis without an index (None) has size 1 there."""
        source = node.args[0] if node.args else None
        tensors = [a for a in node.all_input_nodes if isinstance(self.facts[a], TensorFact)]
        if not isinstance(source, fx.Node) or tensors != [source]:
            raise _Stop
        old, new = self.shape(source), self.shape(node)
        if node.target in _ELEMENTWISE and len(old) == len(new):
            return source, dict(rows)
        if node.target is aten.transpose.int:
            first, second = (_axis(node.args[i], len(new)) for i in (1, 2))
            return source, {{first: second, second: first}.get(a, a): i for a, i in rows.items()}
        if node.target is aten.permute.default and isinstance(node.args[1], list | tuple):
            return source, {_axis(node.args[1][a], len(new)): i for a, i in rows.items()}
        if node.target is aten.unsqueeze.default:
            at = _axis(node.args[1], len(new))
            return source, {a - (a > at): i for a, i in rows.items() if a != at}
        if node.target in (aten.repeat.default, aten.expand.default):
            return source, self._repeated(old, new, rows)
        if node.target in RESHAPES:
            return source, self._reshaped(source, old, new, rows)
        raise _Stop

    def _repeated(
        self, old: tuple[Extent, ...], new: tuple[Extent, ...], rows: Mapping[int, Index | None]
    ) -> dict[int, Index | None]:
        shift = len(new) - len(old)
        if any(axis < shift for axis in rows):
            raise _Stop
        found: dict[int, Index | None] = {}
        for axis, index in rows.items():
            if old[axis - shift] not in ((1, 1), new[axis]):
                raise _Stop
            found[axis - shift] = index if old[axis - shift] == new[axis] != (1, 1) else None
        return found

    def _reshaped(
        self, source: fx.Node, old: tuple[Extent, ...], new: tuple[Extent, ...], rows: Mapping[int, Index | None]
    ) -> dict[int, Index | None]:
        found: dict[int, Index | None] = {}
        for left, right in groups(old, new):
            inside = [a for a in right if rows.get(a) is not None]
            if not inside:
                continue
            index, wide = rows[inside[0]], [a for a in left if old[a] != (1, 1)]
            if [a for a in right if new[a] != (1, 1)] != inside or index is None:
                raise _Stop
            if len(wide) > 1 and index.modulo is not None:
                raise _Stop
            for i, axis in enumerate(wide):
                over = tuple(self.size(source, a) for a in wide[i + 1 :])
                modulo = self.size(source, axis) if i > 0 else index.modulo
                found[axis] = Index((*index.over, *over), modulo)
            found |= dict.fromkeys((a for a in left if old[a] == (1, 1)), None)
        return found


def _axis(value: object, rank: int) -> int:
    if not isinstance(value, int):
        raise _Stop
    return value % rank


def _numel(shape: tuple[Extent, ...]) -> Extent:
    return prod(e[0] for e in shape), prod(e[1] for e in shape)


def sink_gather(facts: Facts, scalars: list[fx.Node], value: fx.Node, axis: int) -> Sunk | None:
    """The smallest tensor whose rows give those of `value` along `axis`; None if that is `value` itself.

    scalars: nodes of the prelude that are numbers.
    """
    walk = _Walk(facts, scalars)
    states: list[tuple[fx.Node, dict[int, Index | None]]] = [(value, {axis: Index((), None)})]
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
    walk: _Walk, states: list[tuple[fx.Node, dict[int, Index | None]]], carrier: int
) -> tuple[Replay, ...]:
    """The operators from the leaf (last state) to the value (first), with the axis that carries the rows."""
    steps = []
    for (node, rows), (source, _) in zip(states[-2::-1], states[:0:-1], strict=True):
        carrier = _forward(walk, node, source, rows, carrier)
        steps.append(Replay(node, frozenset(rows), carrier))
    return tuple(steps)


def _forward(walk: _Walk, node: fx.Node, source: fx.Node, rows: Mapping[int, Index | None], carrier: int) -> int:
    """The axis of `node` that an axis of its operand becomes."""
    old, new = walk.shape(source), walk.shape(node)
    if node.target in RESHAPES:
        right = next(right for left, right in groups(old, new) if carrier in left)
        return next(a for a in right if rows.get(a) is not None)
    for axis in rows:
        try:
            if carrier in walk.back(node, {axis: rows[axis]})[1]:
                return axis
        except _Stop:
            continue
    raise CaptureBug(f"the rows of `{node.name}` came from nowhere")
