"""A block cut out of the graph: its own fx.Graph whose placeholders are streams, shared values and weights.

Inside a template every integer comes from the template's own operands. The same nodes can then run on all rows or on a
few. A size that the model computed outside is read again from the axis of an operand.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import torch
from torch import fx

from mccompile.capture.errors import NoBlocksError
from mccompile.capture.factors import TOGETHER
from mccompile.capture.facts import Fact, Facts, ScalarFact, is_dynamic
from mccompile.capture.sizes import find_size, symbol_of


@dataclass(frozen=True, slots=True)
class Template:
    """One block on its own. `values` and `weights` pair a placeholder with the captured node it stands for."""

    path: str
    graph: fx.Graph  # without an output node
    values: dict[fx.Node, fx.Node]  # placeholder -> captured value, in order of first use
    weights: dict[fx.Node, fx.Node]  # placeholder -> captured get_attr
    outputs: dict[fx.Node, fx.Node]  # template node -> captured value that later parts read
    origin: dict[fx.Node, fx.Node]  # every copied node -> captured node
    facts: dict[fx.Node, Fact]


@dataclass(slots=True)
class _Cutter:
    """Copies one block's nodes; `built` maps captured nodes to their copies."""

    captured: Facts
    graph: fx.Graph
    operands: list[fx.Node]  # captured tensors from outside the block, in order of first use
    prelude: Set[fx.Node]
    built: dict[fx.Node, fx.Node] = field(default_factory=dict)
    facts: dict[fx.Node, Fact] = field(default_factory=dict)
    values: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def add(self, captured: fx.Node, new: fx.Node) -> fx.Node:
        self.built[captured] = new
        self.facts[new] = self.captured[captured]
        return new

    def scalar(self, captured: fx.Node) -> fx.Node | int:
        """A number from outside the block: a constant, an operand's size, or an operand of its own."""
        if captured in self.built:
            return self.built[captured]
        fact = self.captured[captured]
        if isinstance(fact, ScalarFact) and fact.values is not None:
            if not is_dynamic(fact.values):
                return fact.values[0]
            tensors = ((operand, ()) for operand in self.operands)
            found = find_size(fact.values, self.captured, tensors, symbol=symbol_of(captured.meta.get("val")))
            if found is not None:
                size = self.graph.call_function(torch.ops.aten.sym_size.int, (self.built[found.node], found.axis))
                return self.add(captured, size)
        arithmetic = all(isinstance(self.captured[a], ScalarFact) for a in captured.all_input_nodes)
        if captured.op == "call_function" and arithmetic and captured not in self.prelude:
            args = fx.node.map_arg(captured.args, self.scalar)
            return self.add(captured, self.graph.call_function(captured.target, args, dict(captured.kwargs)))
        if captured not in self.prelude:
            raise NoBlocksError(
                captured.name,
                "a block reads the size of a value that another block made",
                "pass on the value, not its size",
            )
        new = self.graph.placeholder(captured.name)
        self.values[new] = captured
        return self.add(captured, new)


def cut(path: str, nodes: list[fx.Node], prelude: Set[fx.Node], read_later: Set[fx.Node], facts: Facts) -> Template:
    """The template of the block made of `nodes`, in graph order.

    prelude: nodes of the prelude; read_later: those of the block whose value a later part reads.
    """
    inside = set(nodes)
    outside = dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside)
    operands = [n for n in outside if n.op != "get_attr" and not isinstance(facts[n], ScalarFact)]
    cutter = _Cutter(facts, fx.Graph(), operands, prelude)
    for captured in operands:
        cutter.values[cutter.add(captured, cutter.graph.placeholder(captured.name))] = captured
    weights: dict[fx.Node, fx.Node] = {}
    for captured in (n for n in outside if n.op == "get_attr"):
        weights[cutter.add(captured, cutter.graph.placeholder(captured.name))] = captured
    scalars = {n: cutter.scalar(n) for n in outside if isinstance(facts[n], ScalarFact)}
    for captured in nodes:
        new = cutter.graph.node_copy(captured, lambda a: cutter.built[a] if a in cutter.built else scalars[a])
        new.meta = {k: captured.meta[k] for k in ("nn_module_stack", "val", TOGETHER) if k in captured.meta}
        cutter.add(captured, new)
    outputs = {cutter.built[n]: n for n in nodes if n in read_later}
    origin = {new: captured for captured, new in cutter.built.items()}
    return Template(path, cutter.graph, cutter.values, weights, outputs, origin, cutter.facts)
