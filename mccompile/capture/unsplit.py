"""Modulates tokens as they lie, where a block takes them apart into frames to do it (Self-Forcing).

before: y = flatten(mul(unflatten(x, 1, [F, S]), scale), 1, 2)                (scale: [B, F, 1, C], of e: [B, F, 6, C])
after:  y = mul(x, squeeze(scale, 2))                                         (scale: [B, F S, 1, C], of e repeated)
refuses when: anything but operators element by element runs on the tokens taken apart, or one of their operands is
neither a value for each frame, made element by element or by cutting other axes, nor one for all tokens

The numbers stay the same, element by element. What has a value for each frame is repeated over the frame's tokens
before the blocks, so that a partial run gathers it like any value with a row for each token.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from mccompile.capture.dependence import written_by
from mccompile.capture.facts import Extent, Fact, ScalarFact, TensorFact, TupleFact, is_dynamic
from mccompile.capture.moves import Unmapped, axis_map, sizes_listed
from mccompile.capture.normalise import drop_dead, order
from mccompile.capture.rules.pointwise import CASTS, POINTWISE
from mccompile.capture.stacks import block_of

aten = torch.ops.aten
_ELEMENTWISE = frozenset((*POINTWISE, *CASTS))
_CUTS = {  # operators that keep the axes in front of one of their arguments, and where that stands
    aten.chunk.default: 2, aten.split.Tensor: 2, aten.split_with_sizes.default: 2, aten.slice.Tensor: 1,
    aten.unsqueeze.default: 1,
}  # fmt: skip


class _Stays(Exception):
    """The tokens stay taken apart here."""


def unsplit(module: fx.GraphModule, facts: Mapping[fx.Node, Fact]) -> dict[fx.Node, Fact]:
    """Rewrites the graph; returns the facts of its nodes, new ones among them."""
    work = _Unsplit(module.graph, dict(facts))
    for node in list(module.graph.nodes):
        if node.op == "call_function" and block_of(node) is not None and node not in work.done:
            try:
                work.rewrite(node)
            except _Stays:
                continue
    if work.done:
        order(module.graph)
        drop_dead(module.graph)
        module.graph.lint()
    return work.facts


@dataclass(frozen=True, slots=True)
class _Split:
    """Where a node takes the tokens apart: the axis of its source, and the sizes of the two that it becomes."""

    axis: int
    outer: Extent
    inner: Extent

    @property
    def tokens(self) -> Extent:
        return self.outer[0] * self.inner[0], self.outer[1] * self.inner[1]


@dataclass(slots=True)
class _Unsplit:
    graph: fx.Graph
    facts: dict[fx.Node, Fact]
    done: set[fx.Node] = field(default_factory=set)
    over: dict[tuple[fx.Node, int, Extent], fx.Node] = field(default_factory=dict)  # by value: its frames repeated
    sizes: dict[Extent, object] = field(default_factory=dict)  # tokens of a frame, as the graph first has them

    def shape(self, node: fx.Node) -> tuple[Extent, ...]:
        fact = self.facts.get(node)
        if not isinstance(fact, TensorFact):
            raise _Stays
        return fact.shape

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        """The operands of a node that are no numbers."""
        return [used for used in node.all_input_nodes if not isinstance(self.facts.get(used), ScalarFact)]

    def split(self, node: fx.Node) -> _Split | None:
        """What a node takes apart, if it does that and nothing else."""
        groups = self._groups(node)
        axis = next((old[0] for old, new in groups if len(old) == 1 and len(new) == 2), None)
        source = node.args[0] if groups else None
        if axis is None or not isinstance(source, fx.Node) or groups != _straight(len(groups), axis):
            return None
        shape = self.shape(node)
        outer, inner = shape[axis : axis + 2]
        dynamic = is_dynamic(self.shape(source)[axis]) and (1, 1) not in (outer, inner)
        return _Split(axis, outer, inner) if dynamic else None

    def joins(self, node: fx.Node, axis: int) -> bool:
        """Whether a node puts two axes together, and does nothing else."""
        groups = self._groups(node)
        return bool(groups) and [(new, old) for old, new in groups] == _straight(len(groups), axis)

    def _groups(self, node: fx.Node) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        try:
            found = axis_map(node, self.facts) if node.op == "call_function" else None
        except Unmapped:
            return []
        return sorted((tuple(group.old), tuple(group.new)) for group in found or ())

    def rewrite(self, start: fx.Node) -> None:
        """Rewrites what is done to the tokens that `start` takes apart. Raises _Stays."""
        at = self.split(start)
        if at is None:
            return
        inside, ends = self._region(start, at)
        for node in inside:
            for operand in self._tensors(node):
                self._check(operand, node, inside, at)
        self._note_size(start, at)
        made: dict[fx.Node, fx.Node] = {}
        for node in inside:
            given = {o: made[o] if o in made else self._given(o, node, at) for o in self._tensors(node)}
            made[node] = self._copy(node, given, self._like(node, _joined(self.shape(node), at)), node)
        for end in ends:
            end.replace_all_uses_with(made[_source(end)])
        self.done |= {start, *inside, *ends}

    def _region(self, start: fx.Node, at: _Split) -> tuple[list[fx.Node], list[fx.Node]]:
        """The operators on tokens taken apart, in order, and those that put them together again."""
        inside: set[fx.Node] = set()
        ends: set[fx.Node] = set()
        todo = list(start.users)
        while todo:
            node = todo.pop()
            if node in inside or node in ends:
                continue
            if self.joins(node, at.axis):
                ends.add(node)
                continue
            pure = node.target in _ELEMENTWISE and not written_by(node) and block_of(node) == block_of(start)
            if not pure or self.shape(node)[at.axis : at.axis + 2] != (at.outer, at.inner):
                raise _Stays
            inside.add(node)
            todo += node.users
        if not inside:
            raise _Stays
        return [n for n in self.graph.nodes if n in inside], [n for n in self.graph.nodes if n in ends]

    def _check(self, operand: fx.Node, user: fx.Node, inside: list[fx.Node], at: _Split) -> None:
        """Raises _Stays unless `_given` can give an operand of an operator on tokens taken apart."""
        if operand in inside or self.split(operand) == at:
            return
        shift = len(self.shape(user)) - len(self.shape(operand))
        outer, inner = _sizes(self.shape(operand), shift, at.axis)
        if inner is None:
            return
        if inner != (1, 1) or outer not in (None, (1, 1), at.outer) or (outer == at.outer and shift):
            raise _Stays
        if outer == at.outer:
            self._check_frames(operand, at, block_of(user))

    def _check_frames(self, node: fx.Node, at: _Split, block: str | None) -> None:
        """Raises _Stays unless `_repeated` can repeat the frames of a value."""
        if block_of(node) == block and node.op == "call_function":
            for operand in self._framed(node, at):
                self._check_frames(operand, at, block)
        elif node.op == "get_attr" or self.shape(node)[at.axis] != at.outer:
            raise _Stays

    def _framed(self, node: fx.Node, at: _Split) -> list[fx.Node]:
        """The operands of a node that have its frames on the same axis. Raises _Stays for other operators."""
        if node.target is operator.getitem:
            return [_source(node)]
        if node.target in _CUTS:
            source, place = _source(node), _CUTS[node.target]
            dim = node.args[place] if len(node.args) > place else 0
            rank = len(self.shape(source)) + (node.target is aten.unsqueeze.default)
            if not isinstance(dim, int) or dim % rank <= at.axis:
                raise _Stays
            return [source]
        if node.target not in _ELEMENTWISE or written_by(node):
            raise _Stays
        rank = len(self.shape(node))
        shapes = {o: (None,) * (rank - len(self.shape(o))) + self.shape(o) for o in self._tensors(node)}
        found = [o for o, shape in shapes.items() if shape[at.axis] not in (None, (1, 1))]
        if any(len(self.shape(o)) != rank for o in found):
            raise _Stays
        return found

    def _note_size(self, start: fx.Node, at: _Split) -> None:
        """Notes the number of a frame's tokens as the first node that takes them apart has it. Raises _Stays."""
        listed = sizes_listed(start, self.facts)
        given = start.args[listed.place] if listed is not None else None
        if listed is None or not isinstance(given, list | tuple):
            raise _Stays
        size = given[at.axis + 1 - listed.first]
        if at.inner not in self.sizes and (isinstance(size, fx.Node) or size == at.inner[0] == at.inner[1]):
            self.sizes[at.inner] = size
        if at.inner not in self.sizes:
            raise _Stays

    def _given(self, operand: fx.Node, user: fx.Node, at: _Split) -> fx.Node:
        """An operand as it is where the tokens lie whole."""
        if self.split(operand) == at:
            return _source(operand)
        shift = len(self.shape(user)) - len(self.shape(operand))
        outer, inner = _sizes(self.shape(operand), shift, at.axis)
        if inner is None:
            return operand
        if outer == at.outer:
            operand = self._repeated(operand, at, block_of(user), user)
        axis, shape = at.axis + 1 - shift, self.shape(operand)
        return self._put(aten.squeeze.dim, (operand, axis), self._like(operand, shape[:axis] + shape[axis + 1 :]), user)

    def _repeated(self, node: fx.Node, at: _Split, block: str | None, before: fx.Node) -> fx.Node:
        """A value with its frames repeated over the tokens of each, made from the shared value that has frames."""
        key = node, at.axis, at.inner
        if key in self.over:
            return self.over[key]
        if block_of(node) == block and node.op == "call_function":
            given = {o: self._repeated(o, at, block, before) for o in self._framed(node, at)}
            self.over[key] = self._copy(node, given, _longer(self.facts[node], at), before)
            return self.over[key]
        shape, axis = self.shape(node), at.axis
        front, back = shape[: axis + 1], shape[axis + 1 :]
        times = [*(1 for _ in front), self.sizes[at.inner], *(1 for _ in back)]
        apart = self._put(aten.unsqueeze.default, (node, axis + 1), self._like(node, (*front, (1, 1), *back)), before)
        wide = self._put(aten.repeat.default, (apart, times), self._like(node, (*front, at.inner, *back)), before)
        flat = self._put(aten.flatten.using_ints, (wide, axis, axis + 1), _longer(self.facts[node], at), before)
        for made in (apart, wide, flat):
            made.meta["nn_module_stack"] = {}
        self.over[key] = flat
        return flat

    def _copy(self, node: fx.Node, given: Mapping[fx.Node, fx.Node], fact: Fact, before: fx.Node) -> fx.Node:
        """The node again, of other operands."""
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: given.get(n, n))
        return self._put(node.target, args, fact, before, kwargs, node.meta)

    def _like(self, node: fx.Node, shape: tuple[Extent, ...]) -> TensorFact:
        fact = self.facts[node]
        assert isinstance(fact, TensorFact)
        return TensorFact(shape, fact.dtype)

    def _put(
        self, target: object, args: tuple[object, ...], fact: Fact, before: fx.Node,
        kwargs: Mapping[str, object] | None = None, meta: Mapping[str, object] | None = None,
    ) -> fx.Node:  # fmt: skip
        """A new node, with what is known of it."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, dict(kwargs or {}))
        node.meta = {**(before.meta if meta is None else meta)}
        node.meta.pop("val", None)
        self.facts[node] = fact
        return node


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _straight(count: int, axis: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The groups of axes where one of `count` axes becomes two, and the others stay as they are."""
    return [((i,), (axis, axis + 1) if i == axis else (i + (i > axis),)) for i in range(count)]


def _sizes(shape: tuple[Extent, ...], shift: int, axis: int) -> tuple[Extent | None, Extent | None]:
    """The sizes of an operand along two axes of the result; None where it does not have them."""
    outer, inner = (shape[i - shift] if i >= shift else None for i in (axis, axis + 1))
    return outer, inner


def _joined(shape: tuple[Extent, ...], at: _Split) -> tuple[Extent, ...]:
    return (*shape[: at.axis], at.tokens, *shape[at.axis + 2 :])


def _longer(fact: Fact, at: _Split) -> Fact:
    """The facts of a value whose frames are repeated."""
    match fact:
        case TensorFact(shape, dtype):
            return TensorFact((*shape[: at.axis], at.tokens, *shape[at.axis + 1 :]), dtype)
        case TupleFact(items):
            return TupleFact(tuple(_longer(item, at) for item in items))
        case _:
            raise _Stays
