"""What a block computes from the prompt alone is computed once: keys and values of the text, out of every call.

before: partial: %k = linear(%text, %w), %q = linear(%x_rows, ...), sdpa(%q, %k, ...)
after:  once: (text, w) -> (%k,);  partial: sdpa(%q, %once_0, ...)
refuses when: never; values made of weights alone, and views, stay where they are
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from mccompile.lowering.strip import Slim, cut, inputs_of, mutates, strip_unused


@dataclass(frozen=True, slots=True)
class Hoisted:
    """rest: the block with the values of `once` as its last inputs. once: None where there are none."""

    rest: Slim
    once: Slim | None


def hoist(block: Slim, given: frozenset[int], weights: range, places: int) -> Hoisted:
    """Splits `block` by what its inputs at the places `given` (the same through a request) and `weights` determine.

    places: length of the argument list that `block.kept` counts in; the values of `once` follow it.
    """
    module = fx.GraphModule(block.module, copy.deepcopy(block.module.graph))
    holders = module.graph.find_nodes(op="placeholder")
    place = dict(zip(holders, block.kept, strict=True))
    constant: dict[fx.Node, bool] = {}  # constant nodes: whether it pays to keep the value
    for node in module.graph.nodes:
        if node in place and (place[node] in given or place[node] in weights):
            constant[node] = False
        elif _repeatable(node) and node.all_input_nodes and all(n in constant for n in node.all_input_nodes):
            works = _computes(node) and any(place[n] in given for n in inputs_of(node))
            constant[node] = works or any(constant[n] for n in node.all_input_nodes)
    front = [n for n, pays in constant.items() if pays and any(u not in constant for u in n.users)]
    front = [n for n in front if not _is_number(n)]
    if not front:
        return Hoisted(block, None)
    once = cut(Slim(module, block.kept), front, writes=False)  # no constant is made of what is written to
    return Hoisted(_without(module, front, block.kept, places), once)


def _without(module: fx.GraphModule, front: list[fx.Node], kept: tuple[int, ...], last: int) -> Slim:
    """`module` with the values of `front` as further inputs, at the places from `last` on."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    front_inputs = {n: graph.placeholder(f"once_{i}") for i, n in enumerate(front)}
    for node in module.graph.nodes:
        if node in front_inputs:
            copies[node] = front_inputs[node]
        elif node.op != "placeholder":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    slim = strip_unused(fx.GraphModule(module, graph))
    places = (*kept, *range(last, last + len(front)))
    return Slim(slim.module, tuple(places[i] for i in slim.kept))


def _repeatable(node: fx.Node) -> bool:
    if node.op != "call_function" or mutates(node):
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags and not any(mutates(u) for u in _aliases(node))


def _aliases(node: fx.Node) -> Iterable[fx.Node]:
    """Readers of a value, and of its views: what may write into it."""
    for user in node.users:
        yield user
        if getattr(user.target, "is_view", False):
            yield from _aliases(user)


def _computes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and not _is_number(node) and not node.target.is_view


def _is_number(node: fx.Node) -> bool:
    """Sizes and arithmetic of sizes; what is taken from a tuple counts as its tuple does."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return False
    return not isinstance(node.target, torch._ops.OpOverload) or "sym_" in node.target._opname

