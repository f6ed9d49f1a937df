"""Cuts the prelude and the postlude out of the captured graph, and makes graphs of chosen prelude values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from mccompile.capture.dependence import flow_graph, needed_for
from mccompile.capture.errors import CaptureBug
from mccompile.capture.part import Input, Part, RowSource, Shared, Stream
from mccompile.capture.types import Assembled


def subgraph(
    module: fx.GraphModule, operands: Sequence[fx.Node], results: Sequence[object], name: str
) -> fx.GraphModule:
    """The module that computes `results` from `operands` (values of `module`), dead code left out.

    A result that is no node is a constant.

    Raises CaptureBug where a result depends on a placeholder that is not among the operands.
    """
    graph = fx.Graph()
    built: dict[fx.Node, fx.Node] = {}
    for node in operands:
        again = f"{node.name}_as_input" if node in built else node.name  # a shared value that is a user input
        built[node] = graph.placeholder(again)
    wanted = [r for r in results if isinstance(r, fx.Node)]
    flow = flow_graph(module.graph, until=wanted)
    flow.remove_edges_from([(p, n) for n in operands if n in flow for p in list(flow.predecessors(n))])
    needed = needed_for(flow, wanted)
    for node in module.graph.nodes:
        if node not in needed or node in built:
            continue
        if node.op == "placeholder":
            raise CaptureBug(f"{name} reads the placeholder `{node.name}`")
        built[node] = graph.node_copy(node, lambda a: built[a])
        built[node].meta = {k: node.meta[k] for k in ("nn_module_stack",) if k in node.meta}
    graph.output(tuple(built[r] if isinstance(r, fx.Node) else r for r in results))
    graph.lint()
    return fx.GraphModule(module, graph, class_name=name)


def nodes_by_name(module: fx.GraphModule, names: Iterable[str]) -> list[fx.Node]:
    """The nodes of these names, in this order; KeyError for an unknown one."""
    found = {n.name: n for n in module.graph.nodes}
    return [found[name] for name in names]


def split_prelude(captured: Assembled, names: Sequence[str]) -> Part:
    """The part that takes the user inputs and gives the prelude values of these names, and nothing else.

    names: of `entry`, `shared` or `sources`. Raises KeyError for a name that the captured graph does not have.
    """
    operands = nodes_by_name(captured.module, captured.inputs)
    module = subgraph(captured.module, operands, nodes_by_name(captured.module, names), "Prelude")
    shared = {p.name for p in captured.shared}
    gives = (Stream(n) if n in captured.entry else Shared(n) if n in shared else RowSource(n) for n in names)
    return Part(module, tuple(Input(n) for n in captured.inputs), tuple(gives))
