"""Finds the transformer blocks of a graph, and assigns every node to the prelude, to one block, or to the postlude.

A block list is an outermost `name.<int>` of the module stack. It touches the data of the latent, and its children are
of one class or contain attention. Nodes between two blocks belong to the later block. Nodes that only the output needs
belong to the postlude. All other nodes depend on no block and belong to the prelude.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from mccompile.capture.errors import NoBlocksError
from mccompile.capture.facts import Facts, ScalarFact, extents, is_dynamic

PRELUDE = -1
CHILD = re.compile(r"^((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)\.(\d+)$")
_SDPA = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True, slots=True)
class Partition:
    """`part[node]` is PRELUDE, a block's index, or `len(paths)` for the postlude; get_attr nodes have none."""

    paths: tuple[str, ...]
    part: dict[fx.Node, int]

    @property
    def postlude(self) -> int:
        return len(self.paths)


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node; empty at the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_")]
    return paths[-1] if paths else ""


def _outermost_child(node: fx.Node) -> tuple[str, int, str] | None:
    """(list path, index, class) of the outermost indexed module around a node."""
    for path, cls in (node.meta.get("nn_module_stack") or {}).values():
        found = CHILD.match(path)
        if found:
            return found[1], int(found[2]), cls if isinstance(cls, str) else cls.__name__
    return None


def block_of(node: fx.Node) -> str | None:
    """Path of the outermost indexed module around a node: its block, if its list is one of blocks."""
    found = _outermost_child(node)
    return None if found is None else f"{found[0]}.{found[1]}"


def _block_lists(graph: fx.Graph, facts: Facts, depends: dict[fx.Node, frozenset[str]], source: str) -> list[str]:
    """Paths of the module lists that qualify, in order of first use."""
    classes: dict[str, set[str]] = defaultdict(set)
    children: dict[str, set[int]] = defaultdict(set)
    touches: set[str] = set()
    attends: set[str] = set()
    for node in graph.nodes:
        found = _outermost_child(node) if node.op == "call_function" else None
        if found is None:
            continue
        path, index, cls = found
        classes[path].add(cls)
        children[path].add(index)
        if source in depends[node] and any(is_dynamic(e) for e in extents(facts[node])):
            touches.add(path)
        if node.target is _SDPA:
            attends.add(path)
    alike = {p for p in classes if len(classes[p]) == 1 and len(children[p]) > 1}
    return [p for p in classes if p in touches and p in alike | attends]


def _core(graph: fx.Graph, facts: Facts, lists: list[str]) -> dict[fx.Node, str]:
    """Path of the block that made a node. Numbers have none: export computes each once, wherever it met it first."""
    core: dict[fx.Node, str] = {}
    for node in graph.nodes:
        number = isinstance(facts.get(node), ScalarFact)
        found = _outermost_child(node) if node.op == "call_function" and not number else None
        if found is not None and found[0] in lists:
            core[node] = f"{found[0]}.{found[1]}"
    return core


def partition(
    graph: fx.Graph, flow: nx.DiGraph, facts: Facts, depends: dict[fx.Node, frozenset[str]], source: str
) -> Partition:
    """Gives every node but get_attr to a part. Raises NoBlocksError (MC0403)."""
    lists = _block_lists(graph, facts, depends, source)
    if not lists:
        raise NoBlocksError(
            "the model's module lists",
            f"no nn.ModuleList of like children, or with attention, works on the data of `{source}`",
            "give the model its blocks as an nn.ModuleList",
        )
    core = _core(graph, facts, lists)
    paths = tuple(dict.fromkeys(core.values()))
    index = {path: i for i, path in enumerate(paths)}
    part = _assign(graph, flow, facts, {n: index[p] for n, p in core.items()}, len(paths))
    for user, own in part.items():
        for used in flow.predecessors(user):
            if part.get(used, PRELUDE) > own:
                raise NoBlocksError(
                    paths[min(own, len(paths) - 1)],
                    f"it reads `{used.name}`, which a later block makes",
                    "blocks must run one after the other, each once",
                )
        for root in flow.nodes[user].get("writes", ()):
            if part.get(root, PRELUDE) != own:
                raise NoBlocksError(
                    paths[min(own, len(paths) - 1)],
                    f"it writes in place into `{root.name}`, which was made outside of it",
                    "let a block return a new value instead",
                )
    return Partition(paths, part)


def _assign(
    graph: fx.Graph, flow: nx.DiGraph, facts: Facts, core: dict[fx.Node, int], postlude: int
) -> dict[fx.Node, int]:
    nodes = [n for n in graph.nodes if n.op not in ("get_attr", "output")]
    latest: dict[fx.Node, int] = {}  # the last block that a node depends on
    for node in nodes:
        latest[node] = max((latest.get(p, PRELUDE) for p in flow.predecessors(node)), default=PRELUDE)
        latest[node] = max(latest[node], core.get(node, PRELUDE))
    earliest: dict[fx.Node, int] = {}  # the first block that needs a node
    for node in reversed(nodes):
        users = (earliest.get(s, postlude) for s in flow.successors(node))
        earliest[node] = core[node] if node in core else min(users, default=postlude)
    part: dict[fx.Node, int] = {}
    for node in nodes:
        if node in core:
            part[node] = core[node]
        elif isinstance(facts[node], ScalarFact):
            part[node] = latest[node]
        elif node.op == "placeholder" or (latest[node] == PRELUDE and earliest[node] < postlude):
            part[node] = PRELUDE
        else:
            part[node] = earliest[node]
    return part

