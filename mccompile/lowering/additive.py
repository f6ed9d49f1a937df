"""Makes boolean masks additive, 0 or -inf, as attention does: once for all blocks, and not in every block.

before: takes the shared mask; sdpa(q, k, v, %mask)
after:  the same graph; takes the mask in its additive form
refuses when: no shared value is read as the mask of attentions and as nothing else
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.part import Additive, Operand, Part, Shared
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Draft, Rewritten

aten = torch.ops.aten


def additive_masks(part: Part, setting: None) -> Rewritten | Refusal:
    """Lets a block on all rows take its masks in the form that attention adds."""
    draft = Draft(part)
    masks: dict[Operand, Operand] = {
        o: Additive(o.name)
        for o, holder in draft.takes.items()
        if isinstance(o, Shared) and holder.users and all(_only_masks(u, holder) for u in holder.users)
        if holder not in draft.gives.values()
    }
    if not masks:
        return Refusal("attention masks", "no shared value is read as a mask and as nothing else")
    draft.rename(masks)
    return Rewritten(draft.part())


def _only_masks(user: fx.Node, value: fx.Node) -> bool:
    """Says whether `user` reads `value` as a mask, or is a view of it that is only read as a mask."""
    if user.target is aten.scaled_dot_product_attention.default:
        return value in user.args[3:] and value not in user.args[:3]
    view = isinstance(user.target, torch._ops.OpOverload) and user.target.is_view
    return view and bool(user.users) and all(_only_masks(u, user) for u in user.users)
