"""Operators that mix tokens: they are computed over all tokens, and the selected rows are read from what they give.

before:  y = convolution(x); z = add(x, y)                                             (x: rows of the video tokens)
partial: all = index_copy_(buffer, axis, rows, x); y = convolution(all); z = add(x, index_select(y, axis, rows))

The buffer keeps the rows that other calls computed, as those of keys and values do. Row i of y is what the full form
adds to row i of x, whatever order y has its tokens in. Where rows meet all tokens in a product (attention by hand), the
operator itself runs on the rows: `scores = matmul(q, all of k)`.

refuses when: an operand has several token axes, or other rows than all video tokens; its first axis is not that of the
samples, or holds its tokens; something writes into it in place
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import fx

from mccompile.capture.dependence import root_of, written_by
from mccompile.capture.facts import ScalarFact, TensorFact
from mccompile.capture.rows import has_cut, has_video
from mccompile.capture.scope import Refused, Scope

AnySize = TypeVar("AnySize")
aten = torch.ops.aten
_TURNS = (aten.transpose.int, aten.permute.default, aten.mT.default)  # a value turned is kept as it was before


def compute_over_all(scope: Scope, node: fx.Node, refused: Refused) -> None:
    """Lets an operator that its rule refused be computed over all tokens. Raises `refused` where that cannot be."""
    for operand in node.all_input_nodes:
        if any(map(_has_tokens, scope.items.get(operand, ()))):
            raise refused
        if isinstance(scope.facts.get(operand), TensorFact) and _has_tokens(scope.of(operand)):
            keep_all(scope, operand, node, refused)
    for target in (node, *written_by(node)):
        scope.whole[target] = True
    scope.mixing[node] = refused


def read_all(scope: Scope, node: fx.Node, operand: fx.Node, refused: Refused) -> None:
    """Lets an operator with rows read all rows of an operand. Raises `refused` where that cannot be."""
    keep_all(scope, operand, node, refused)
    scope.taken.add((node, operand))
    scope.mixing[node] = refused


def keep_all(scope: Scope, operand: fx.Node, reader: fx.Node, refused: Refused) -> None:
    """Notes that all rows of a value are kept where `reader` reads it. Raises `refused` where they cannot be."""
    labels, shape = scope.labels[operand], scope.shape(operand)
    axes = [i for i, rows in enumerate(labels) if has_video(rows)]
    if len(axes) != 1 or has_cut(labels[axes[0]]):
        raise refused
    (axis,) = axes
    if operand.target in _TURNS:
        source = scope.tensor(operand)
        if sum(map(has_video, scope.labels[source])) == 1:
            keep_all(scope, source, reader, refused)
            return
    of_samples = shape[0] == scope.batch or scope.batch == (1, 1)
    flat = axis == 0 or (len(shape) < 3 and is_turned(scope, operand, axis))
    if flat or not of_samples or _is_written_after(operand, scope.first_reads.get(operand, reader)):
        raise refused
    scope.first_reads.setdefault(operand, reader)
    rows = labels[axis]
    assert rows is not None
    scope.kept[operand] = axis, rows


def is_turned(scope: Scope, value: fx.Node, axis: int) -> bool:
    """Whether a value is kept with its last two axes exchanged: a row of what is kept is a token's, never a channel's.
    """  # fmt: skip
    return axis == len(scope.shape(value)) - 1


def as_buffered(scope: Scope, value: fx.Node, sizes: Sequence[AnySize]) -> tuple[AnySize, ...]:
    """The sizes of the buffer of a value that has one. sizes: those of the value."""
    turned = value in scope.kept and is_turned(scope, value, scope.kept[value][0])
    return (*sizes[:-2], sizes[-1], sizes[-2]) if turned else tuple(sizes)


def _has_tokens(labels: object) -> bool:
    assert isinstance(labels, tuple)
    return any(map(has_video, labels))


def _is_written_after(value: fx.Node, reader: fx.Node) -> bool:
    """Whether an operator behind `reader` writes in place into a value, or into what it is a view of."""
    root, nodes = root_of(value), list(value.graph.nodes)
    later = nodes[nodes.index(reader) :]
    return any(root_of(target) is root for node in later for target in written_by(node))


def note_number(scope: Scope, node: fx.Node) -> None:
    """Notes a number that was read off a token axis, or computed from one."""
    if node.target is aten.sym_size.int:
        operand, axis = node.args
        assert isinstance(operand, fx.Node)
        labels = scope.labels.get(operand, ())
        if isinstance(axis, int) and labels and has_video(labels[axis]):
            scope.counts.add(node)
    elif any(n in scope.counts for n in node.all_input_nodes):
        scope.counts.add(node)


def note_whole(scope: Scope, node: fx.Node) -> None:
    """Notes a value without rows that is made of whole ones, or of the number of tokens."""
    used = node.all_input_nodes
    if any(n in scope.whole for n in used):
        scope.whole[node] = any(scope.whole.get(n, False) for n in used)
    elif any(n in scope.counts for n in used if isinstance(scope.facts.get(n), ScalarFact)):
        scope.whole[node] = False
