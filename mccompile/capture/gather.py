"""The gather part: for the indices of the selected tokens, the rows of every shared value that blocks read.

before: rotary [1, T + L, 1, D], mask [1, 1, L, L], rows "T+video"
after:  index_select(rotary, 1, cat(arange(T), index + T)), index_select(mask, 2, index)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from mccompile.capture.facts import Extent, Facts, is_dynamic
from mccompile.capture.moves import sizes_listed
from mccompile.capture.normalise import drop_dead
from mccompile.capture.part import Index, Part, Positions, Result, RowSource, Shared
from mccompile.capture.rows import RowSpan, RowSpans, has_cut, key
from mccompile.capture.scope import Refused
from mccompile.capture.sink import GraphSize, Replay, Sunk
from mccompile.capture.sizes import find_size

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shared value whose rows blocks need; without an axis it is passed through."""

    value: fx.Node
    axis: int | None
    rows: RowSpans | None
    sunk: Sunk | None = None  # gather a smaller value instead

    @property
    def sources(self) -> tuple[fx.Node, ...]:
        """Prelude values that gather reads for it."""
        return (self.value,) if self.sunk is None else (self.sunk.leaf, *self.sunk.scalars)


@dataclass(slots=True)
class _Gather:
    facts: Facts
    wanted: Sequence[Wanted]
    numbers: Sequence[fx.Node]  # of the prelude, which a size may be read from
    device: torch.device
    graph: fx.Graph = field(default_factory=fx.Graph)
    built: dict[fx.Node, fx.Node] = field(default_factory=dict)
    positions: dict[str, fx.Node] = field(default_factory=dict)

    def call(self, target: object, *args: object, **kwargs: object) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def size(self, extent: Extent) -> fx.Node | int:
        """A size without video tokens."""
        found = self._found(extent)
        found = self._rest(extent) if found is None else found
        if found is None:
            raise Refused("gather", f"no shared value has an axis of the dynamic size {extent[0]}|{extent[1]}")
        return found

    def _found(self, extent: Extent) -> fx.Node | int | None:
        """A size that a shared value has on an axis without video tokens, or that the prelude computes."""
        if not is_dynamic(extent):
            return extent[0]
        whole = ((w.value, () if w.axis is None else (w.axis,)) for w in self.wanted if w.sunk is None)
        found = find_size(extent, self.facts, whole, self.numbers)
        if found is None:
            return None
        value = self.source(found.node)
        return value if found.axis is None else self.call(aten.sym_size.int, value, found.axis)

    def _rest(self, extent: Extent) -> fx.Node | None:
        """What an axis of history and video has beside the video tokens, whose number the prelude computes."""
        for want in self.wanted:
            if want.axis is None or want.rows is None or want.sunk is not None or has_cut(want.rows):
                continue
            sizes = [span.size for span in want.rows]
            if sizes.count(extent) != 1:
                continue
            others = [self._found(size) for size in sizes if size != extent]
            if None not in others:
                total = self.call(aten.sym_size.int, self.source(want.value), want.axis)
                for other in others:
                    total = self.call(operator.sub, total, other)
                return total
        return None

    def source(self, value: fx.Node) -> fx.Node:
        """The placeholder of a prelude value."""
        if value not in self.built:
            last = self.graph.find_nodes(op="placeholder")[-1]
            with self.graph.inserting_after(last):
                self.built[value] = self.graph.placeholder(value.name)
        return self.built[value]

    def tokens(self, count: Extent) -> fx.Node | int:
        """The number of all video tokens."""
        for want in self.wanted:
            if want.axis is None or want.rows is None or want.sunk is not None or has_cut(want.rows):
                continue
            if sum(span.video for span in want.rows) == 1:
                total = self.call(aten.sym_size.int, self.built[want.value], want.axis)
                for span in (s for s in want.rows if not s.video):
                    total = self.call(operator.sub, total, self.size(span.size))
                return total
        return self.size(count)

    def rows(self, rows: RowSpans, index: fx.Node) -> fx.Node:
        """Positions along an axis that holds `rows`: all others, and the selected video tokens."""
        name = key(rows)
        if name not in self.positions:
            self.positions[name] = self._rows(rows, index)
        return self.positions[name]

    def _rows(self, rows: RowSpans, index: fx.Node) -> fx.Node:
        parts: list[fx.Node] = []
        at: fx.Node | int = 0
        for i, span in enumerate(rows):
            last = i == len(rows) - 1
            if span.video:
                own = self._within(span, index) if span.cut else index
                parts.append(own if at == 0 else self.call(aten.add.Tensor, own, at))
                at = at if last else self._plus(at, self.size(span.size) if span.cut else self.tokens(span.count))
            else:
                end = self._plus(at, self.size(span.size))
                parts.append(self.call(aten.arange.start, at, end, device=self.device))
                at = end
        return parts[0] if len(parts) == 1 else self.call(aten.cat.default, parts, 0)

    def _within(self, span: RowSpan, index: fx.Node) -> fx.Node:
        """Positions in a part of the video tokens; tokens of other parts take any row of it."""
        if span.start != (0, 0):
            index = self.call(aten.sub.Tensor, index, self.size(span.start))
        last = self.size(span.size)
        last = last - 1 if isinstance(last, int) else self.call(operator.sub, last, 1)
        return self.call(aten.clamp.default, index, 0, last)

    def _plus(self, a: fx.Node | int, b: fx.Node | int) -> fx.Node | int:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return b if a == 0 else self.call(operator.add, a, b)


    def select(self, want: Wanted, index: fx.Node) -> fx.Node:
        """The rows of a shared value."""
        if want.axis is None or want.rows is None:
            return self.built[want.value]
        positions = self.rows(want.rows, index)
        if want.sunk is None:
            return self.call(aten.index_select.default, self.built[want.value], want.axis, positions)
        return self._replayed(want.sunk, positions)

    def _replayed(self, sunk: Sunk, positions: fx.Node) -> fx.Node:
        coarse = positions
        if sunk.index.over:
            coarse = self.call(aten.floor_divide.default, coarse, self._product(sunk.index.over))
        if sunk.index.modulo is not None:
            coarse = self.call(aten.remainder.Scalar, coarse, self._product((sunk.index.modulo,)))
        value = self.call(aten.index_select.default, self.built[sunk.leaf], sunk.axis, coarse)
        count = self.call(aten.sym_size.int, positions, 0)
        for step in sunk.replay:
            value = self.call(step.node.target, value, *self._arguments(step, count), **step.node.kwargs)
        return value

    def _product(self, sizes: Sequence[GraphSize]) -> fx.Node | int:
        out: fx.Node | int = 1
        for size in sizes:
            value = self.built[size.value] if isinstance(size.value, fx.Node) else size.value
            if isinstance(out, int) and isinstance(value, int):
                out = out * value
            else:
                out = value if out == 1 else self.call(operator.mul, out, value)
        return out

    def _arguments(self, step: Replay, count: fx.Node) -> tuple[object, ...]:
        """The arguments after the first, with `count` rows on the carrier axis and one on the other row axes."""
        rest = list(fx.node.map_arg(step.node.args[1:], lambda a: self.built[a]))
        listed = sizes_listed(step.node, self.facts)
        if listed is not None:
            sizes = rest[listed.place - 1] = list(rest[listed.place - 1])
            for axis in step.rows:
                if 0 <= axis - listed.first < len(sizes):
                    sizes[axis - listed.first] = count if axis == step.carrier and not listed.factors else 1
        return tuple(rest)


def gather_form(
    facts: Facts,
    wanted: Sequence[Wanted],
    row_keys: Sequence[RowSpans],
    numbers: Sequence[fx.Node],
    device: torch.device,
) -> tuple[Part, list[fx.Node]]:
    """The part that takes the index and the sources and gives the wanted values' rows and the positions; the sources.

    numbers: scalars that the prelude computes. Raises Refused where a size is unknown.
    """
    gather = _Gather(facts, wanted, numbers, device)
    index = gather.graph.placeholder("index")
    for source in (s for want in wanted for s in want.sources):
        gather.source(source)
    results = [gather.select(want, index) for want in wanted]
    results += [gather.rows(rows, index) for rows in row_keys]
    gather.graph.output(tuple(results))
    drop_dead(gather.graph)
    gather.graph.lint()
    module, sources = fx.GraphModule(nn.Module(), gather.graph, class_name="Gather"), list(gather.built)
    gives: list[Result] = [Shared(want.value.name) for want in wanted]
    gives += [Positions(key(rows)) for rows in row_keys]
    return Part(module, (Index(), *(RowSource(s.name) for s in sources)), tuple(gives)), sources
