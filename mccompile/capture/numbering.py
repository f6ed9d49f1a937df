"""Numbers the nodes of a graph in its order, so that its names do not depend on how it was exported."""

from __future__ import annotations

import re

from torch import fx

from mccompile.capture.facts import Fact, Facts

_NUMBERED = re.compile(r"_\d+$")


def number_anew(module: fx.GraphModule, facts: Facts) -> dict[fx.Node, Fact]:
    """Gives the module the same graph, in which the operators of one name are counted. Returns the facts of its nodes.

    Placeholders and attributes keep their names.
    """
    old, graph = module.graph, fx.Graph(tracer_cls=module.graph._tracer_cls)
    built: dict[fx.Node, fx.Node] = {}
    for node in old.nodes:
        name = _NUMBERED.sub("", node.name) if node.op == "call_function" else node.name
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: built[n])
        built[node] = graph.create_node(node.op, node.target, args, kwargs, name, node.type)
        built[node].meta = dict(node.meta)
    graph.set_codegen(old._codegen)
    module.graph = graph
    return {built[node]: fact for node, fact in facts.items() if node in built}
