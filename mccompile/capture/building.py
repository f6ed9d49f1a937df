"""A form of a block while it is built: its graph, the sizes that it may read, and copies of the template's nodes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import fx, nn

from mccompile.capture.facts import Extent, ScalarFact, is_dynamic
from mccompile.capture.normalise import drop_dead
from mccompile.capture.part import AttentionSite, Operand, Part, Result, Stream
from mccompile.capture.rows import RowSpans, has_video
from mccompile.capture.scope import Scope
from mccompile.capture.sizes import find_size
from mccompile.capture.streams import Roles
from mccompile.capture.template import Template

aten = torch.ops.aten


def counts_as_data(template: Template, scope: Scope) -> set[fx.Node]:
    """Numbers of a template that were read off token axes: they change with the rows present."""
    found: set[fx.Node] = set()
    for node in template.graph.nodes:
        if node.op == "placeholder" or not isinstance(template.facts.get(node), ScalarFact):
            continue
        reads_count = node.target is aten.sym_size.int and has_video(scope.of(node.args[0])[node.args[1]])
        if reads_count or any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found


def _position(run: RowSpans, rows: RowSpans) -> int | None:
    """Where `run` lies within `rows`."""
    starts = range(len(rows) - len(run) + 1)
    return next((i for i in starts if rows[i : i + len(run)] == run), None)


class WholeValues(Protocol):
    """Values that hold all tokens, in a form that has some rows of the others (mixing.py)."""

    def read_by(self, node: fx.Node, used: fx.Node) -> fx.Node:
        """What stands for an operand of a node of the template."""
        ...

    def over_all(self, node: fx.Node) -> None:
        """Copies an operator that is computed over all tokens."""
        ...

    def leaving(self, output: fx.Node) -> fx.Node:
        """What leaves the block for an output of the template."""
        ...


@dataclass(slots=True)
class BlockForm:
    """A graph in the making; `built` maps template nodes to its own."""

    template: Template
    roles: Roles
    scope: Scope
    graph: fx.Graph = field(default_factory=fx.Graph)
    built: dict[fx.Node, fx.Node] = field(default_factory=dict)
    counts: set[fx.Node] = field(default_factory=set)  # numbers that are no sizes of others
    takes: list[Operand] = field(default_factory=list)
    attentions: list[AttentionSite] = field(default_factory=list)
    mixing: WholeValues | None = None  # the form by rows: what it knows of values that hold all tokens
    _video_count: fx.Node | None = None

    def operands(self, nodes: Sequence[fx.Node], of: Callable[[str], Operand]) -> None:
        """Placeholders of the template, as operands named after the captured values that they stand for."""
        for node in nodes:
            self.built[node] = self.graph.placeholder(node.name)
            self.takes.append(of(self.template.origin[node].name))

    def extra(self, operands: Sequence[Operand], names: Sequence[str]) -> dict[str, fx.Node]:
        """Placeholders that the template does not have, by name."""
        self.takes += operands
        return {name: self.graph.placeholder(re.sub(r"\W+", "_", name)) for name in names}

    def axis_size(self, node: fx.Node, axis: int) -> fx.Node:
        return self.graph.call_function(aten.sym_size.int, (self.built[node], axis))

    def count(self, rows: RowSpans) -> fx.Node | int:
        """How many rows are present: all video tokens in `full`, the selected ones in `partial`."""
        videos = [s for s in rows if s.video]
        if len(videos) > 1:  # the tokens of two streams
            total = self._others(tuple(s for s in rows if not s.video))
            for span in videos:
                total = self._plus(total, self.count((span,)))
            return total
        for node in (*self.roles.streams, *self.roles.shared):
            for axis, own in enumerate(self.scope.labels.get(node, ())):
                start = _position(own, rows) if own is not None and has_video(own) else None
                if own is not None and start is not None:
                    around = self._others((*rows[:start], *rows[start + len(own) :]))
                    return self._plus(around, self.axis_size(node, axis))
        spans = [self._video() for s in rows if s.video]
        return self._plus(self._others(tuple(s for s in rows if not s.video)), spans[0] if spans else 0)

    def _others(self, rows: RowSpans) -> fx.Node | int:
        total: fx.Node | int = 0
        for span in rows:
            total = self._plus(total, self.size(span.size))
        return total

    def _plus(self, a: fx.Node | int, b: fx.Node | int) -> fx.Node | int:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0 or b == 0:
            return b if a == 0 else a
        return self.graph.call_function(operator.add, (a, b))

    def _video(self) -> fx.Node:
        """The number of video tokens present, from an operand's axis that carries them."""
        if self._video_count is None:
            operand, axis, rows = next(
                (node, i, r)
                for node in (*self.roles.streams, *self.roles.shared)
                for i, r in enumerate(self.scope.labels.get(node, ()))
                if r is not None and sum(span.video for span in r) == 1
            )
            self._video_count = self.axis_size(operand, axis)
            for span in (s for s in rows if not s.video):
                self._video_count = self.graph.call_function(
                    operator.sub, (self._video_count, self.size(span.size))
                )
        return self._video_count

    def size(self, extent: Extent) -> fx.Node | int:
        """A size without video tokens: a constant, or that of an operand's axis."""
        if not is_dynamic(extent):
            return extent[0]
        operands = (*self.roles.streams, *self.roles.shared)
        labels = ((n, self.scope.labels.get(n, ())) for n in operands)
        tensors = ((n, [a for a, rows in enumerate(own) if rows is not None]) for n, own in labels)
        numbers = (n for n in self.built if n not in self.counts)
        found = find_size(extent, self.template.facts, tensors, numbers)
        if found is None:
            reason = f"no operand has an axis of the dynamic size {extent[0]}|{extent[1]}"
            raise self.scope.refusal(self.roles.video, reason)
        return self.built[found.node] if found.axis is None else self.axis_size(found.node, found.axis)

    def operand(self, node: fx.Node, used: fx.Node) -> fx.Node:
        """What stands for an operand of a node of the template."""
        return self.built[used] if self.mixing is None else self.mixing.read_by(node, used)

    def copied(self, node: fx.Node, of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A node of the template in this graph, at the module that it came from. of: what stands for its operands."""
        new = self.graph.node_copy(node, of)
        new.meta = {k: node.meta[k] for k in ("nn_module_stack",) if k in node.meta}
        return new

    def copy(self, node: fx.Node) -> fx.Node:
        new = self.copied(node, lambda a: self.operand(node, a))
        self.built[node] = new
        return new

    def streams(self) -> tuple[Stream, ...]:
        """What the block gives."""
        return tuple(Stream(self.template.origin[o].name) for o in self.roles.outputs)

    def finish(self, outputs: Sequence[fx.Node], gives: Sequence[Result], name: str) -> Part:
        self.graph.output(tuple(outputs))
        drop_dead(self.graph)
        self.graph.lint()
        module = fx.GraphModule(nn.Module(), self.graph, class_name=name)
        return Part(module, tuple(self.takes), tuple(gives), tuple(self.attentions))
