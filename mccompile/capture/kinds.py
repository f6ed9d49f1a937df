"""Groups blocks whose templates are the same graph up to their weights, so that each kind compiles once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from mccompile.capture.facts import Fact, TensorFact
from mccompile.capture.template import Template


@dataclass(frozen=True, slots=True)
class Kind:
    """`template` of the first of `sites`; every site's placeholders and nodes correspond by position."""

    template: Template
    sites: tuple[Template, ...]


def _operand(fact: Fact) -> str:
    return f"{fact.shape}:{fact.dtype}" if isinstance(fact, TensorFact) else type(fact).__name__


def canonical(template: Template) -> str:
    """The template as text in which names are positions; equal texts are isomorphic blocks."""
    position = {node: i for i, node in enumerate(template.graph.nodes)}
    lines = []
    for node, i in position.items():
        if node.op == "placeholder":
            lines.append(f"%{i} {'weight' if node in template.weights else 'value'} {_operand(template.facts[node])}")
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _Position(position[n]))
        lines.append(f"%{i} {node.target} {args} {kwargs}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Position:
    index: int

    def __repr__(self) -> str:
        return f"%{self.index}"


def group(templates: list[Template]) -> tuple[list[Kind], list[int]]:
    """The kinds in order of first site, and for every template the index of its kind."""
    texts = [canonical(t) for t in templates]
    order = list(dict.fromkeys(texts))
    kinds = []
    for text in order:
        sites = tuple(t for t, own in zip(templates, texts, strict=True) if own == text)
        kinds.append(Kind(sites[0], sites))
    return kinds, [order.index(text) for text in texts]
