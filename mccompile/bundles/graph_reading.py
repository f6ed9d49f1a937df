"""Graphs of a bundle from JSON values alone: text of a file never becomes code.

torch.fx writes a graph as Python and executes it. So each name must be one that `write_graph` writes, each operator
must be on the list (allowed.py), and constants are numbers, strings and the types that are named here.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

import torch
from torch import fx

from mccompile.backend.graph_text import GraphJson
from mccompile.bundles.allowed import function_named, is_method

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+){0,30}")
_TYPES = (torch.dtype, torch.layout, torch.memory_format)
_DEEPEST = 20  # lists in lists


def read_graph(entries: GraphJson) -> fx.Graph:
    """The graph that `write_graph` wrote, names included. Raises ValueError for text that it never writes."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    names: set[str] = set()
    if not isinstance(entries, list):
        raise ValueError(f"no graph: {entries!r:.80}")
    for entry in entries:
        match entry:
            case [str(op), str(name), str(target), list(args), dict(kwargs)] if is_name(name) and name not in names:
                names.add(name)
            case _:
                raise ValueError(f"no node: {entry!r:.200}")
        if nodes and nodes[-1].op == "output":
            raise ValueError("a node after the output")
        given = tuple(_read(a, nodes, 0) for a in args)
        if not all(is_name(k) for k in kwargs):
            raise ValueError(f"no names of arguments: {sorted(kwargs)!r:.200}")
        named = {k: _read(v, nodes, 0) for k, v in kwargs.items()}
        nodes.append(_node(graph, op, name, target, given, named))
    if not nodes or nodes[-1].op != "output":
        raise ValueError("a graph without an output")
    graph.lint()
    return graph


def read_value(value: GraphJson) -> object:
    """The constant that `write_value` wrote. Raises ValueError."""
    return _read(value, (), 0)


def is_name(text: str) -> bool:
    """Whether torch.fx may write `text` into a program as a name."""
    return NAME.fullmatch(text) is not None and not keyword.iskeyword(text)


def is_path(text: str) -> bool:
    """Whether `text` names a tensor of a model: parts with dots between them."""
    parts = text.split(".")
    return PATH.fullmatch(text) is not None and not any(keyword.iskeyword(p) or p.startswith("__") for p in parts)


def _node(
    graph: fx.Graph, op: str, name: str, target: str, args: tuple[fx.node.Argument, ...],
    kwargs: dict[str, fx.node.Argument],
) -> fx.Node:  # fmt: skip
    match op:
        case "placeholder" if is_name(target) and not args and not kwargs:
            return graph.create_node(op, target, name=name)
        case "get_attr" if is_path(target) and not args and not kwargs:
            return graph.create_node(op, target, name=name)
        case "output" if target == "output" and len(args) == 1 and not kwargs:
            return graph.create_node(op, target, args, name=name)
        case "call_function":
            return graph.create_node(op, function_named(target), args, kwargs, name=name)
        case "call_method" if is_method(target):
            return graph.create_node(op, target, args, kwargs, name=name)
    raise ValueError(f"no node: {op!r:.80} of {target!r:.80}")


def _read(value: GraphJson, nodes: Sequence[fx.Node], depth: int) -> fx.node.Argument:
    if depth > _DEEPEST:
        raise ValueError("an argument of too many lists in lists")
    if isinstance(value, list):
        return [_read(v, nodes, depth + 1) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"no argument: {value!r:.200}")
    ((kind, body),) = value.items()
    match kind, body:
        case "node", int() if 0 <= body < len(nodes) and not isinstance(body, bool):
            return nodes[body]
        case "float", "inf" | "-inf" | "nan":
            return float(body)
        case "tuple", list():
            return tuple(_read(v, nodes, depth + 1) for v in body)
        case "dict", dict():
            return {k: _read(v, nodes, depth + 1) for k, v in body.items()}
        case "slice", [start, stop, step]:
            return slice(*(_read(v, nodes, depth + 1) for v in (start, stop, step)))
        case "torch", str() if isinstance(found := getattr(torch, body, None), _TYPES):
            return found
        case "device", "cpu" | "cuda" | "cuda:0" | "meta":
            return torch.device(body)
        case "ellipsis", 0:
            return ...
        case "complex", [float() as real, float() as imaginary]:
            return complex(real, imaginary)
    raise ValueError(f"no argument: {value!r:.200}")
