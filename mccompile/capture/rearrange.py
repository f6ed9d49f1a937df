"""Emits the operators that bring a value from some axes to others, both given as products of factors (factors.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from mccompile.capture.factors import ONE, PLACES, Factor, Factors, Unfit, times
from mccompile.capture.facts import Extent, Fact, TensorFact, is_dynamic

aten = torch.ops.aten


@dataclass(slots=True)
class Emitter:
    """A graph that grows, with the facts of its nodes. extents, numbers: how long each of the named factors is."""

    graph: fx.Graph
    facts: dict[fx.Node, Fact]
    extents: dict[str, Extent] = field(default_factory=dict)
    numbers: dict[str, fx.Node | int] = field(default_factory=dict)

    def shape(self, node: fx.Node) -> tuple[Extent, ...]:
        """The sizes of a tensor. Raises Unfit for any other value."""
        fact = self.facts.get(node)
        if not isinstance(fact, TensorFact):
            raise Unfit
        return fact.shape

    def put(
        self, target: object, args: tuple[object, ...], fact: Fact, before: fx.Node, meta: Mapping[str, object],
        kwargs: Mapping[str, object] | None = None,
    ) -> fx.Node:  # fmt: skip
        """A new node, with what is known of it."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, dict(kwargs or {}))
        node.meta = {k: v for k, v in meta.items() if k != "val"}
        self.facts[node] = fact
        return node

    def rearranged(
        self, value: fx.Node, old: Sequence[Factors], new: Sequence[Factors], before: fx.Node,
        meta: Mapping[str, object],
    ) -> fx.Node:  # fmt: skip
        """A value whose axes have the factors `old` as one with the factors `new`, where it repeats what it lacks."""
        sizes = self._sizes(value, old)
        if list(old) == list(new):
            return value
        flat, wanted = [f for own in old for f in own], [f for own in new for f in own]
        dtype = self.facts[value].dtype  # type: ignore[union-attr]  # _sizes has proved it a tensor

        def step(target: object, args: tuple[object, ...], shape: Sequence[Extent]) -> fx.Node:
            return self.put(target, (value, *args), TensorFact(tuple(shape), dtype), before, meta)

        if any(len(own) != 1 for own in old):
            parted = self._listed(value, old, [(f,) for f in flat])
            value = step(aten.reshape.default, (parted,), [sizes[f] for f in flat])
        order = [flat.index(f) for f in wanted if f in flat]
        if len(order) != len(flat):
            raise Unfit
        if order != sorted(order):
            value = step(aten.permute.default, (order,), [sizes[flat[i]] for i in order])
        lacking = [i for i, f in enumerate(wanted) if f not in flat]
        for i in lacking:
            shape = self.shape(value)
            value = step(aten.unsqueeze.default, (i,), (*shape[:i], ONE, *shape[i:]))
        if lacking:
            longer = [self.numbers[str(f)] if i in lacking else -1 for i, f in enumerate(wanted)]
            sizes |= {f: self.extents[str(f)] for f in wanted if f not in flat}
            value = step(aten.expand.default, (longer,), [sizes[f] for f in wanted])
        if any(len(own) != 1 for own in new):
            merged = self._listed(value, [(f,) for f in wanted], new)
            value = step(aten.reshape.default, (merged,), [times(*(sizes[f] for f in own)) for own in new])
        return value

    def _sizes(self, value: fx.Node, old: Sequence[Factors]) -> dict[Factor, Extent]:
        """How long each factor of a value is. Raises Unfit where they do not make up its axes."""
        shape = self.shape(value)
        found: dict[Factor, Extent] = {}
        for extent, own in zip(shape, old, strict=True):
            for factor in own:
                found[factor] = self.extents[factor] if isinstance(factor, str) else extent
            if times(*(found[f] for f in own)) != extent:
                raise Unfit
        return found

    def _listed(self, value: fx.Node, old: Sequence[Factors], new: Sequence[Factors]) -> list[object]:
        """The sizes of a reshape from some axes to others. One of those that vary is left open (-1)."""
        found: list[object] = []
        for own in new:
            match own:
                case ():
                    found.append(1)
                case (str() as name,):
                    found.append(self.numbers[name])
                case (int() as axis,):
                    found.append(self._plain(value, old.index((axis,))))
                case _:
                    found.append(-1)
        if found.count(-1) > 1:
            raise Unfit
        if -1 not in found and (PLACES,) in new and is_dynamic(self.extents[PLACES]):
            found[list(new).index((PLACES,))] = -1
        return found

    def _plain(self, value: fx.Node, axis: int) -> object:
        """The size of an axis of another sort. Raises Unfit where it varies."""
        extent = self.shape(value)[axis]
        if is_dynamic(extent):
            raise Unfit
        return extent[0]
