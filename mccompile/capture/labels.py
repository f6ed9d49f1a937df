"""Labels the token axis of every value of a block by dataflow, from the axis of its video stream.

Each operator has a rule (see `rules`), which gives the labels of its result from those of its operands. Sometimes an
operand without a label meets a labelled axis of the same length. The operand is then traced back to its placeholder.
The axis of that placeholder must hold the same rows, and labelling starts again. An operator that no rule proves to be
token-wise is computed over all tokens (whole.py), or refused with its site and a reason.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TypeAlias

from torch import fx

from mccompile.capture.dependence import written_by
from mccompile.capture.factors import TOGETHER
from mccompile.capture.facts import Extent, TensorFact, TupleFact
from mccompile.capture.rows import Labels, RowSpans, any_video, has_video, total
from mccompile.capture.rules import rule_of
from mccompile.capture.scope import Refused, RowsPicked, Scope
from mccompile.capture.template import Template
from mccompile.capture.whole import compute_over_all, note_number, note_whole

Seeds: TypeAlias = Mapping[fx.Node, Mapping[int, RowSpans]]  # by template placeholder and axis


def label(template: Template, seeds: Seeds, batch: Extent = (1, 1)) -> Scope:
    """Labels of all nodes of a template. Raises Demand (seed a placeholder, try again) or Refused.

    batch: the sizes of the video stream's first axis, that of the samples.
    """
    scope = Scope(template.facts, batch=batch)
    for node in template.graph.nodes:
        scope.at = node
        fact = template.facts.get(node)
        if node.op == "placeholder":
            if isinstance(fact, TensorFact):
                axes = seeds.get(node, {})
                scope.labels[node] = tuple(axes.get(i) for i in range(len(fact.shape)))
        elif isinstance(fact, TensorFact | TupleFact):
            _step(scope, node, fact)
        else:
            note_number(scope, node)
    scope.at = None
    return scope


def _sees_video(scope: Scope, node: fx.Node) -> bool:
    return any(
        (o in scope.labels and any_video(scope.of(o))) or any(any_video(x) for x in scope.items.get(o, ()))
        for o in node.all_input_nodes
    )


def _pick_again(scope: Scope, node: fx.Node) -> None:
    """Lets an operator read rows of what mixed tokens, where the axis of the tokens is known (together.py).

    What follows an attention within frames then runs on the rows, as it does behind any other attention.
    """
    for operand in node.all_input_nodes:
        axis = operand.meta.get(TOGETHER)
        if axis is None or not scope.whole.get(operand) or rule_of(node.target) is None:
            continue
        size = scope.shape(operand)[axis]
        rows = next((rows for _, rows in scope.kept.values() if total(rows) == size), None)
        if rows is not None:
            scope.picked[node, operand] = axis, rows


def _step(scope: Scope, node: fx.Node, fact: TensorFact | TupleFact) -> None:
    _pick_again(scope, node)
    if node.target is operator.getitem:
        source, index = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(index, int)
        found: Labels | list[Labels] = scope.items[source][index]
        note_whole(scope, node)
    elif not _sees_video(scope, node):
        found = _unlabelled(fact)
        note_whole(scope, node)
    else:
        found = _ruled(scope, node, fact)
    if isinstance(found, list):
        scope.items[node] = found
    else:
        scope.labels[node] = found


def _ruled(scope: Scope, node: fx.Node, fact: TensorFact | TupleFact) -> Labels | list[Labels]:
    """The labels of what an operator makes of rows; none where it is computed over all tokens."""
    rule = rule_of(node.target)
    while True:
        try:
            if rule is None:
                raise scope.refusal(node, "no rule says what this operator does to the token axis")
            found = rule(scope, node)
            if not isinstance(found, list):
                _check(scope, node, found)
            return found
        except RowsPicked as picked:
            if picked.operand in written_by(node):
                refused = scope.refusal(node, "writes rows into a value of all tokens")
                compute_over_all(scope, node, refused)
                return _unlabelled(fact)
            scope.picked[node, picked.operand] = picked.where
        except Refused as refused:
            _run_over_all(scope, node, refused)
            return _unlabelled(fact)


def _run_over_all(scope: Scope, node: fx.Node, refused: Refused) -> None:
    """Computes an operator over all tokens: as it is where its operands have them all. Raises `refused`."""
    given = [operand for operand in node.all_input_nodes if TOGETHER in operand.meta]
    whole = [operand for operand in given if scope.picked.pop((node, operand), None) is not None]
    if whole and not _sees_video(scope, node):
        note_whole(scope, node)
    else:
        compute_over_all(scope, node, refused)


def _unlabelled(fact: TensorFact | TupleFact) -> Labels | list[Labels]:
    if isinstance(fact, TensorFact):
        return (None,) * len(fact.shape)
    return [(None,) * len(x.shape) if isinstance(x, TensorFact) else () for x in fact.items]


def _check(scope: Scope, node: fx.Node, found: Labels) -> None:
    """The spec of this stage: a label is as long as its axis, at both probes."""
    for rows, extent in zip(found, scope.shape(node), strict=True):
        if has_video(rows) and rows is not None and total(rows) != extent:
            raise scope.refusal(node, f"its token axis has {extent[0]} rows where {total(rows)[0]} were derived")
