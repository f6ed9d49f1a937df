"""Operators that work along channels; the token axis must not be the one they contract or normalise."""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.rows import Labels, any_video, has_video
from mccompile.capture.scope import Rule, Scope

aten = torch.ops.aten


def linear(scope: Scope, node: fx.Node) -> Labels:
    """[..., in] @ [out, in]^T."""
    value, weight = scope.tensor(node), scope.tensor(node, 1)
    if any_video(scope.of(weight)):
        raise scope.refusal(node, "the weight has a token axis")
    if has_video(scope.of(value)[-1]):
        raise scope.refusal(node, "mixes tokens: contracts the token axis")
    return (*scope.of(value)[:-1], None)


def normalise(scope: Scope, node: fx.Node) -> Labels:
    """layer_norm, rms_norm over the last len(normalized_shape) axes."""
    value, sizes = scope.tensor(node), node.args[1]
    count = len(sizes) if isinstance(sizes, list | tuple) else 1
    labels = scope.of(value)
    if any_video(labels[-count:]):
        raise scope.refusal(node, "mixes tokens: normalises over the token axis")
    return labels


def group_norm(scope: Scope, node: fx.Node) -> Labels:
    """[N, C, *]: normalises over C / groups and all that follow."""
    labels = scope.of(scope.tensor(node))
    if any_video(labels[1:]):
        raise scope.refusal(node, "mixes tokens: normalises over the token axis")
    return labels


def reduce(scope: Scope, node: fx.Node) -> Labels:
    """mean, sum, amax ... over given axes."""
    value = scope.tensor(node)
    rank = len(scope.shape(value))
    given = node.args[1] if len(node.args) > 1 else None
    listed = [given] if isinstance(given, int) else list(given or range(rank))
    axes = {int(a) % rank for a in listed}
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    labels = scope.of(value)
    if any(has_video(labels[a]) for a in axes):
        raise scope.refusal(node, "mixes tokens: reduces over the token axis")
    return tuple(rows for i, rows in enumerate(labels) if keep or i not in axes)


def softmax(scope: Scope, node: fx.Node) -> Labels:
    """Along one axis."""
    value = scope.tensor(node)
    labels = scope.of(value)
    if has_video(labels[scope.axis(node, 1, len(labels), -1)]):
        raise scope.refusal(node, "mixes tokens: softmax over the token axis; attention is followed only as one SDPA")
    return labels


def matmul(scope: Scope, node: fx.Node) -> Labels:
    """[..., n, k] @ [..., k, m]; a token axis may be n, m or a batch axis."""
    left, right = scope.tensor(node), scope.tensor(node, 1)
    if len(scope.shape(left)) < 2 or len(scope.shape(right)) < 2:
        raise scope.refusal(node, "a vector operand")
    one, two = scope.of(left), scope.of(right)
    if has_video(one[-1]) or has_video(two[-2]):
        raise scope.refusal(node, "mixes tokens: contracts the token axis (linear attention)")
    if any_video(one[:-2]) or any_video(two[:-2]):
        raise scope.refusal(node, "the token axis is a batch axis of a matrix product")
    rank = max(len(one), len(two))
    return (*(None,) * (rank - 2), one[-2], two[-1])


def embedding(scope: Scope, node: fx.Node) -> Labels:
    """Rows of a table by index."""
    table, index = scope.tensor(node), scope.tensor(node, 1)
    if any_video(scope.of(table)):
        raise scope.refusal(node, "the table has a token axis")
    return (*scope.of(index), None)


def convolution(scope: Scope, node: fx.Node) -> Labels:
    """Any convolution that sees the token axis."""
    raise scope.refusal(node, "mixes tokens: a convolution over the token axis")


RULES: dict[object, Rule] = {
    aten.linear.default: linear,
    aten.layer_norm.default: normalise,
    aten.rms_norm.default: normalise,
    aten.group_norm.default: group_norm,
    **dict.fromkeys(
        (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.var.correction), reduce
    ),
    **dict.fromkeys((aten.softmax.int, aten._softmax.default), softmax),
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default), matmul),
    aten.embedding.default: embedding,
    **dict.fromkeys(
        (
            *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
            *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, aten.convolution.default),
        ),
        convolution,
    ),
}
