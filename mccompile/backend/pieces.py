"""Graphs that read numbers from their data, in pieces: what such a number decides runs as it is, the rest is compiled.

before: n = item(sum(%mask)); y = linear(%text[:, :n], %w)
after:  three graphs: sum(%mask), compiled; %text[:, :item(%sum)], as it is; linear(%slice, %w), compiled
refuses when: a value that is written in place would be written in one piece and be read or written in another

A compiler does not know such a number, and a slice of so many rows has no size that it could check. A compiled piece
behind it takes a tensor, whose size is checked as any other one is.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from mccompile.backend.role import Backend, GraphCall, Role, Value
from mccompile.capture.counted import is_number, reads_number
from mccompile.capture.dependence import flow_graph, root_of


@dataclass(frozen=True, slots=True)
class GraphPiece:
    """A part of a graph. takes, gives: values, by the names of the nodes of the whole graph."""

    module: fx.GraphModule
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    compiled: bool


@dataclass(slots=True)
class ByPieces:
    """A backend that gives `backend` the pieces of a graph that can be compiled.

    fewer: numbers are taken for smaller ones than the data has, so that a recorder sees sizes that follow them vary.
    divided: whether a graph that it was given reads numbers.
    """

    backend: Backend
    fewer: bool = False
    divided: bool = False

    def __call__(self, module: fx.GraphModule, role: Role) -> GraphCall:
        pieces = divide(module, self.fewer) if reads_numbers(module.graph) else ()
        if not pieces:
            return self.backend(module, role)
        self.divided = True
        calls = [self.backend(p.module, role) if p.compiled else p.module.forward for p in pieces]
        names = [node.name for node in module.graph.find_nodes(op="placeholder")]
        results = module.graph.output_node().args[0]

        def run(*arguments: Value) -> tuple[Value, ...]:
            values = dict(zip(names, arguments, strict=True))
            for piece, call in zip(pieces, calls, strict=True):
                values |= zip(piece.gives, call(*(values[n] for n in piece.takes)), strict=True)
            return tuple(values[r.name] if isinstance(r, fx.Node) else r for r in results)

        return run


def reads_numbers(graph: fx.Graph) -> bool:
    """Whether an operator of the graph makes a number of what a tensor holds."""
    return any(reads_number(node) for node in graph.nodes)


@dataclass(frozen=True, slots=True)
class _Stages:
    """When each node runs: what stands in an even place is compiled, what stands in an odd one runs as it is.

    free: numbers that no data decides. Every piece makes those that it reads.
    """

    of: dict[fx.Node, int]
    free: frozenset[fx.Node]

    def holds(self, graph: fx.Graph) -> bool:
        """Whether each value that is written in place is written in one piece, which no other reads before it."""
        flow = flow_graph(graph)
        places = {node: place for place, node in enumerate(graph.nodes)}
        for write, roots in flow.nodes(data="writes", default=()):
            for root in roots:
                for node in graph.nodes:
                    touches = root_of(node) is root or any(root_of(n) is root for n in node.all_input_nodes)
                    own = root_of(node) is root and node.op not in ("placeholder", "get_attr")
                    early = places[node] < places[write] and self.of[node] > self.of[write]
                    if touches and (early or (own and self.of[node] != self.of[write])):
                        return False
        return True


def _stages(graph: fx.Graph) -> _Stages:
    flow = flow_graph(graph)
    stage: dict[fx.Node, int] = {}
    read: set[fx.Node] = set()
    free: set[fx.Node] = set()
    for node in graph.nodes:
        before = max((stage[p] for p in flow.predecessors(node)), default=0)
        if reads_number(node) or not read.isdisjoint(node.all_input_nodes):
            stage[node] = before + (before % 2 == 0)
            if is_number(node):
                read.add(node)
        elif is_number(node):
            stage[node] = before
            free.add(node)
        else:
            stage[node] = before if node.target is operator.getitem else before + before % 2
    return _Stages(stage, frozenset(free))


def divide(module: fx.GraphModule, fewer: bool = False) -> tuple[GraphPiece, ...]:
    """The pieces of a graph that reads numbers, in the order in which they run; none where it is refused.

    fewer: as of ByPieces.
    """
    graph = module.graph
    stages = _stages(graph)
    if not stages.holds(graph):
        return ()
    results = [r for r in graph.output_node().args[0] if isinstance(r, fx.Node)]
    moves = [n for n in graph.nodes if n.op not in ("placeholder", "output", "get_attr") and n not in stages.free]
    wanted = [r for r in results if r in stages.free]  # the last piece gives them
    last = max((stages.of[n] for n in moves), default=0)
    pieces: list[GraphPiece] = []
    for stage in range(last, -1, -1):  # from the last one, so that it is known what later ones take
        own = [n for n in moves if stages.of[n] == stage]
        taken = {name for piece in pieces for name in piece.takes}
        gives = [n for n in own if n.name in taken or n in results] + (wanted if stage == last else [])
        if own or (stage == last and wanted):
            pieces.insert(0, _piece(module, stages, own, gives, stage, fewer))
    return tuple(pieces)


def _piece(
    module: fx.GraphModule, stages: _Stages, own: Sequence[fx.Node], gives: Sequence[fx.Node], stage: int, fewer: bool
) -> GraphPiece:
    """before: `own` among the other nodes;  after: they alone, with the free numbers that they read"""
    graph = fx.Graph()
    taken = _taken(stages, own, gives)
    built = {node: graph.placeholder(node.name) for node in taken}

    def value(node: fx.Node) -> fx.Node:
        if node not in built:
            built[node] = graph.node_copy(node, value)
        return built[node]

    for node in own:
        made = value(node)
        if fewer and reads_number(node):
            built[node] = graph.call_function(_one_fewer, (made,))
    graph.output(tuple(value(n) for n in gives))
    graph.lint()
    cut = fx.GraphModule(module, graph)
    return GraphPiece(cut, tuple(n.name for n in taken), tuple(n.name for n in gives), stage % 2 == 0)


def _taken(stages: _Stages, own: Sequence[fx.Node], gives: Sequence[fx.Node]) -> list[fx.Node]:
    """The values of other pieces, and the inputs, that a piece takes."""
    inside, found = set(own), dict[fx.Node, None]()
    todo = [n for node in own for n in node.all_input_nodes] + [n for n in gives if n in stages.free]
    while todo:
        node = todo.pop(0)
        if node in stages.free:
            todo.extend(node.all_input_nodes)
        elif node not in inside and node.op != "get_attr":
            found[node] = None
    return list(found)


def _one_fewer(number: object) -> object:
    """A count that is smaller by one, where that leaves more than one: a size of one is not taken for a varied one."""
    return number - 1 if type(number) is int and number > 2 else number
