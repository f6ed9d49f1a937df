"""Groups blocks whose templates are the same graph up to their weights, so that each kind compiles once.

The last block of a list often returns less, because export drops a text stream that is never read. The block is of the
same kind if the kind's graph, cut down to the block's outputs, equals the block's graph over the same operands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from torch import fx

from mccompile.capture.dependence import flow_graph, needed_for
from mccompile.capture.facts import Fact, TensorFact
from mccompile.capture.template import Template


@dataclass(frozen=True, slots=True)
class Site:
    """One block and, for the nodes of its kind's template, its own; unread outputs have none."""

    template: Template
    nodes: dict[fx.Node, fx.Node]

    def captured(self, placeholder: fx.Node) -> fx.Node:
        """The captured value that a placeholder of the kind's template stands for here."""
        return self.template.values[self.nodes[placeholder]]


@dataclass(frozen=True, slots=True)
class TemplateKind:
    template: Template
    sites: tuple[Site, ...]


def _operand(fact: Fact) -> str:
    return f"{fact.shape}:{fact.dtype}" if isinstance(fact, TensorFact) else type(fact).__name__


@dataclass(frozen=True, slots=True)
class _Position:
    index: int

    def __repr__(self) -> str:
        return f"%{self.index}"


def canonical(template: Template, nodes: list[fx.Node]) -> str:
    """Nodes of a template as text in which names are positions; equal texts are isomorphic."""
    position = {node: _Position(i) for i, node in enumerate(nodes)}
    lines = []
    for node, i in position.items():
        if node.op == "placeholder":
            lines.append(f"{i} {'weight' if node in template.weights else 'value'} {_operand(template.facts[node])}")
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: position[n])
        lines.append(f"{i} {node.target} {args} {kwargs}")
    return "\n".join(lines)


def _cut_down(template: Template) -> Iterator[list[fx.Node]]:
    """Nodes left when some outputs go unread but every operand is still needed."""
    flow = flow_graph(template.graph)
    operands = {n for n in template.graph.nodes if n.op == "placeholder"}
    outputs = list(template.outputs)
    for count in range(1, len(outputs)):
        for kept in combinations(outputs, count):
            needed = needed_for(flow, kept)
            if operands <= needed:
                yield [n for n in template.graph.nodes if n in needed]


def group(templates: list[Template]) -> tuple[list[TemplateKind], list[int]]:
    """The kinds in order of first site, and for every template the index of its kind."""
    own_nodes = [list(t.graph.nodes) for t in templates]
    texts = [canonical(t, nodes) for t, nodes in zip(templates, own_nodes, strict=True)]
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    shape_of: dict[str, tuple[str, list[fx.Node]]] = {text: (text, own_nodes[i]) for text, i in first.items()}
    for text, i in first.items():
        for nodes in _cut_down(templates[i]):
            smaller = canonical(templates[i], nodes)
            if smaller in first and smaller != text and first[smaller] > i:
                shape_of[smaller] = (text, nodes)
    order = list(dict.fromkeys(shape_of[text][0] for text in texts))
    kinds = []
    for kind in order:
        sites = [
            Site(t, dict(zip(shape_of[text][1], nodes, strict=True)))
            for t, text, nodes in zip(templates, texts, own_nodes, strict=True)
            if shape_of[text][0] == kind
        ]
        kinds.append(TemplateKind(templates[first[kind]], tuple(sites)))
    return kinds, [order.index(shape_of[text][0]) for text in texts]
