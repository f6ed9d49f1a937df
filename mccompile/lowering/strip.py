"""Inputs that nothing reads are not passed, outputs that nothing wants are not computed.

before: (a, b, c) -> (a + c, b);  wanted (0,) after: (a, c) -> (a + c,), kept (0, 2)
refuses when: never
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True, slots=True)
class Slim:
    """A graph without dead inputs; `kept` are the places of those that remain in the full argument list."""

    module: fx.GraphModule
    kept: tuple[int, ...]

    def select(self, arguments: Sequence[object]) -> list[object]:
        return [arguments[i] for i in self.kept]


def strip_unused(module: fx.GraphModule, wanted: Sequence[int] | None = None) -> Slim:
    """`module` with the outputs `wanted` only (default all), without dead nodes and unused placeholders."""
    slim = fx.GraphModule(module, copy.deepcopy(module.graph))
    graph = slim.graph
    if wanted is not None:
        output = next(n for n in graph.nodes if n.op == "output")
        output.args = (tuple(output.args[0][i] for i in wanted),)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not mutates(node):
            graph.erase_node(node)
    holders = [n for n in graph.nodes if n.op == "placeholder"]
    kept = tuple(i for i, n in enumerate(holders) if n.users)
    for node in holders:
        if not node.users:
            graph.erase_node(node)
    graph.lint()
    slim.recompile()
    return Slim(slim, kept)


def mutates(node: fx.Node) -> bool:
    """Whether an operator writes to an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def apply_to_slim(call: Callable[..., tuple[object, ...]], slim: Slim) -> Callable[..., tuple[object, ...]]:
    """`call` (the compiled `slim.module`) taking the full argument list."""
    kept = slim.kept
    return lambda *arguments: call(*[arguments[i] for i in kept])
