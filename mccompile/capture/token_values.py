"""The values of a graph whose tokens are brought together: each as the model has it, and with its tokens together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from mccompile.capture.factors import FRAMES, ONE, PLACES, SAMPLES, TOGETHER, TOKENS, Apart, Factors, Unfit, times
from mccompile.capture.facts import Extent, TensorFact, is_dynamic
from mccompile.capture.rearrange import Emitter
from mccompile.capture.stacks import block_of

aten = torch.ops.aten
OUTSIDE: Mapping[str, object] = {"nn_module_stack": {}}  # of what is made before the blocks
_COPIES = frozenset((aten.clone.default, aten.contiguous.default))
RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
             aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default)  # fmt: skip


@dataclass(slots=True)
class TokenValues(Emitter):
    """own: the factors of the values that have tokens, or an entry for each frame or place, by node of the model.

    made: these values with their tokens together. apart: those of them that stay in the graph as the model has them.
    """

    own: dict[fx.Node, Apart] = field(default_factory=dict)
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)
    apart: set[fx.Node] = field(default_factory=set)
    _folded: dict[tuple[fx.Node, str | None], fx.Node] = field(default_factory=dict)
    _spread: dict[tuple[object, ...], fx.Node] = field(default_factory=dict)

    def put_together(self, value: fx.Node) -> fx.Node:
        """A value with its tokens together."""
        if value not in self.made:
            own = self.own[value]
            new = self.rearranged(value, own.folded, own.together, value.next, value.meta)
            if new is not value:
                new.meta[TOGETHER] = own.items.index(TOKENS)
            self.made[value] = new
        return self.made[value]

    def read_apart(self, node: fx.Node, meta: Mapping[str, object]) -> None:
        """Lets an operator read its operands as the model has them. Raises Unfit where one cannot be brought there."""
        for value in node.all_input_nodes:
            if value in self.own and value not in self.apart:
                node.replace_input_with(value, self._taken_apart(value, node, meta))

    def _taken_apart(self, value: fx.Node, before: fx.Node, meta: Mapping[str, object]) -> fx.Node:
        key = value, block_of(before)
        if key not in self._folded:
            own = self.own[value]
            self._folded[key] = self.rearranged(self.made[value], own.together, own.folded, before, meta)
        return self._folded[key]

    def shape_of(self, own: Apart, shape: tuple[Extent, ...]) -> tuple[Extent, ...]:
        """The sizes of a value with its tokens together. shape: those of the model's value."""
        tokens = times(self.extents[FRAMES], self.extents[PLACES])
        sizes = {SAMPLES: self.extents[SAMPLES], TOKENS: tokens}
        return tuple(sizes[item] if isinstance(item, str) else shape[item] for item in own.items)

    def fits(self, own: Apart, shape: tuple[Extent, ...]) -> bool:
        """Whether a value of this shape may have these factors."""
        pairs = zip(own.axes, shape, strict=True)
        return all(not factors or times(*(self.extents[f] for f in factors)) == extent for factors, extent in pairs)

    def note_shared(self, value: fx.Node, before: fx.Node) -> None:
        """Finds out whether a value that is made before the blocks has an entry for each frame or place of a sample."""
        if value in self.own or value.op == "get_attr" or block_of(value) is not None:
            return
        first = self._first(value)
        if first is None:
            return
        own = Apart(((SAMPLES, first), *self._rest(value, first)), varies=True)
        self.made[value] = self.rearranged(value, own.folded, own.together, before, OUTSIDE)
        self.own[value] = own
        self.apart.add(value)

    def _rest(self, value: fx.Node, first: str) -> list[tuple[str, ...]]:
        """The factors of all axes but the first, which has frames or places. What never varies is most often another.
        """  # fmt: skip
        other, shape = PLACES if first == FRAMES else FRAMES, self.shape(value)
        fits = [is_dynamic(e) or (axis == 1 and len(shape) > 2) for axis, e in enumerate(shape)]
        return [(other,) if f and e == self.extents[other] else () for f, e in zip(fits[1:], shape[1:], strict=True)]

    def _first(self, value: fx.Node) -> str | None:
        """FRAMES or PLACES, where a value has that many entries for each sample along its first axis."""
        fact, samples = self.facts.get(value), self.extents[SAMPLES]
        shape = fact.shape if isinstance(fact, TensorFact) else ()
        fits = [f for f in (FRAMES, PLACES) if shape[:1] == (times(samples, self.extents[f]),)]
        return fits[0] if len(fits) == 1 and len(shape) > 1 else None

    def note_repeated(self, value: fx.Node) -> None:
        """Notes a value that has each sample's entry for each frame or place in a row: it is made once a sample."""
        first, source = self._first(value), value.args[0] if value.args else None
        if first is None or not isinstance(source, fx.Node) or not isinstance(self.facts.get(source), TensorFact):
            return
        shape, old, samples = self.shape(value), self.shape(source), self.extents[SAMPLES]
        once = None
        if value.target is aten.repeat_interleave.self_int:
            along = value.args[2] if len(value.args) > 2 else value.kwargs.get("dim")
            once = source if along == 0 and old == (samples, *shape[1:]) else None
        elif value.target in RESHAPES and old[:1] == (samples,) and old[2:] == shape[1:]:
            once = self._expanded(source, value)
        if once is None:
            return
        rest = self._rest(value, first)
        own = self.own[value] = Apart(((SAMPLES, first), *rest), varies=any(rest))
        given: list[Factors] = [(SAMPLES,), *own.folded[1:]]
        self.made[value] = self.rearranged(once, given, own.together, value, OUTSIDE) if own.varies else once

    def _expanded(self, wide: fx.Node, before: fx.Node) -> fx.Node | None:
        """What a value [samples, n, ...] repeats n times along its second axis; None where it differs there."""
        while wide.target in _COPIES and isinstance(wide.args[0], fx.Node):
            wide = wide.args[0]
        source = wide.args[0] if wide.target in (aten.expand.default, aten.repeat.default) else None
        if not isinstance(source, fx.Node):
            return None
        shape, old = self.shape(wide), self.shape(source)
        if old != (shape[0], ONE, *shape[2:]):
            return None
        if source.target is aten.unsqueeze.default and source.args[1] == 1 and isinstance(source.args[0], fx.Node):
            return source.args[0]
        fact = TensorFact((shape[0], *shape[2:]), self._dtype(wide))
        return self.put(aten.squeeze.dim, (source, 1), fact, before, OUTSIDE)

    def varies_beside(self, value: fx.Node, axes: tuple[tuple[str, ...], ...]) -> bool:
        """Whether a value of another sort has an entry for each frame or place of values with these axes."""
        return any(FRAMES in own or PLACES in own for own in self._beside(value, axes))

    def _beside(self, value: fx.Node, axes: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
        """The factors of a value of another sort that meets one with these axes element by element."""
        shape = self.shape(value)
        there = axes[len(axes) - len(shape) :]
        found = [own if extent != ONE else () for own, extent in zip(there, shape, strict=True)]
        if any(own and times(*(self.extents[f] for f in own)) != e for own, e in zip(found, shape, strict=True)):
            raise Unfit
        return found

    def aligned(self, value: fx.Node, own: Apart, before: fx.Node) -> fx.Node:
        """A value as it meets others whose tokens are together and whose factors are `own`. Raises Unfit."""
        if value not in self.own and any(self._beside(value, own.axes)):
            return self._spread_out(value, own, before)
        node = self.put_together(value) if value in self.own else value
        shape = self.shape(node)
        shift = len(own.axes) - (len(self.own[value].axes) if value in self.own else len(shape))
        items = list(self.own[value].items if value in self.own else range(len(shape)))
        wanted = [item if isinstance(item, str) else item - shift for item in own.items]
        order = [items.index(item) if item in items else None for item in wanted]
        kept = [i for i in order if i is not None]
        dropped = [i for i in range(len(items)) if i not in kept]
        if kept != sorted(kept) or any(shape[i] != ONE for i in dropped):
            raise Unfit
        sizes = [ONE if i is None else shape[i] for i in order]
        lead = next((n for n, i in enumerate(order) if i is not None), len(order))
        if any(tuple(sizes[n:]) == shape for n in range(lead + 1)):
            return node
        return self._fitted(node, dropped, [n - lead for n, i in enumerate(order) if i is None and n > lead], before)

    def _fitted(self, node: fx.Node, dropped: list[int], fresh: list[int], before: fx.Node) -> fx.Node:
        """A value without some axes of size 1, and with others."""
        meta = before.meta
        for axis in reversed(dropped):
            fact = TensorFact((*self.shape(node)[:axis], *self.shape(node)[axis + 1 :]), self._dtype(node))
            node = self.put(aten.squeeze.dim, (node, axis), fact, before, meta)
        for axis in fresh:
            fact = TensorFact((*self.shape(node)[:axis], ONE, *self.shape(node)[axis:]), self._dtype(node))
            node = self.put(aten.unsqueeze.default, (node, axis), fact, before, meta)
        return node

    def _dtype(self, node: fx.Node) -> torch.dtype:
        fact = self.facts[node]
        assert isinstance(fact, TensorFact)
        return fact.dtype

    def _spread_out(self, value: fx.Node, own: Apart, before: fx.Node) -> fx.Node:
        """A value with an entry for each frame or place as one with an entry for each token."""
        shape, beside = self.shape(value), self._beside(value, own.axes)
        shift = len(own.axes) - len(shape)
        lost = [shape[i] == ONE and bool(own.axes[i + shift]) for i in range(len(shape))]
        named: list[Factors] = [factors or (i,) for i, factors in enumerate(beside)]
        old: list[Factors] = [() if gone else factors for gone, factors in zip(lost, named, strict=True)]
        has = {factor for factors in old for factor in factors}
        new: list[Factors] = []
        for item in own.items:
            if item == TOKENS:
                new.append((FRAMES, PLACES))
            else:
                factor = item if isinstance(item, str) else item - shift
                new.append((factor,) if factor in has else ())
        inside = block_of(value) is not None
        key = value, tuple(old), tuple(new), block_of(before) if inside else None
        if key not in self._spread:
            self._spread[key] = self.rearranged(value, old, new, before, before.meta if inside else OUTSIDE)
        return self._spread[key]
