"""Puts the nodes of a block in the place of every operator that stands for a block like it (repeat.py).

before: made = ended([x], [y], "blocks.1"); z = repeat([made[0]], "blocks.2", "blocks.1", [0])[0]
after:  a copy of the nodes between x and y, with y for x and the weights of blocks.2, and its result for z
refuses when: a node of the first block reads a value that the block was not given, or has a size that depends on data
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from mccompile.capture.repeat import ENDED, REPEAT


class NotUnfolded(Exception):
    """The nodes of a block cannot stand for those of another; the message says why."""


@dataclass(frozen=True, slots=True)
class _First:
    """A block that others repeat: its nodes in order, what it was given, and what it made.

    nodes: without numbers, which all blocks read alike.
    """

    path: str
    nodes: Sequence[fx.Node]
    given: Sequence[fx.Node]
    made: Sequence[fx.Node]


def unfold(module: fx.GraphModule, model: nn.Module, repeated: Mapping[str, str]) -> dict[fx.Node, fx.Node]:
    """Replaces the operators of repeat.py in a graph without checks and contexts.

    repeated: for the path of each block that repeats another the path of that one.
    Returns for each new node the one that it copies. Raises NotUnfolded.
    """
    inside = _inside(module.graph, set(repeated.values()))
    weights = _Weights(module, model, repeated)
    firsts: dict[str, _First] = {}
    copies: dict[fx.Node, fx.Node] = {}
    for mark in [n for n in module.graph.nodes if n.target in (ENDED, REPEAT)]:
        made: Sequence[fx.Node]
        if mark.target is ENDED:
            given, made, path = mark.args
            firsts[path] = _First(path, [n for n in inside[path] if not _is_number(n)], given, made)
        else:
            given, path, like, *_ = mark.args
            copier = _Copier(module.graph, firsts[like], path, weights)
            made = copier.copied_before(mark, given)
            copies |= copier.copies
        for user in list(mark.users):
            user.replace_all_uses_with(made[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(mark)
    module.graph.lint()
    return copies


def _inside(graph: fx.Graph, paths: set[str]) -> dict[str, list[fx.Node]]:
    """The nodes that the modules at these paths made, in order, without the operators of repeat.py."""
    found: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        read = node.args[0] if node.target is operator.getitem else node
        if node.op != "call_function" or (isinstance(read, fx.Node) and read.target in (ENDED, REPEAT)):
            continue
        stack = (path for path, _ in (node.meta.get("nn_module_stack") or {}).values())
        own = next((path for path in stack if path in paths), None)
        if own is not None:
            found[own].append(node)
    return found


class _Weights:
    """The names of a model's weights, and the nodes of a graph that read them.

    Those of blocks that repeat another are given to the graph where it has none: in the order of the model's weights,
    as an export does that reads them.
    """

    def __init__(self, module: fx.GraphModule, model: nn.Module, repeated: Iterable[str]) -> None:
        self.nodes = {str(n.target): n for n in module.graph.find_nodes(op="get_attr")}
        both = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        values = {name: value for named in both for name, value in named}
        self.ids = {name: id(value) for name, value in values.items()}
        self.known_as: dict[int, list[str]] = defaultdict(list)
        for name, number in self.ids.items():
            self.known_as[number].append(name)
        inside = tuple(f"{path}." for path in repeated)
        before: fx.Node | None = None
        for name, value in values.items():
            if name.startswith(inside) and not any(n in self.nodes for n in self.known_as[id(value)]):
                self.nodes[name] = _given(module, model, name, before)
            before = self.nodes.get(name, before)

    def counterpart(self, node: fx.Node, first: str, path: str) -> fx.Node:
        """What the block at `path` reads where the one at `first` reads the weight or constant `node`."""
        name = str(node.target)
        own = [n for n in self.known_as[self.ids.get(name, 0)] if n.startswith(f"{first}.")]
        if not own:
            return node  # of no block, or a constant
        same = {self.ids[path + n.removeprefix(first)] for n in own}
        if same == {self.ids[name]}:
            return node  # both share it
        found = [self.nodes[n] for number in same for n in self.known_as[number] if n in self.nodes]
        if len(same) != 1 or len(found) != 1:
            raise NotUnfolded(f"the weight of `{path}` for `{name}` is not the only one")
        return found[0]


def _given(module: fx.GraphModule, model: nn.Module, name: str, before: fx.Node | None) -> fx.Node:
    """Gives a graph a weight of the model; the node that reads it stands behind another one, or at the head."""
    path, _, last = name.rpartition(".")
    owner: nn.Module = module
    for part in path.split(".") if path else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    theirs = model.get_submodule(path)
    if last in theirs._parameters:
        owner.register_parameter(last, theirs._parameters[last])
    else:
        owner.register_buffer(last, theirs._buffers[last], last not in theirs._non_persistent_buffers_set)
    graph = module.graph
    with graph.inserting_after(before) if before else graph.inserting_before(next(iter(graph.nodes))):
        return graph.get_attr(name)


@dataclass(slots=True)
class _Copier:
    """Copies the nodes of a block for another; `built` maps them, and what the block was given, to the new ones."""

    graph: fx.Graph
    first: _First
    path: str
    weights: _Weights
    built: dict[fx.Node, fx.Node] = field(default_factory=dict)
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def copied_before(self, mark: fx.Node, given: Sequence[fx.Node]) -> list[fx.Node]:
        """What the other block makes of `given`, by new nodes in front of `mark`."""
        for theirs, own in zip(self.first.given, given, strict=True):
            if self.built.setdefault(theirs, own) is not own:
                raise NotUnfolded(f"`{self.path}` is given two values where `{self.first.path}` is given one")
        with self.graph.inserting_before(mark):
            for node in self.first.nodes:
                new = self.graph.node_copy(node, self._read)
                new.meta = {**node.meta, "nn_module_stack": self._stack(node)}
                self.built[node], self.copies[new] = new, node
        return [self._read(node) for node in self.first.made]

    def _read(self, node: fx.Node) -> fx.Node:
        if node in self.built:
            return self.built[node]
        if node.op == "get_attr":
            return self.weights.counterpart(node, self.first.path, self.path)
        if not _is_number(node):
            raise NotUnfolded(f"`{self.first.path}` reads `{node.name}`, which it was not given")
        return node

    def _stack(self, node: fx.Node) -> dict[str, tuple[str, object]]:
        first, stack = self.first.path, node.meta["nn_module_stack"]

        def moved(path: str) -> str:
            return self.path + path.removeprefix(first) if path == first or path.startswith(f"{first}.") else path

        return {key: (moved(path), cls) for key, (path, cls) in stack.items()}


def _is_number(node: fx.Node) -> bool:
    """Whether a node computes with sizes alone. Raises NotUnfolded for a number that depends on data."""
    value = node.meta.get("val")
    if not isinstance(value, int | float | torch.SymInt | torch.SymFloat | torch.SymBool):
        return False
    if free_unbacked_symbols(value):
        raise NotUnfolded(f"`{node.name}` depends on data")
    return True
