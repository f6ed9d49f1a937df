"""Builds a torch.fx graph by running a Python function once over named placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx


def build_graph(
    inputs: Sequence[str],
    function: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    outputs: Sequence[str],
) -> fx.GraphModule:
    """Traces `function` to a graph with the placeholders `inputs` that returns a tuple ordered as `outputs`.

    `function` sees proxies in place of tensors. Called with tensors, it computes what the graph computes: one text is
    the graph's source and its reference.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    proxies = {name: fx.Proxy(graph.placeholder(name), tracer) for name in inputs}
    results = function(proxies)
    graph.output(tuple(results[name].node for name in outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule(torch.nn.Module(), graph)
