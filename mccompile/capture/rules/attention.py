"""Attention: queries are rows, keys and values are kept in buffers, a mask is followed along its query axis."""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.rows import Labels, any_video, has_cut, has_video
from mccompile.capture.scope import LabelRule, Scope, TokenAttention

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


def mask_of(node: fx.Node) -> fx.Node | None:
    """The mask operand of an SDPA node."""
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return mask if isinstance(mask, fx.Node) else None


def attention(scope: Scope, node: fx.Node) -> Labels:
    """SDPA of q [..., Q, D], k [..., K, D], v [..., K, D], mask [..., Q or 1, K]."""
    query, keys, values = (scope.tensor(node, i) for i in range(3))
    of_query, of_keys, of_values = (scope.of(x) for x in (query, keys, values))
    if any(any_video(labels[:-2]) or has_video(labels[-1]) for labels in (of_query, of_keys, of_values)):
        raise scope.refusal(node, "the token axis is not the query or key axis of the attention")
    rows, key_rows = of_query[-2], of_keys[-2]
    if key_rows != of_values[-2]:
        raise scope.refusal(node, "keys and values hold different rows")
    if len(node.args) > 5 and node.args[5]:
        raise scope.refusal(node, "a causal attention without a mask operand")
    if len(node.args) > 4 and node.args[4]:
        raise scope.refusal(node, "dropout inside the attention")
    mask = mask_of(node)
    if mask is not None:
        shape, of_mask = scope.shape(mask), scope.of(mask)
        if any_video((*of_mask[:-2], of_mask[-1])):
            raise scope.refusal(node, "the mask's keys are gathered elsewhere")
        if rows is not None and has_video(rows) and len(shape) > 1 and shape[-2] != (1, 1):
            scope.masks = True
            if of_mask[-2] is None:
                raise scope.demanded(node, mask, len(shape) - 2, rows)
            if of_mask[-2] != rows:
                raise scope.refusal(node, "the mask's rows are not those of the queries")
    if has_cut(key_rows):
        raise scope.refusal(node, "the keys are some of the video tokens only")
    if key_rows is not None and has_video(key_rows):
        scope.attentions.append(TokenAttention(node, key_rows))
    return (*of_query[:-1], None)


RULES: dict[object, LabelRule] = {SDPA: attention}
