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
    """The graph of `function`: placeholders named and ordered as `inputs`, a tuple ordered as `outputs`.

    `function` sees proxies in place of tensors, so the same text is the graph's source and its reference:
    called with real tensors it computes what the graph computes.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    proxies = {name: fx.Proxy(graph.placeholder(name), tracer) for name in inputs}
    results = function(proxies)
    graph.output(tuple(results[name].node for name in outputs))
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)
