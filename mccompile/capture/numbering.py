"""Numbers the nodes of a graph in its order, so that its names do not depend on how it was exported."""

from __future__ import annotations

import re

from torch import fx

_NUMBERED = re.compile(r"_\d+$")


def number_anew(module: fx.GraphModule) -> None:
    """Names the nodes of a module's graph anew: the operators of one name are counted.

    Placeholders and attributes keep their names.
    """
    graph = module.graph
    graph._graph_namespace = fx.graph._Namespace()
    for node in graph.nodes:
        name = _NUMBERED.sub("", node.name) if node.op == "call_function" else node.name
        node.name = graph._graph_namespace.create_name(name, None)
    module.recompile()
