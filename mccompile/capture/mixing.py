"""Emits operators that mix tokens in a form by rows: over all tokens, from what is kept of the rows that it lacks.

before: y = convolution(x); z = add(x, y)                    (`Scope.kept` has x, `Scope.picked` has y as read by add)
after:  y = convolution(index_copy_(buffer, axis, rows, x)); z = add(x, index_select(y, axis, rows))
refuses when: the number of all tokens is needed where no buffer tells it
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from mccompile.capture.building import BlockForm
from mccompile.capture.facts import Extent, ScalarFact
from mccompile.capture.rows import RowSpans, has_video, key
from mccompile.capture.whole import as_buffered, is_turned

aten = torch.ops.aten


class Mixing:
    """Values over all tokens while a form by rows is built.

    kept: the buffers of the values that are kept whole. rows: the positions of selected rows, by `rows_` and row key.
    sized: the buffers of all values that have one, from which the number of all tokens is read.
    """

    def __init__(
        self, form: BlockForm, kept: Mapping[fx.Node, fx.Node], rows: Mapping[str, fx.Node],
        sized: Mapping[fx.Node, fx.Node],
    ) -> None:  # fmt: skip
        self._form, self._kept, self._rows, self._sized = form, kept, rows, sized
        self._all: dict[fx.Node, fx.Node] = {}  # by value with rows: the value with all of them
        self._numbers: dict[fx.Node, fx.Node] = {}
        self._picked: dict[tuple[fx.Node, int, str], fx.Node] = {}

    def read_by(self, node: fx.Node, used: fx.Node) -> fx.Node:
        """What stands for an operand of an operator: its rows, all of it, or rows picked from all of it."""
        scope = self._form.scope
        if (node, used) in scope.taken:
            return self._whole(used)
        where = scope.picked.get((node, used))
        return self._form.built[used] if where is None else self._pick(used, *where)

    def leaving(self, output: fx.Node) -> fx.Node:
        """What leaves the block for an output: rows picked from it where it holds all tokens."""
        where = self._form.scope.ends.get(output)
        return self._form.built[output] if where is None else self._pick(output, *where)

    def over_all(self, node: fx.Node) -> None:
        """Copies an operator, with all rows of its operands."""
        self._form.built[node] = self._copied(node)

    def _pick(self, value: fx.Node, axis: int, rows: RowSpans) -> fx.Node:
        at = value, axis, key(rows)
        if at not in self._picked:
            index = self._rows[f"rows_{key(rows)}"]
            self._picked[at] = self._form.graph.call_function(
                aten.index_select.default, (self._form.built[value], axis, index)
            )
        return self._picked[at]

    def _copied(self, node: fx.Node) -> fx.Node:
        used = {n: self._whole(n) for n in node.all_input_nodes}  # made before the node, which reads them
        return self._form.copied(node, lambda n: used[n])

    def _whole(self, value: fx.Node) -> fx.Node:
        """A value with all its rows, or a number of all tokens."""
        form = self._form
        if isinstance(form.scope.facts.get(value), ScalarFact):
            return self._number(value)
        if value in form.scope.whole or not any(map(has_video, form.scope.labels.get(value, ()))):
            return form.built[value]
        if value not in self._all:
            self._all[value] = self._kept_whole(value) if value in self._kept else self._copied(value)
        return self._all[value]

    def _kept_whole(self, value: fx.Node) -> fx.Node:
        axis, rows = self._form.scope.kept[value]
        index, made, call = self._rows[f"rows_{key(rows)}"], self._form.built[value], self._form.graph.call_function
        if not is_turned(self._form.scope, value, axis):
            return call(aten.index_copy_.default, (self._kept[value], axis, index, made))
        made = call(aten.transpose.int, (made, -2, -1))
        whole = call(aten.index_copy_.default, (self._kept[value], axis - 1, index, made))
        return call(aten.transpose.int, (whole, -2, -1))

    def _number(self, number: fx.Node) -> fx.Node:
        """A number of the template as it is where all tokens are there."""
        form = self._form
        if number not in form.counts:
            return form.built[number]
        if number not in self._numbers:
            self._numbers[number] = self._measured(number)
        return self._numbers[number]

    def _measured(self, number: fx.Node) -> fx.Node:
        form = self._form
        fact = form.scope.facts[number]
        assert isinstance(fact, ScalarFact)
        for value, buffer in self._sized.items():
            shape = as_buffered(form.scope, value, form.scope.shape(value))
            if fact.values in shape:
                return form.graph.call_function(aten.sym_size.int, (buffer, shape.index(fact.values)))
        for value, buffer in self._sized.items():
            found = self._beside(value, buffer, fact.values)
            if found is not None:
                return found
        if number.target is aten.sym_size.int:
            return form.built[number]  # refused where anything reads it (forms.py)
        args = fx.node.map_arg(number.args, self._number)
        return form.graph.call_function(number.target, args, dict(number.kwargs))

    def _beside(self, value: fx.Node, buffer: fx.Node, size: Extent | None) -> fx.Node | None:
        """The number of the video tokens among the rows of a buffer, if it is `size`."""
        form = self._form
        for axis, rows in enumerate(form.scope.labels[value]):
            spans = [span for span in rows or () if span.video]
            if rows is None or [span.size for span in spans] != [size] or is_turned(form.scope, value, axis):
                continue
            count = form.graph.call_function(aten.sym_size.int, (buffer, axis))
            for span in rows:
                if not span.video:
                    count = form.graph.call_function(operator.sub, (count, form.size(span.size)))
            return count
        return None
