"""A graph with everything a role may have, small enough to compile in seconds; its operator is a custom one.

(x [n, 8], scale, count, buffer [L, 8], rows [n], bounds) -> (rows of all [n, 8], sum of the buffer, count + n)
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from mccompile.backend.record import Recorder, RoleRecording
from mccompile.backend.role import Role

LIBRARY = torch.library.Library("toybackend", "DEF")
LIBRARY.define("shifted(Tensor x, Tensor bounds) -> Tensor")
LIBRARY.impl("shifted", lambda x, bounds: x + bounds.sum(), "CompositeExplicitAutograd")
torch.library.register_fake("toybackend::shifted", lambda x, bounds: torch.empty_like(x), lib=LIBRARY)
aten = torch.ops.aten
ROLE = Role("observe")


def module() -> fx.GraphModule:
    root = nn.Module()
    root.inner = nn.Linear(8, 8)
    generator = torch.Generator().manual_seed(0)
    root.inner.weight.data = torch.randn(8, 8, generator=generator)
    graph = fx.Graph()
    x, scale, count, buffer, rows, bounds = map(graph.placeholder, ("x", "scale", "count", "buffer", "rows", "bounds"))
    y = graph.call_function(aten.linear.default, (x, graph.get_attr("inner.weight")))
    y = graph.call_function(torch.ops.toybackend.shifted.default, (y, bounds))
    y = graph.call_function(aten.mul.Tensor, (y, scale))
    y = graph.call_function(aten.add.Tensor, (y, count))
    graph.call_function(aten.index_copy_.default, (buffer, 0, rows, y))
    total = graph.call_function(aten.sum.dim_IntList, (buffer, [0]))
    size = graph.call_function(aten.sym_size.int, (x, 0))
    graph.output((y, total, graph.call_function(operator.add, (count, size))))
    return fx.GraphModule(root, graph)


def call(n: int, length: int, count: int, groups: int = 1) -> tuple[object, ...]:
    """Arguments of integer values, so that results are exact."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(-4, 5, (n, 8), generator=generator).float()
    rows = torch.randperm(length, generator=generator)[:n]
    return x, 2, count, torch.ones(length, 8), rows, torch.arange(3 * groups).view(groups, 3)


def recording() -> RoleRecording:
    recorder = Recorder()
    run = recorder(module(), ROLE)
    for arguments in (call(5, 11, 3), call(7, 13, 4), call(7, 11, 9)):
        run(*arguments)
    (found,) = recorder.recordings.values()
    return found
