"""Finds the sublayers of a block: what stands between its residual adds.

before: x1 = x0 + f(x0); x2 = x1 + g(x1, text); x3 = x2 + h(x2)
after:  `attn` from x0 to x1, `cross` from x1 to x2, `ffn` from x2 to x3
refuses when: a stream leaves the block otherwise than by additions to the one that entered, or what comes after an add
              reads more of the block than its streams

A block of several streams (video and text) is cut where one value of each stream is all that later operators read.
The names are those of the attention in between: `attn` where video tokens are among its keys, `cross` where they are
not, and `ffn` where nothing attends. `ffn` then is token-wise, because capture has proved it of every other operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

import networkx as nx
import torch
from torch import fx

from mccompile.capture.dependence import flow_graph, needed_for
from mccompile.capture.part import Part, Stream
from mccompile.ir import SublayerName
from mccompile.lowering.hoist import is_attention

aten = torch.ops.aten
_CASTS = frozenset((aten.to.dtype, aten.type_as.default, aten.clone.default, aten.contiguous.default))
_ADD = aten.add.Tensor

SublayerValues = Mapping[Stream, fx.Node]
"""For each stream that enters a block the value that stands for it at some depth of the block."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A place in a block. values: what all streams are there. inside: for streams that a sublayer is about to continue
    what it has made of them: the sum is still to come, and the gate in front of it."""

    values: SublayerValues
    inside: SublayerValues

    def nodes(self) -> set[fx.Node]:
        """All that crosses the cut."""
        return {*self.values.values(), *self.inside.values()}


class Inseparable(Exception):
    """A block cannot be cut, or one of its pieces has no name; the message says why."""


@dataclass(frozen=True, slots=True)
class SublayerSpan:
    """What a block computes between two cuts.

    nodes: what it computes, operands too. sizes: nodes that read nothing but the size of a stream as it was earlier,
    with that stream.
    """

    before: Cut
    after: Cut
    nodes: frozenset[fx.Node]
    sizes: Mapping[fx.Node, Stream]

    @property
    def changed(self) -> tuple[Stream, ...]:
        """The streams that it continues."""
        return tuple(s for s, value in self.after.values.items() if value is not self.before.values[s])


class Chain:
    """A block's form on all rows, or on selected rows, as a chain of sublayers with the cuts between them.

    ends: for each stream that enters the one that continues it. video: those that enter with video tokens.
    token_wise: whether capture has proved that only attention mixes tokens. Raises Inseparable.
    """

    def __init__(self, part: Part, ends: Mapping[Stream, Stream], video: frozenset[Stream], token_wise: bool) -> None:
        self.part, self.ends = part, ends
        self._flow: nx.DiGraph = flow_graph(part.graph)
        holders, results = part.holders(), part.results()
        self._entries: SublayerValues = {s: holders[s] for s in ends}
        self._exits: SublayerValues = {s: _node(results[end], s) for s, end in ends.items()}
        self._trunks = {s: _trunk(self._exits[s], self._entries[s], s) for s in ends}
        self._of_stream = {node: s for s, trunk in self._trunks.items() for node in trunk}
        self._video = video
        self._writes = [n for n, roots in self._flow.nodes(data="writes", default=()) if _outside(roots)]
        every = self._cuts()
        named = [self._name(self.between(*ends), token_wise) for ends in pairwise(every)]
        firsts = [i for i, name in enumerate(named) if i == 0 or name != named[i - 1]]  # alike neighbours are one
        self.names: tuple[SublayerName, ...] = tuple(named[i] for i in firsts)
        self.cuts: tuple[Cut, ...] = (*(every[i] for i in firsts), every[-1])

    def between(self, before: Cut, after: Cut) -> SublayerSpan:
        """What the block computes between two cuts."""
        known, done = needed_for(self._flow, before.nodes()), needed_for(self._flow, after.nodes())
        writes = [w for w in self._writes if _written(w) in done and _written(w) not in known]
        found = self._reached([*(after.nodes() - before.nodes()), *writes], before)
        assert found is not None
        return SublayerSpan(before, after, *found)

    def inside(self, number: int) -> Cut:
        """The cut within a sublayer, in front of its gate and its add. Raises Inseparable."""
        before, after = self.cuts[number], self.cuts[number + 1]
        stretch = self.between(before, after)
        found = {}
        for stream in stretch.changed:
            adds = [node for node in self._passed(stretch, stream) if node.target is _ADD]
            summands = [a for node in adds for a in node.all_input_nodes if a not in self._trunks[stream]]
            if len(adds) != 1 or len(summands) != 1:
                raise Inseparable(f"its {self.names[number]} adds more than one value to `{stream.name}`")
            found[stream] = self._ungated(summands[0], stretch)
        return Cut(before.values, found)

    def _ungated(self, value: fx.Node, stretch: SublayerSpan) -> fx.Node:
        """A value before it is multiplied with what no stream is part of."""
        streams = frozenset(stretch.before.values)
        while True:
            if value.target in _CASTS:
                operands: list[object] = [value.args[0]]
            elif value.target is aten.mul.Tensor:
                operands = [a for a in value.args if self._made_of(a, stretch, streams)]
            else:
                return value
            (only,) = operands if len(operands) == 1 else (None,)
            if not isinstance(only, fx.Node) or only in stretch.before.nodes():
                return value
            value = only

    def _passed(self, stretch: SublayerSpan, stream: Stream) -> tuple[fx.Node, ...]:
        """The values that a stream takes within a stretch, without the one that enters it."""
        trunk = self._trunks[stream]
        first, last = trunk.index(stretch.before.values[stream]), trunk.index(stretch.after.values[stream])
        return trunk[first + 1 : last + 1]

    def _cuts(self) -> list[Cut]:
        """The places where the block can be cut, with its two ends, each behind the one before."""
        streams = tuple(self._entries)
        depth = {s: {n: i for i, n in enumerate(trunk)} for s, trunk in self._trunks.items()}
        places = product(*(self._candidates(s) for s in streams))
        found, ends = [self._entries], (self._entries, self._exits)
        for nodes in sorted(places, key=lambda at: sum(depth[s][n] for s, n in zip(streams, at, strict=True))):
            cut = dict(zip(streams, nodes, strict=True))
            behind = all(depth[s][found[-1][s]] <= depth[s][cut[s]] for s in streams)
            if behind and cut not in (found[-1], *ends) and self._splits(Cut(cut, {})):
                found.append(cut)
        found.append(self._exits)
        kept = [one for one, after in pairwise(found) if one is self._entries or not _only_cast(one, after)]
        return [Cut(values, {}) for values in (*kept, self._exits)]

    def _candidates(self, stream: Stream) -> Iterator[fx.Node]:
        """Where a stream may be cut: as it enters, and behind each add, before or behind a cast of the sum."""
        trunk = self._trunks[stream]
        yield trunk[0]
        for node, following in zip(trunk, (*trunk[1:], None), strict=True):
            if node.target is _ADD:
                yield node
                if following is not None and following.target in _CASTS:
                    yield following

    def _splits(self, cut: Cut) -> bool:
        """Whether what comes behind the cut reads nothing that comes before it."""
        done = needed_for(self._flow, cut.nodes())
        later = (w for w in self._writes if _written(w) not in done)
        return self._reached([*self._exits.values(), *later], cut) is not None

    def _reached(
        self, wanted: list[fx.Node], before: Cut
    ) -> tuple[frozenset[fx.Node], Mapping[fx.Node, Stream]] | None:
        """What `wanted` needs from the streams `before` on, and those of it that are sizes of streams as they were.

        None where it needs something else of what entered.
        """
        ends, entered = before.nodes(), set(self._entries.values())
        found: set[fx.Node] = set()
        sizes: dict[fx.Node, Stream] = {}
        todo = list(wanted)
        while todo:
            node = todo.pop()
            if node in found:
                continue
            found.add(node)
            if node in ends:
                continue
            if node in entered:
                return None
            stream = self._earlier(node.args[0], before) if _is_size(node) else None
            if stream is not None:
                sizes[node] = stream
            else:
                todo.extend(self._flow.predecessors(node))
        return frozenset(found), sizes

    def _earlier(self, node: object, than: Cut) -> Stream | None:
        """The stream whose value a node is somewhere before a cut. All values of a stream have the same sizes: nothing
        but additions lies between them, and what leaves has the sizes of what entered."""
        stream = self._of_stream.get(node) if isinstance(node, fx.Node) else None
        if stream is None:
            return None
        trunk = self._trunks[stream]
        return stream if trunk.index(node) < trunk.index(than.values[stream]) else None

    def _name(self, stretch: SublayerSpan, token_wise: bool) -> SublayerName:
        attentions = [n for n in stretch.nodes if is_attention(n)]
        if not attentions and not token_wise:
            raise Inseparable("it has no row form, so it is not known what mixes its tokens")
        if not attentions:
            return "ffn"
        if self._adds_beside_attention(stretch):
            raise Inseparable("attention and something beside it are added to the stream at once")
        keys = [n.args[1] for n in attentions]
        return "attn" if any(self._made_of(key, stretch, self._video) for key in keys) else "cross"

    def _made_of(self, value: object, stretch: SublayerSpan, streams: frozenset[Stream]) -> bool:
        """Whether a value of a stretch is made of one of these streams as it enters; sizes do not count."""
        ends = stretch.before.nodes()
        wanted = {value for s, value in stretch.before.values.items() if s in streams}
        todo, seen = [value], set[object]()
        while todo:
            node = todo.pop()
            if node in wanted:
                return True
            if isinstance(node, fx.Node) and node in stretch.nodes and node not in seen and not _is_size(node):
                seen.add(node)
                todo += [] if node in ends else list(self._flow.predecessors(node))
        return False

    def _adds_beside_attention(self, stretch: SublayerSpan) -> bool:
        """Whether a stream comes to a summand without passing attention or gating what has passed it."""
        around = self._around_attention(stretch)
        adds = [(n, s) for s in stretch.changed for n in self._passed(stretch, s) if n.target is _ADD]
        return any(around[a] for node, s in adds for a in node.all_input_nodes if a not in self._trunks[s])

    def _around_attention(self, stretch: SublayerSpan) -> dict[fx.Node, bool]:
        """For each value of a stretch whether a stream comes to it by a way on which no attention lies.

        A gate is no such way: what is multiplied with the result of attention.
        """
        ends = stretch.before.nodes()
        around: dict[fx.Node, bool] = {}
        attended: dict[fx.Node, bool] = {}
        for node in self.part.graph.nodes:
            if node not in stretch.nodes or _is_size(node):
                continue
            read = [a for a in self._flow.predecessors(node) if a in around]
            gated = node.target is aten.mul.Tensor and any(attended[a] and not around[a] for a in read)
            attended[node] = is_attention(node) or any(attended[a] for a in read)
            passes = any(around[a] for a in read) and not is_attention(node) and not gated
            around[node] = node in ends or passes
        return around


def _only_cast(one: SublayerValues, after: SublayerValues) -> bool:
    """Whether nothing but casts lies between two cuts: no sublayer, so the first one is left out."""
    return all(made is one[s] or (made.target in _CASTS and made.args[0] is one[s]) for s, made in after.items())


def _written(write: fx.Node) -> fx.Node:
    """What a write puts into a buffer."""
    value = write.args[-1]
    assert isinstance(value, fx.Node)
    return value


def _node(value: object, stream: Stream) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise Inseparable(f"it gives a constant for `{stream.name}`")
    return value


def _outside(roots: list[fx.Node]) -> bool:
    return any(root.op != "call_function" for root in roots)


def _is_size(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int


def _trunk(leaves: fx.Node, enters: fx.Node, stream: Stream) -> tuple[fx.Node, ...]:
    """The values that a stream takes through a block, from where it enters: by additions and casts alone."""
    trunk = [leaves]
    while trunk[-1] is not enters:
        node = trunk[-1]
        if node.target in _CASTS:
            operands = [node.args[0]]
        elif node.target is _ADD:
            operands = [a for a in node.args if isinstance(a, fx.Node) and _continues(a, enters)]
        else:
            operands = []
        if len(operands) != 1:
            how = "is added to itself" if operands else "leaves it otherwise than by additions to what entered"
            raise Inseparable(f"`{stream.name}` {how}")
        (before,) = operands
        assert isinstance(before, fx.Node)
        trunk.append(before)
    return tuple(reversed(trunk))


def _continues(node: fx.Node, enters: fx.Node) -> bool:
    """Whether a value is what entered, with something added."""
    todo, seen = [node], set[fx.Node]()
    while todo:
        at = todo.pop()
        if at is enters:
            return True
        if at not in seen and (at.target in _CASTS or at.target is _ADD):
            seen.add(at)
            todo += [a for a in (at.args[:1] if at.target in _CASTS else at.args) if isinstance(a, fx.Node)]
    return False
