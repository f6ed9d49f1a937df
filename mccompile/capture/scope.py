"""What a labelling rule may ask about a block, and the ways in which it may stop: refuse, demand, or pick."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import fx

from mccompile.capture.facts import Extent, Fact, ScalarFact, TensorFact, TupleFact
from mccompile.capture.moves import Unmapped, axis_map
from mccompile.capture.rows import Labels, RowSpans, has_video
from mccompile.capture.stacks import module_path

aten = torch.ops.aten


class Refused(Exception):
    """The block has no partial form: `site` and `reason` go into a Refusal."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(site, reason)
        self.site = site
        self.reason = reason


class Demand(Exception):
    """A placeholder's axis turned out to carry `rows`; label again with it as a seed."""

    def __init__(self, placeholder: fx.Node, axis: int, rows: RowSpans) -> None:
        super().__init__(placeholder.name, axis)
        self.placeholder = placeholder
        self.axis = axis
        self.rows = rows


class RowsPicked(Exception):
    """A value without rows meets one that holds rows: the operator reads `rows` of it, along `axis`."""

    def __init__(self, operand: fx.Node, axis: int, rows: RowSpans) -> None:
        super().__init__(operand.name, axis)
        self.operand = operand
        self.where = axis, rows


@dataclass(frozen=True, slots=True)
class TokenAttention:
    """A scaled_dot_product_attention whose keys are (among others) video tokens."""

    node: fx.Node
    key_rows: RowSpans


def operator_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.") if node.op == "call_function" else node.op


@dataclass(slots=True)
class Scope:
    """Facts of a template's nodes and the labels found so far; `items` holds those of tuples of tensors.

    batch: the sizes of the video stream's first axis. counts: numbers read off token axes. The others are about
    operators that mix tokens (whole.py). whole: values without rows that are made of all tokens (True), or of their
    number alone (False). kept: values of which all rows are kept, each with its token axis and its rows.
    first_reads: of each of these the first operator that reads it whole. taken: (operator, operand) where an operator
    with rows reads all of an operand. picked: (operator, operand) where it reads the selected rows of a whole one.
    ends: whole values that leave the block as streams. mixing: the operators that are computed over all tokens, and
    why. at: the operator whose rule runs.
    """

    facts: dict[fx.Node, Fact]
    labels: dict[fx.Node, Labels] = field(default_factory=dict)
    items: dict[fx.Node, list[Labels]] = field(default_factory=dict)
    attentions: list[TokenAttention] = field(default_factory=list)
    chooses: bool = False  # whether parts of the video tokens are joined row by row
    batch: Extent = (1, 1)
    counts: set[fx.Node] = field(default_factory=set)
    whole: dict[fx.Node, bool] = field(default_factory=dict)
    kept: dict[fx.Node, tuple[int, RowSpans]] = field(default_factory=dict)
    first_reads: dict[fx.Node, fx.Node] = field(default_factory=dict)
    taken: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    picked: dict[tuple[fx.Node, fx.Node], tuple[int, RowSpans]] = field(default_factory=dict)
    ends: dict[fx.Node, tuple[int, RowSpans]] = field(default_factory=dict)
    mixing: dict[fx.Node, Refused] = field(default_factory=dict)
    masks: bool = False  # whether a mask says which tokens each token sees
    at: fx.Node | None = None

    def refusal(self, node: fx.Node, reason: str) -> Refused:
        """To be raised: why the block has no partial form, at the module of `node`."""
        return Refused(module_path(node) or node.name, f"{reason} ({operator_name(node)} `{node.name}`)")

    def shape(self, node: fx.Node) -> tuple[Extent, ...]:
        fact = self.facts[node]
        if not isinstance(fact, TensorFact):
            raise self.refusal(node, "a tensor of one rank was expected")
        return fact.shape

    def of(self, node: fx.Node) -> Labels:
        """Labels of a tensor as the operator `at` reads it, one entry per axis."""
        labels = self.labels[node]
        if self.at is not None and (self.at, node) in self.taken:
            return (None,) * len(labels)
        where = self.ends.get(node) if self.at is None else self.picked.get((self.at, node))
        return labels if where is None else tuple(where[1] if i == where[0] else x for i, x in enumerate(labels))

    def tensor(self, node: fx.Node, position: int = 0) -> fx.Node:
        """The operand at `position`, which must be a tensor."""
        operand = node.args[position]
        if not isinstance(operand, fx.Node):
            raise self.refusal(node, f"operand {position} is no tensor")
        return operand

    def extent(self, value: object, at: fx.Node) -> Extent:
        """The two sizes that an integer argument stands for."""
        if isinstance(value, int):
            return value, value
        fact = self.facts[value] if isinstance(value, fx.Node) else None
        if isinstance(fact, ScalarFact) and fact.values is not None:
            return fact.values
        raise self.refusal(at, f"the size {value} is not known at the probes")

    def pieces(self, node: fx.Node) -> list[tuple[Extent, ...]]:
        """Shapes of the tensors that a split returns."""
        fact = self.facts[node]
        if not isinstance(fact, TupleFact) or not all(isinstance(x, TensorFact) for x in fact.items):
            raise self.refusal(node, "a list of tensors was expected")
        return [x.shape for x in fact.items if isinstance(x, TensorFact)]

    def axis(self, node: fx.Node, position: int, rank: int, default: int = 0) -> int:
        """A `dim` argument, counted from the front."""
        value = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
        if not isinstance(value, int):
            raise self.refusal(node, "its dim is no constant")
        return value % rank

    def meet(self, at: fx.Node, operands: list[fx.Node]) -> Labels:
        """Labels of operands that meet element by element, after broadcasting.

        Raises Demand where an operand as long as a labelled axis bears no label, Refused where rows differ.
        """
        rank = max(len(self.shape(o)) for o in operands)
        merged: list[RowSpans | None] = [None] * rank
        for operand in operands:
            for axis, rows in enumerate(self.of(operand), start=rank - len(self.shape(operand))):
                if rows is None:
                    continue
                if merged[axis] not in (None, rows):
                    raise self.refusal(at, "token axes of different rows meet")
                merged[axis] = rows
        for operand in operands:
            shift = rank - len(self.shape(operand))
            for axis, extent in enumerate(self.shape(operand)):
                rows = merged[axis + shift]
                if rows is not None and has_video(rows) and extent != (1, 1) and self.of(operand)[axis] is None:
                    raise self.demanded(at, operand, axis, rows)
        return tuple(merged)

    def demanded(self, at: fx.Node, node: fx.Node, axis: int, rows: RowSpans) -> Demand | RowsPicked:
        """To be raised: the placeholder that an unlabelled axis comes from has rows, or rows are picked here."""
        operand, where = node, (axis, rows)
        if self.whole.get(operand):
            return RowsPicked(operand, *where)
        seen: set[tuple[fx.Node, int]] = set()
        todo = [(node, axis)]
        while todo:
            node, axis = todo.pop()
            if (node, axis) in seen or self.labels.get(node, (None,) * 99)[axis] is not None:
                continue
            seen.add((node, axis))
            if node.op == "placeholder":
                return Demand(node, axis, rows)
            todo.extend(self._origins(node, axis))
        return RowsPicked(operand, *where)  # a value without rows is the same in every run: it has all of them

    def _origins(self, node: fx.Node, axis: int) -> list[tuple[fx.Node, int]]:
        """Axes of operands that an axis of the result may come from."""
        made, extent = node, self.shape(node)[axis]
        if node.target is operator.getitem:  # of the tensors that unbind or a split returns
            assert isinstance(node.args[0], fx.Node)
            made = node.args[0]
        try:
            groups = axis_map(made, self.facts)
        except Unmapped:
            return []
        if groups is not None:
            whole = self.tensor(made)
            old = next((g.old for g in groups if axis in g.new), ())
            same = [a for a in old if self.shape(whole)[a] == extent]
            return [(whole, a) for a in (old if len(old) == 1 else same if len(same) == 1 else ())]
        if made is not node:
            whole = self.tensor(made)
            return [(whole, axis)] if self.shape(whole)[axis] == extent else []
        return self._looked_up(node, axis) if node.target is aten.embedding.default else self._aligned(node, axis)

    def _looked_up(self, node: fx.Node, axis: int) -> list[tuple[fx.Node, int]]:
        """As `_origins`, for rows of a table by index."""
        index = self.tensor(node, 1)
        return [(index, axis)] if axis < len(self.shape(index)) else []

    def _aligned(self, node: fx.Node, axis: int) -> list[tuple[fx.Node, int]]:
        """As `_origins`, for an operator whose operands' axes lie at the same place from the last on, or elsewhere."""
        extent, found = self.shape(node)[axis], []
        rank = len(self.shape(node))
        for operand in (o for o in node.all_input_nodes if isinstance(self.facts[o], TensorFact)):
            shape = self.shape(operand)
            aligned = axis - (rank - len(shape))
            same = [i for i, e in enumerate(shape) if e == extent]
            if aligned in same:
                found.append((operand, aligned))
            elif len(same) == 1:
                found.append((operand, same[0]))
        return found


LabelRule: TypeAlias = Callable[[Scope, fx.Node], Labels | list[Labels]]
