"""Operators that work along channels. They must not contract or normalise the token axis."""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.rows import Labels, RowSpans, any_video, has_video
from mccompile.capture.scope import LabelRule, Scope
from mccompile.capture.whole import read_all

aten = torch.ops.aten
SOFTMAX = (aten.softmax.int, aten._softmax.default, aten.log_softmax.int)


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
    """mean, sum, amax, vector norm ... over given axes; all of them where none is given."""
    value = scope.tensor(node)
    rank = len(scope.shape(value))
    at = 2 if node.target is aten.linalg_vector_norm.default else 1
    given = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    listed = [given] if isinstance(given, int) else list(given or range(rank))
    axes = {int(a) % rank for a in listed}
    keep = node.kwargs.get("keepdim", node.args[at + 1] if len(node.args) > at + 1 else False) is True
    labels = scope.of(value)
    if any(has_video(labels[a]) for a in axes):
        raise scope.refusal(node, "mixes tokens: reduces over the token axis")
    return tuple(rows for i, rows in enumerate(labels) if keep or i not in axes)


def along(scope: Scope, node: fx.Node) -> Labels:
    """softmax, cumsum, glu: along one axis, the last if none is given."""
    labels = scope.of(scope.tensor(node))
    if has_video(labels[scope.axis(node, 1, len(labels), -1)]):
        name = "softmax" if node.target in SOFTMAX else "runs"
        raise scope.refusal(node, f"mixes tokens: {name} over the token axis; attention is followed only as one SDPA")
    return labels


def einsum(scope: Scope, node: fx.Node) -> Labels:
    """A token axis may be any letter that the result keeps."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    assert isinstance(operands, list | tuple)
    left, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation:
        raise scope.refusal(node, "an einsum without `->` or with `...`")
    terms = [(letters, o) for letters, o in zip(left.split(","), operands, strict=True) if isinstance(o, fx.Node)]
    _read_all_of(scope, node, terms, result)
    rows: dict[str, RowSpans] = {}
    for letters, operand in terms:
        for letter, own in zip(letters, scope.of(operand), strict=True):
            if own is not None and rows.setdefault(letter, own) != own:
                raise scope.refusal(node, "token axes of different rows meet")
    for letters, operand in terms:
        for axis, letter in enumerate(letters):
            if letter in rows and scope.of(operand)[axis] is None:
                raise scope.demanded(node, operand, axis, rows[letter])
    if set(rows) - set(result):
        raise scope.refusal(node, "mixes tokens: contracts the token axis")
    return tuple(rows.get(letter) for letter in result)


def _read_all_of(scope: Scope, node: fx.Node, terms: list[tuple[str, fx.Node]], result: str) -> None:
    """Lets an einsum read all rows of an operand whose token axis meets another one, or is summed up.

    The first token axis that the result keeps has rows; so both products of an attention by hand are computed by rows.
    """
    held = {letter for letters, o in terms for letter, own in zip(letters, scope.of(o), strict=True) if has_video(own)}
    kept = [letter for letter in result if letter in held]
    whole = held - set(kept[:1])
    for letters, operand in terms:
        own = {letter for letter, rows in zip(letters, scope.of(operand), strict=True) if has_video(rows)}
        if kept and own and own <= whole:
            read_all(scope, node, operand, scope.refusal(node, "mixes tokens: every row meets all tokens"))


def addmm(scope: Scope, node: fx.Node) -> Labels:
    """bias + [n, k] @ [k, m]."""
    bias, left, right = (scope.tensor(node, i) for i in range(3))
    if any_video(scope.of(bias)) or any_video(scope.of(right)) or has_video(scope.of(left)[1]):
        raise scope.refusal(node, "mixes tokens: contracts the token axis")
    return (scope.of(left)[0], None)


def matmul(scope: Scope, node: fx.Node) -> Labels:
    """[..., n, k] @ [..., k, m]; a token axis may be n, m or a batch axis."""
    left, right = scope.tensor(node), scope.tensor(node, 1)
    if len(scope.shape(left)) < 2 or len(scope.shape(right)) < 2:
        raise scope.refusal(node, "a vector operand")
    one = scope.of(left)
    meets = any_video((one[-2],)) and has_video(scope.of(right)[-1])  # scores of an attention by hand
    if meets or (has_video(scope.of(right)[-2]) and not any_video(one[:-2]) and one[-1] is None):
        read_all(scope, node, right, scope.refusal(node, "mixes tokens: every row meets all tokens"))
    two = scope.of(right)
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


REDUCTIONS = (
    *(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.logsumexp.default),
    *(aten.mean.default, aten.sum.default, aten.linalg_vector_norm.default),
)
RULES: dict[object, LabelRule] = {
    aten.linear.default: linear,
    aten.layer_norm.default: normalise,
    aten.rms_norm.default: normalise,
    aten.group_norm.default: group_norm,
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys((*SOFTMAX, aten.cumsum.default, aten.glu.default), along),
    aten.einsum.default: einsum,
    aten.addmm.default: addmm,
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
