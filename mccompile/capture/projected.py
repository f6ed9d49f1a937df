"""The modulated input of a block: what enters the query projection of its first attention, and where its tokens lie.

before: x -> norm, scale, shift -> %m -> linear -> ... -> scaled_dot_product_attention;  after: %m, its token axis
refuses when: the queries come from no linear layer that the video stream enters, or %m does not hold all video tokens
on one axis, in one piece (windows, tokens grouped by frame)
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.facts import TensorFact
from mccompile.capture.rows import Labels, RowSpans, beside_video, has_video
from mccompile.capture.rules.attention import SDPA
from mccompile.capture.scope import Scope
from mccompile.capture.streams import Roles
from mccompile.capture.template import Template
from mccompile.capture.types import ModulatedInput

_LINEAR = torch.ops.aten.linear.default


def modulated_input(
    template: Template, roles: Roles, scope: Scope | None, rows: RowSpans | None
) -> ModulatedInput | str:
    """The modulated input of a block on all rows, or the reason why it has none.

    scope: the labels of the block, None where it was refused; rows: those of its video stream.
    """
    node = _projected(template, roles)
    if node is None:
        return "the queries of its first block come from no linear layer"
    for axis, own in enumerate(_labels(template, roles, scope, rows, node)):
        beside = beside_video(own) if own is not None and has_video(own) else None
        if beside is not None:
            return ModulatedInput(node.name, axis, beside)
    return "the modulated input of its first block does not hold the video tokens along one axis"


def _projected(template: Template, roles: Roles) -> fx.Node | None:
    """What the nearest linear layer before the queries reads, if it is made from the video stream."""
    attention = next((n for n in template.graph.nodes if n.target is SDPA), None)
    todo = [attention.args[0]] if attention is not None else []
    seen = set(todo)
    while todo:  # breadth first
        node = todo.pop(0)
        if not isinstance(node, fx.Node):
            continue
        if node.target is _LINEAR and isinstance(node.args[0], fx.Node):
            if roles.video in _made_of(node.args[0]):
                return node.args[0]
            continue
        todo += [n for n in node.all_input_nodes if n not in seen]
        seen.update(node.all_input_nodes)
    return None


def _made_of(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        at = todo.pop()
        if at not in found:
            found.add(at)
            todo.extend(at.all_input_nodes)
    return found


def _labels(
    template: Template, roles: Roles, scope: Scope | None, rows: RowSpans | None, node: fx.Node
) -> Labels:
    """Rows per axis of a value; in a block without labels those of the video stream, for a value of its very shape."""
    if scope is not None:
        return scope.labels.get(node, ())
    one, two = template.facts.get(roles.video), template.facts.get(node)
    alike = isinstance(one, TensorFact) and isinstance(two, TensorFact) and one.shape == two.shape
    if not alike or not isinstance(one, TensorFact) or roles.video_axis is None:
        return ()
    return tuple(rows if axis == roles.video_axis else None for axis in range(len(one.shape)))
