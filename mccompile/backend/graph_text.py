"""torch.fx graphs as JSON values, without pickle; equal graphs have equal texts.

Nodes are numbered in order, so names do not matter to `fingerprint`; they are kept for bundles/graph_reading.py.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from typing import TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload

from mccompile.capture.part import attribute

GraphJson: TypeAlias = "bool | int | float | str | list[GraphJson] | dict[str, GraphJson] | None"
MODULES = ("math", "operator", "torch", "torch.nn.functional")  # where plain functions of a graph may come from


class UnwritableGraph(TypeError):
    """A graph holds something that has no text form; the backend or bundle that asked says where."""


def write_graph(graph: fx.Graph) -> list[GraphJson]:
    """One entry per node: [op, name, target, args, kwargs]. Raises UnwritableGraph."""
    number = {node: i for i, node in enumerate(graph.nodes)}
    entries: list[GraphJson] = []
    for node in graph.nodes:
        target = _write_target(node.target) if node.op == "call_function" else str(node.target)
        args = [_write(a, number) for a in node.args]
        kwargs: dict[str, GraphJson] = {k: _write(v, number) for k, v in node.kwargs.items()}
        entries.append([node.op, node.name, target, args, kwargs])
    return entries


def fingerprint(module: fx.GraphModule) -> str:
    """32 hex digits that are equal for equal graphs (names aside) over attributes of equal shape and dtype."""
    lines: list[GraphJson] = []
    place = 0
    for entry in write_graph(module.graph):
        assert isinstance(entry, list)
        op, _, target, args, kwargs = entry
        if op == "placeholder":
            target, place = f"input {place}", place + 1
        elif op == "get_attr":
            assert isinstance(target, str)
            value = attribute(module, target)
            target = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else repr(value)
        lines.append([op, target, args, kwargs])
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:32]


def write_value(value: object) -> GraphJson:
    """A constant of a graph or of a call as JSON. Raises UnwritableGraph."""
    return _write(value, {})


def _write_target(target: object) -> str:
    if isinstance(target, OpOverload):
        namespace, _, op = target._schema.name.partition("::")
        return f"torch.ops.{namespace}.{op}.{target._overloadname}"
    name = getattr(target, "__name__", "")
    for home in MODULES:
        if getattr(importlib.import_module(home), name, None) is target:
            return f"{home}.{name}"
    raise UnwritableGraph(f"the function {target!r}")


def _write(value: object, number: dict[fx.Node, int]) -> GraphJson:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case fx.Node():
            return {"node": number[value]}
        case tuple():  # torch.Size too
            return {"tuple": [_write(v, number) for v in value]}
        case list():
            return [_write(v, number) for v in value]
        case dict() if all(isinstance(k, str) for k in value):
            return {"dict": {k: _write(v, number) for k, v in value.items()}}
        case slice():
            return {"slice": [_write(v, number) for v in (value.start, value.stop, value.step)]}
        case torch.dtype() | torch.layout() | torch.memory_format():
            return {"torch": str(value).removeprefix("torch.")}
        case torch.device():
            return {"device": str(value)}
        case _ if value is ...:
            return {"ellipsis": 0}
        case complex():
            return {"complex": [value.real, value.imag]}
    raise UnwritableGraph(f"the argument {value!r} of type {type(value).__name__}")
