"""Keeps the tokens of a sample together, where blocks attend within a frame and along time in turn (Latte).

before: x: [B F, P, C];  x = x + attend(q(x), k(x), v(x));  x = flatten(transpose(unflatten(x, 0, [B, F]), 1, 2), 0, 1)
after:  x: [B, F P, C];  x = x + join(attend(part(q(x)), part(k(x)), part(v(x))));   the axes that moved stay
refuses when: something is written in place, or a value that has all tokens is of no known axes

The blocks may also be given tokens that are together, and take them apart themselves (Open-Sora).

All that runs on each token by itself runs on tokens that are together. What mixes them (attention) gets its operands as
the model has them, and what it gives is put together again. So a block has one axis of tokens, and rows of it can be
selected. What is repeated for each frame or place is left as it was before, and what differs between them is
repeated over their tokens before the blocks. Which axis holds what matters only for how much is gained: any consistent
choice gives the same numbers, and verify.py proves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from mccompile.capture.dependence import data_inputs, flow_graph, root_of, written_by
from mccompile.capture.factors import FRAMES, ONE, PLACES, SAMPLES, Apart, Unfit, times
from mccompile.capture.facts import Extent, Fact, ScalarFact, TensorFact, is_dynamic
from mccompile.capture.normalise import drop_dead, order
from mccompile.capture.sizes import find_size
from mccompile.capture.stacks import block_of
from mccompile.capture.together_rules import ruled
from mccompile.capture.token_values import OUTSIDE, RESHAPES, TokenValues

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Joined:
    """A graph in which tokens are together, and the facts of its nodes."""

    graph: fx.Graph
    facts: dict[fx.Node, Fact]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What enters the first block, its factors, and how many samples, frames and places there are."""

    value: fx.Node
    own: Apart
    extents: dict[str, Extent]


def together(graph: fx.Graph, facts: Mapping[fx.Node, Fact], source: str) -> Joined | None:
    """The graph with tokens together; None where they are already, or where they cannot be. source: the latent."""
    entry = _entry(graph, facts, source)
    if entry is None:
        return None
    copy, built = fx.Graph(tracer_cls=graph._tracer_cls), dict[fx.Node, fx.Node]()
    copy.output(copy.graph_copy(graph, built))
    copy.set_codegen(graph._codegen)
    for node, new in (*built.items(), (graph.output_node(), copy.output_node())):
        new.meta = dict(node.meta)
        built[node] = new
    values = TokenValues(copy, {built[n]: fact for n, fact in facts.items() if n in built}, entry.extents)
    try:
        _rewrite(values, built[entry.value], entry.own)
    except Unfit:
        return None
    order(copy)
    drop_dead(copy)
    copy.lint()
    return Joined(copy, values.facts)


def _entry(graph: fx.Graph, facts: Mapping[fx.Node, Fact], source: str) -> _Entry | None:
    """What enters the first block with the data of the latent, if its tokens are taken apart there or in the blocks."""
    latent = facts[next(n for n in graph.find_nodes(op="placeholder") if n.name == source)]
    first = _first(graph, facts, source)
    fact = facts[first] if first is not None else None
    if first is None or not isinstance(fact, TensorFact) or not isinstance(latent, TensorFact) or len(fact.shape) < 3:
        return None
    samples, several = latent.shape[0], fact.shape[0]
    varying = [extent for extent in fact.shape[1:] if is_dynamic(extent)]
    if len(varying) != 1:
        return None
    rest = ((),) * (len(fact.shape) - 2)
    if samples == several and is_dynamic(fact.shape[1]):
        parted = _parted(graph, facts, samples, varying[0])
        own = Apart(((SAMPLES,), (FRAMES, PLACES), *rest), varies=True)
        return None if parted is None else _Entry(first, own, {SAMPLES: samples, FRAMES: parted[0], PLACES: parted[1]})
    if not all(a > b and a % b == 0 for a, b in zip(several, samples, strict=True)):
        return None
    own = Apart(((SAMPLES, FRAMES), *((PLACES,) if is_dynamic(e) else () for e in fact.shape[1:])), varies=True)
    frames = several[0] // samples[0], several[1] // samples[1]
    return _Entry(first, own, {SAMPLES: samples, FRAMES: frames, PLACES: varying[0]})


def _parted(
    graph: fx.Graph, facts: Mapping[fx.Node, Fact], samples: Extent, tokens: Extent
) -> tuple[Extent, Extent] | None:
    """How many frames and places the first block that takes tokens [samples, tokens, ...] apart makes of them."""
    for node in graph.nodes:
        source, new = node.args[0] if node.args else None, facts.get(node)
        old = facts.get(source) if isinstance(source, fx.Node) else None
        if node.target not in RESHAPES or block_of(node) is None or not isinstance(old, TensorFact):
            continue
        if not isinstance(new, TensorFact) or old.shape[:2] != (samples, tokens) or len(new.shape) < 3:
            continue
        first, second, third = new.shape[:3]
        if (first, times(second, third)) == (samples, tokens) and new.shape[3:] == old.shape[2:]:
            found = second, third
        elif times(first, second) == times(samples, tokens) and new.shape[2:] == old.shape[2:]:
            found = (first[0] // samples[0], first[1] // samples[1]), second
        else:
            continue
        if ONE not in found and times(*found) == tokens:
            return found
    return None


def _first(graph: fx.Graph, facts: Mapping[fx.Node, Fact], source: str) -> fx.Node | None:
    """The value from before the blocks, of the latent's data, that a block reads first."""
    depends = data_inputs(graph, flow_graph(graph), facts)
    for node in graph.nodes:
        if node.op != "call_function" or block_of(node) is None:
            continue
        for used in node.all_input_nodes:
            if block_of(used) is None and source in depends[used] and isinstance(facts.get(used), TensorFact):
                return used
    return None


def _rewrite(values: TokenValues, entry: fx.Node, own: Apart) -> None:
    """Rewrites the graph from what enters the first block to the last one. Raises Unfit, also if nothing is gained."""
    nodes = list(values.graph.nodes)
    last = max(i for i, n in enumerate(nodes) if block_of(n) is not None and n.op == "call_function")
    _count(values, entry, nodes)
    follows = nodes[nodes.index(entry) + 1]
    values.own[entry] = own
    values.made[entry] = values.rearranged(entry, own.folded, own.together, follows, OUTSIDE)
    values.apart.add(entry)
    behind = {entry}  # all that depends on what enters the first block
    for node in nodes[: last + 1]:
        if node.op != "call_function" or isinstance(values.facts.get(node), ScalarFact):
            continue
        if written_by(node) and _is_held(values, node):
            raise Unfit
        if not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        if node in behind or block_of(node) is not None:
            _step(values, node)
        elif node is not entry:
            _step_outside(values, node)
    if not any(n.target is aten.linear.default and own.folded != own.together for n, own in values.own.items()):
        raise Unfit  # only what mixes tokens takes them apart
    for node in nodes[last + 1 :]:
        values.read_apart(node, OUTSIDE)


def _count(values: TokenValues, entry: fx.Node, nodes: list[fx.Node]) -> None:
    """Finds the numbers of samples, frames and places in the graph. Raises Unfit where it has one of them nowhere."""
    place = nodes.index(entry) + 1
    before, follows = nodes[:place], nodes[place]
    tensors = [(n, ()) for n in before if n.op != "get_attr" and isinstance(values.facts.get(n), TensorFact)]
    numbers = [n for n in nodes if isinstance(values.facts.get(n), ScalarFact) and (n in before or _of_inputs(n))]
    for name, extent in values.extents.items():
        if not is_dynamic(extent):
            values.numbers[name] = extent[0]
            continue
        found = find_size(extent, values.facts, tensors, numbers)
        if found is None:
            raise Unfit
        values.numbers[name] = found.node
        if found.axis is not None:
            size = found.node.meta["val"].shape[found.axis]
            number = values.put(aten.sym_size.int, (found.node, found.axis), ScalarFact(extent), follows, OUTSIDE)
            number.meta["val"] = size
            values.numbers[name] = number


def _of_inputs(number: fx.Node) -> bool:
    """Whether a number is computed from the sizes of what the model is given."""
    used = number.all_input_nodes
    if number.target is aten.sym_size.int:
        return used[0].op == "placeholder"
    return number.op == "placeholder" or (bool(used) and all(map(_of_inputs, used)))


def _is_held(values: TokenValues, node: fx.Node) -> bool:
    """Whether an operator writes into a value that is known to have tokens, or into what is made of one."""
    held = {root_of(value) for value in (*values.own, *values.made.values())}
    return any(root_of(target) in held for target in written_by(node))


def _step_outside(values: TokenValues, node: fx.Node) -> None:
    """Makes what is repeated for each frame or place once a sample, before the blocks. The model's value stays too."""
    values.note_repeated(node)
    if node not in values.own and any(operand in values.own for operand in node.all_input_nodes):
        try:
            values.own[node], values.made[node] = ruled(values, node)
        except Unfit:
            return
    if node in values.own:
        values.apart.add(node)


def _step(values: TokenValues, node: fx.Node) -> None:
    """Gives an operator tokens that are together, or its operands as the model has them. Raises Unfit."""
    for operand in node.all_input_nodes:
        values.note_shared(operand, node)
    operands = [operand for operand in node.all_input_nodes if operand in values.own]
    if not operands:
        _step_outside(values, node)
        return
    try:
        values.own[node], values.made[node] = ruled(values, node)
    except Unfit:
        values.read_apart(node, node.meta)
        _note_axes(values, node, operands)


def _note_axes(values: TokenValues, node: fx.Node, operands: list[fx.Node]) -> None:
    """Notes the axes of what mixes tokens: those of the first operand that has as many along each of them."""
    fact = values.facts.get(node)
    for own in (values.own[operand] for operand in operands if values.own[operand].varies):
        shape = fact.shape if isinstance(fact, TensorFact) else ()
        if len(own.axes) == len(shape) and values.fits(own, shape):
            values.own[node] = own
            values.apart.add(node)
            return
