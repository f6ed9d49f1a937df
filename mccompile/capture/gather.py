"""The gather part: from the indices of the selected tokens to the rows of every shared value that blocks read.

before: rotary [1, T + L, 1, D], mask [1, 1, L, L], rows "T+video"
after:  index_select(rotary, 1, cat(arange(T), index + T)), index_select(mask, 2, index)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from mccompile.capture.facts import Extent, Facts, TensorFact, is_dynamic
from mccompile.capture.normalise import drop_dead
from mccompile.capture.rows import Rows, has_video, key
from mccompile.capture.scope import Refused

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Source:
    """A prelude value that gather reads; `rows` of its `axis`, None if it is passed through."""

    value: fx.Node
    axis: int | None
    rows: Rows | None


@dataclass(slots=True)
class _Gather:
    facts: Facts
    sources: Sequence[Source]
    device: torch.device
    graph: fx.Graph = field(default_factory=fx.Graph)
    built: dict[fx.Node, fx.Node] = field(default_factory=dict)
    positions: dict[str, fx.Node] = field(default_factory=dict)

    def call(self, target: object, *args: object, **kwargs: object) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)  # type: ignore[arg-type]

    def size(self, extent: Extent) -> fx.Node | int:
        """A size without video tokens."""
        if not is_dynamic(extent):
            return extent[0]
        for source in self.sources:
            fact = self.facts[source.value]
            for axis, own in enumerate(fact.shape if isinstance(fact, TensorFact) else ()):
                if own == extent and axis != source.axis:
                    return self.call(aten.sym_size.int, self.built[source.value], axis)
        raise Refused("gather", f"no shared value has an axis of the dynamic size {extent[0]}|{extent[1]}")

    def tokens(self) -> fx.Node | int:
        """The number of all video tokens."""
        for source in self.sources:
            if source.axis is not None and source.rows is not None and has_video(source.rows):
                total = self.call(aten.sym_size.int, self.built[source.value], source.axis)
                for span in (s for s in source.rows if not s.video):
                    total = self.call(operator.sub, total, self.size(span.size))
                return total
        raise Refused("gather", "no shared value tells how many tokens there are")

    def rows(self, rows: Rows, index: fx.Node) -> fx.Node:
        """Positions along an axis that holds `rows`: all others, and the selected video tokens."""
        name = key(rows)
        if name not in self.positions:
            self.positions[name] = self._rows(rows, index)
        return self.positions[name]

    def _rows(self, rows: Rows, index: fx.Node) -> fx.Node:
        parts: list[fx.Node] = []
        at: fx.Node | int = 0
        for i, span in enumerate(rows):
            last = i == len(rows) - 1
            if span.video:
                parts.append(index if at == 0 else self.call(aten.add.Tensor, index, at))
                at = at if last else self._plus(at, self.tokens())
            else:
                end = self._plus(at, self.size(span.size))
                parts.append(self.call(aten.arange.start, at, end, device=self.device))
                at = end
        return parts[0] if len(parts) == 1 else self.call(aten.cat.default, parts, 0)

    def _plus(self, a: fx.Node | int, b: fx.Node | int) -> fx.Node | int:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return b if a == 0 else self.call(operator.add, a, b)


def gather_form(
    facts: Facts, sources: Sequence[Source], row_keys: Sequence[Rows], device: torch.device
) -> fx.GraphModule:
    """(index, *sources) -> (*rows of the sources, *rows per key). Raises Refused where a size is unknown."""
    gather = _Gather(facts, sources, device)
    index = gather.graph.placeholder("index")
    for source in sources:
        gather.built[source.value] = gather.graph.placeholder(source.value.name)
    results = []
    for source in sources:
        value = gather.built[source.value]
        if source.axis is not None and source.rows is not None:
            positions = gather.rows(source.rows, index)
            value = gather.call(aten.index_select.default, value, source.axis, positions)
        results.append(value)
    results += [gather.rows(rows, index) for rows in row_keys]
    gather.graph.output(tuple(results))
    drop_dead(gather.graph)
    gather.graph.lint()
    return fx.GraphModule(nn.Module(), gather.graph, class_name="Gather")
