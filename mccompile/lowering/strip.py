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
        output = graph.output_node()
        output.args = (tuple(output.args[0][i] for i in wanted),)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not mutates(node):
            graph.erase_node(node)
    holders = graph.find_nodes(op="placeholder")
    kept = tuple(i for i, n in enumerate(holders) if n.users)
    for node in holders:
        if not node.users:
            graph.erase_node(node)
    graph.lint()
    slim.recompile()
    return Slim(slim, kept)


def cut(block: Slim, wanted: Sequence[fx.Node], writes: bool = True) -> Slim:
    """The part of `block` that makes the values `wanted`, its only outputs; `kept` counts places of the whole block.

    writes: keep operators that write to arguments; without them where nothing wanted is made of what they write to.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in block.module.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[n] for n in wanted))
    for node in [] if writes else reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    slim = strip_unused(fx.GraphModule(block.module, graph))
    return Slim(slim.module, tuple(block.kept[i] for i in slim.kept))


def inputs_of(node: fx.Node) -> set[fx.Node]:
    """The placeholders that a value is made from."""
    found, todo = set(), [node]
    while todo:
        at = todo.pop()
        if at not in found:
            found.add(at)
            todo += at.all_input_nodes
    return {n for n in found if n.op == "placeholder"}


def mutates(node: fx.Node) -> bool:
    """Whether an operator writes to an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def apply_to_slim(call: Callable[..., tuple[object, ...]], slim: Slim) -> Callable[..., tuple[object, ...]]:
    """`call` (the compiled `slim.module`) taking the full argument list."""
    kept = slim.kept
    return lambda *arguments: call(*[arguments[i] for i in kept])
